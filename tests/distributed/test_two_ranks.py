"""Two ranks over gloo choose and train what one process does, in float64, by DDP."""

import pytest
from same_steps import assert_same_steps, both
from worker import METHODS, SINGLE, STEPS, STREAMS

from training import largest_difference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", METHODS)
def test_two_ranks_train_what_one_does(trained, method):
    (one, two), states = both(trained, "ddp", tuple(METHODS), method)
    assert len(one) >= (4 if method.startswith("uneven") else STEPS)
    assert_same_steps(one, two)
    assert all((line["loss_by_source"] is None) == method.startswith("own_loss") for line in two)
    assert all(((line["reuse_mb"] or 0) > 0) == method.startswith("reuse") for line in two)
    # transformers' own loss, which uniform selectors use, is in float32 whatever the model
    bound = 2e-5 if "random" in method or method.startswith(("hard", "every_row")) else 1e-9
    assert largest_difference(*states) < bound


@pytest.mark.parametrize("method", ["uneven_grown", "uneven_grown_every_row"])
def test_a_batch_grows_alike(trained, method):
    (one, _), _ = both(trained, "ddp", tuple(METHODS), method)
    assert max(line["chosen_examples"] for line in one) > 16


@pytest.mark.parametrize("method", SINGLE)
def test_eight_steps_in_float32(trained, method):
    (one, two), states = both(trained, "ddp", tuple(SINGLE), method)
    assert len(one) == STEPS
    assert_same_steps(one, two)
    assert largest_difference(*states) < 1e-5


@pytest.mark.parametrize("method", STREAMS)
def test_a_stream_on_two_ranks(trained, method):
    """Each rank reads the stream and takes its own rows; the rows that fill up its end are not chosen twice."""
    (one, two), states = both(trained, "ddp", tuple(STREAMS), method)
    assert_same_steps(one, two)
    assert largest_difference(*states) < 1e-9


def test_two_ranks_measure_the_gradient_error_that_one_does(trained):
    (one, two), _ = both(trained, "ddp", tuple(METHODS), "tracked")
    assert [line["gradient_error"] is not None for line in one] == [step % 3 == 0 for step in range(1, STEPS + 1)]
    for alone, joint in zip(one, two, strict=True):
        if alone["gradient_error"]:
            beside, other = (dict(line["gradient_error"]) for line in (alone, joint))
            assert other.pop("random") == pytest.approx(beside.pop("random"), rel=1e-4)
            assert other == pytest.approx(beside, rel=1e-4)
            assert joint["bytes_sent"]["gradients"] > 0


@pytest.mark.parametrize(("method", "rows"), [("every_row_told", 8), ("every_row", 32)])
def test_two_ranks_measure_the_noise_that_one_does(trained, method, rows):
    (one, two), _ = both(trained, "ddp", tuple(METHODS), method)
    assert [line["noise_trace"] is not None for line in one] == [step % 2 == 0 for step in range(1, STEPS + 1)]
    pairs = [(a, b) for a, b in zip(one, two, strict=True) if a["noise_trace"] is not None]
    for alone, joint in pairs:  # of the same rows, in so many micro-batches and in twice as many
        whole = alone["noise_signal"] + alone["noise_trace"] / rows
        assert joint["noise_signal"] + joint["noise_trace"] / rows == pytest.approx(whole, rel=1e-4)
    alone, joint = (sum(pair[which]["noise_trace"] for pair in pairs) for which in (0, 1))
    assert joint == pytest.approx(alone, rel=0.3)


@pytest.mark.parametrize("method", ["cut_plain", "cut_by_length", "cut_capped", "one_micro_batch", "every_row"])
def test_the_record_counts_the_positions_of_both_ranks(trained, method):
    (one, two), _ = both(trained, "ddp", tuple(METHODS), method)
    for alone, joint in zip(one, two, strict=True):
        for line in (alone, joint):
            assert line["largest_micro_batch"] <= line["positions_trained"]
            if method == "cut_plain":
                assert line["positions_plain"] == line["positions_trained"]
                assert line["largest_plain"] == line["largest_micro_batch"]
            if method == "cut_capped":
                assert line["largest_micro_batch"] <= 24
            if method == "every_row":
                assert line["positions_trained"] <= line["positions_plain"]
                assert line["largest_micro_batch"] <= line["largest_plain"]
    if method == "every_row":
        assert sum(line["rows_moved"] for line in two) > 0


def test_what_travels_is_counted(trained):
    (_, lines), _ = both(trained, "ddp", tuple(METHODS), "optimizer_scale")
    assert sum(line["rows_moved"] for line in lines) > 0
    for line in lines:
        sent, rows = line["bytes_sent"], line["pool_examples"]
        assert sent.keys() <= {"status", "columns", "features", "rows", "learnt"}
        assert 8 * 8 * rows <= sent["columns"] <= 8 * 8 * (rows + 2)
        width = sent["features"] / 8 / rows
        assert width == int(width)  # each row's features and its loss, in float64, once
        assert 2 <= width <= 129
        assert (sent.get("rows", 0) > 0) == (line["rows_moved"] > 0)
        # at most 20 tokens, three integers a token and two a row
        assert sent.get("rows", 0) <= line["rows_moved"] * 8 * (3 * 20 + 2)
        assert sent["status"] <= 2000
        assert 0 <= line["token_imbalance"] < 0.5

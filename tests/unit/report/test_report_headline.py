"""What the headline of a report says that a user got."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_runs import EVALUATION, INFO, STEPS, STEPS_TODAY, long_run, write_run

from corebatch.report import read_run, summarise, write_report
from corebatch.report.headline import UNKNOWN, by_source, headline, saved
from corebatch.report.summary import CutSummary, PhaseSummary, Summary


def summary_of(folder: Path, steps: list[dict[str, Any]] | None = None, **files: Any) -> Summary:
    return summarise(read_run(write_run(folder, steps, **files)))


def answers(before: dict[str, int], after: dict[str, int], total: int = 20) -> dict[str, Any]:
    """An evaluation of sources with as many items each."""

    def of(correct: dict[str, int]) -> dict[str, Any]:
        each = {name: {"correct": right, "total": total} for name, right in correct.items()}
        return {"per_source": each, "overall": {"correct": sum(correct.values()), "total": total * len(correct)}}

    return {"before": of(before), "after": of(after)}


def losses(**curves: dict[int, float]) -> dict[str, Any]:
    """A trainer's state with held-out losses by name and step; `overall` is eval_loss."""
    history = [
        {"step": step, "eval_loss" if name == "overall" else f"eval_{name}_loss": value}
        for name, curve in curves.items()
        for step, value in curve.items()
    ]
    return {"global_step": 9, "log_history": history}


def test_answers_come_first_then_the_held_out_loss(tmp_path: Path) -> None:
    found = headline(
        summary_of(
            tmp_path,
            evaluation=answers({"a": 1, "b": 2}, {"a": 18, "b": 12}),
            trainer_state=losses(overall={0: 2.0, 9: 1.5}),
        )
    )
    assert found[0] == ("", "Right answers on held-out items rose from 7.5 % to 75.0 %.")
    told = dict(found[1:])
    assert told["Measured"] == "3 of 40 before, 30 of 40 after training; their intervals do not overlap."
    assert told["Held-out loss"] == "It fell from 2.000 to 1.500 nats per token. Before training and at step 9."
    assert told["By source"] == "a (5.0 % to 90.0 %), b (10.0 % to 60.0 %)."
    assert told["Against plain training"] == UNKNOWN


def test_answers_that_hardly_change_are_told_with_their_intervals(tmp_path: Path) -> None:
    found = headline(summary_of(tmp_path, evaluation=answers({"a": 9, "b": 9}, {"a": 8, "b": 9})))
    assert found[0] == ("", "Right answers on held-out items fell from 45.0 % to 42.5 %.")
    assert found[1][1].endswith("their intervals overlap.")
    same = headline(summary_of(tmp_path / "same", evaluation=answers({"a": 9, "b": 9}, {"a": 8, "b": 10})))
    assert same[0][1] == "Right answers on held-out items stayed at 45.0 %."


def test_the_held_out_loss_by_source_and_since_when(tmp_path: Path) -> None:
    state = losses(overall={3: 2.0, 9: 2.5}, algebra={3: 1.0, 9: 0.5}, tiny={3: 3.0, 9: 4.5})
    found = headline(summary_of(tmp_path, trainer_state=state))
    assert found[0] == ("", "Held-out loss rose from 2.000 to 2.500 nats per token.")
    told = dict(found[1:])
    assert told["Measured"] == "At step 3, not before training, and at step 9."
    assert told["By source"] == "algebra (1.000 to 0.500), tiny (3.000 to 4.500)."


def test_one_measurement_is_no_change(tmp_path: Path) -> None:
    found = headline(summary_of(tmp_path, trainer_state=losses(overall={9: 1.5})))
    assert found[0] == ("", "Loss of the pool fell from 2.000 to 1.000 nats per token.")
    assert found[1] == ("Measured", "Means of the first and the last step.")


@pytest.mark.parametrize("count", [1, 3])
def test_without_a_loss_nothing_is_claimed(tmp_path: Path, count: int) -> None:
    steps = [{"step": number, "pool_examples": 8, "chosen_examples": 8} for number in range(1, count + 1)]
    found = headline(summary_of(tmp_path, steps, corebatch={"coreset": {"pool_factor": 1}}))
    assert found[0][1] == f"Trained for {count} step{'s' * (count > 1)}; nothing measured what came of it."
    assert [about for about, _ in found] == ["", "How"]


def test_of_many_sources_the_most_the_least_and_those_that_lost(tmp_path: Path) -> None:
    before = dict.fromkeys("abcdefg", 5)
    rising = dict(zip("abcdefg", (6, 20, 18, 16, 9, 8, 7), strict=True))
    text = by_source(summary_of(tmp_path, evaluation=answers(before, rising)))
    assert text == (
        "Better in 7 of 7: most in b (25.0 % to 100.0 %), c (25.0 % to 90.0 %), d (25.0 % to 80.0 %); "
        "least in a (25.0 % to 30.0 %)."
    )
    falling = rising | {"a": 1, "e": 2, "f": 3, "g": 4}
    text = by_source(summary_of(tmp_path / "falling", evaluation=answers(before, falling)))
    assert text.startswith("Better in 3 of 7: most in b ")
    assert text.endswith("; worse in a (25.0 % to 5.0 %), e (25.0 % to 10.0 %), f (25.0 % to 15.0 %) and 1 more.")


def test_training_losses_of_sources_where_nothing_was_held_out(tmp_path: Path) -> None:
    steps = [
        {**STEPS[0], "step": step, "loss_by_source": {"algebra": 3.0 / step, "tiny": 1.0 * step}}
        | {"loss_tokens": {"algebra": 9.0, "tiny": 3.0}}
        for step in (1, 2)
    ]
    assert by_source(summary_of(tmp_path, steps)) == "algebra (3.000 to 1.500), tiny (1.000 to 2.000)."
    held_out = losses(overall={0: 2.0, 9: 1.5})  # of all sources together
    text = by_source(summary_of(tmp_path / "held", steps, trainer_state=held_out))
    assert text == "Training loss of algebra (3.000 to 1.500), tiny (1.000 to 2.000)."


def test_how_it_was_done_comes_last(tmp_path: Path) -> None:
    about, text = headline(summary_of(tmp_path))[-1]
    assert about == "How"
    assert text.startswith(
        "At each of 2 steps 4 of 8 examples were chosen and trained on. A step took 2.0 s on average"
    )
    assert "scoring 30.0 %" in text
    assert "Small sources kept whole: tiny." in text


def test_plain_training_claims_no_choice_and_is_not_compared_with_itself(tmp_path: Path) -> None:
    steps = [{**STEPS[0], "chosen_examples": 8, "chosen": STEPS[0]["drawn"]}]
    found = headline(summary_of(tmp_path, steps, corebatch={**INFO, "coreset": {"pool_factor": 1}}))
    told = dict(found)
    assert told["How"].startswith(
        "At the one step all 8 examples drawn were trained on (plain training, nothing was chosen)."
    )
    assert "Against plain training" not in told
    assert "Time saved" not in told


def test_what_a_comparison_found_is_told_on_the_page(tmp_path: Path) -> None:
    sentences = ("plain, small batch: token mean -0.01.", "plain, large batch: <no test>.")
    found = headline(replace(summary_of(tmp_path), against=sentences))
    assert [text for about, text in found if about == "Against plain training"] == list(sentences)
    page = write_report(tmp_path, against=sentences).read_text(encoding="utf-8")
    assert "<dt>Against plain training</dt><dd>plain, large batch: &lt;no test&gt;.</dd>" in page
    assert UNKNOWN not in page


@pytest.fixture
def half(tmp_path: Path) -> Summary:
    """Of a run that trains half of what it draws, and scores nothing."""
    return replace(summary_of(tmp_path, STEPS_TODAY), reuse_mb=None, scoring={"none": 2})


def choosing(made: Summary, took: float, train: float, **changes: Any) -> Summary:
    """With so many seconds of selection and of training."""
    total = took + train
    phases = tuple(
        PhaseSummary(name=name, mean_ms=1.0, median_ms=1.0, share=seconds / total, peak_memory_mb=None)
        for name, seconds in (("select", took), ("train", train))
    )
    return replace(made, phases=phases, phase_seconds=total, **changes)


def test_time_that_choosing_saved_or_cost(half: Summary) -> None:
    assert saved(choosing(half, 2.0, 8.0)) == [
        (
            "Time saved",
            "coreset.pool_factor (2): choosing and training took 10.0 s; training the whole pool would have taken "
            "about 16.0 s at the same pace, by their examples.",
        )
    ]
    ((_, text),) = saved(choosing(half, 9.0, 8.0))
    assert text.startswith("coreset.pool_factor (2): none; choosing and training took 17.0 s")
    ((_, text),) = saved(choosing(half, 2.0, 8.0, scoring={"full": 2}, tokens_scored=3000, tokens_trained=1000))
    assert "about 24.0 s at the same pace, by their tokens." in text


def test_a_forward_that_was_kept_makes_no_claim_about_time(half: Summary) -> None:
    assert saved(choosing(half, 2.0, 8.0, reuse_mb=12.5)) == []
    assert saved(choosing(half, 2.0, 8.0, examples_drawn=8)) == []


def test_positions_and_activations_that_micro_batches_saved(half: Summary) -> None:
    cut = CutSummary(trained=900, plain=1000, largest=300, largest_plain=400)
    plain = replace(choosing(half, 2.0, 8.0, positions=cut), coreset={"pool_factor": 1, "micro_batches": "positions"})
    found = saved(replace(plain, examples_drawn=8))
    key = "coreset.micro_batches (positions)"
    assert found == [
        ("Time saved", f"{key}: training computed 900 positions, padding included, instead of 1,000, 10.0 % fewer."),
        ("Memory saved", f"{key}: the activations of 300 positions at once instead of 400, 25.0 % fewer."),
    ]
    same = CutSummary(trained=998, plain=1000, largest=400, largest_plain=400)
    assert saved(replace(plain, examples_drawn=8, positions=same)) == []


def test_rows_that_were_learnt_are_told(half: Summary) -> None:
    found = saved(choosing(half, 2.0, 8.0, passes=(1000, 900, 700), examples_drawn=8))
    assert found == [("Time saved", "coreset.sampling: 30.0 % fewer rows in the last pass, learnt by then.")]


def test_a_chart_of_memory_tells_phases_apart_or_is_left_out(tmp_path: Path) -> None:
    title = "Peak memory by phase"
    assert title in write_report(write_run(tmp_path / "apart", evaluation=EVALUATION)).read_text()
    same = [{**step, "memory_mb": {"score": 777.0, "train": 775.0}} for step in STEPS]
    page = write_report(write_run(tmp_path / "same", same)).read_text()
    assert title not in page
    assert "777 MB" in page


def test_points_of_a_rare_source_are_joined(tmp_path: Path) -> None:
    steps = [
        {**step, "loss_by_source": {"a": 2.0} | ({"b": 1.0} if step["step"] % 4 == 0 else {})}
        for step in long_run(24, ["a", "b"])
    ]
    page = write_report(write_run(tmp_path, steps)).read_text()
    drawing = page[page.index('aria-label="Training loss by source') :]
    assert drawing[: drawing.index("</svg>")].count("<use ") >= 6  # a marker at each of the six points of b

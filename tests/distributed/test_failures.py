"""What goes wrong on one of two ranks ends the run on both, at once, with a message that names the rank."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def both(forks):
    """A function that runs a case on two ranks: how each ended, that is what it wrote, and its exit code."""
    script = Path(__file__).with_name("faulty.py")

    def run(case, folder):
        ends = []
        for rank, code in enumerate(forks.run(script, folder, world=2, case=case)):
            path = folder / f"{rank}.json"
            ends.append((json.loads(path.read_text()) if path.exists() else {}) | {"code": code})
            assert code in (0, -9), (folder / f"{rank}.log").read_text()[-4000:]
        return ends

    return run


@pytest.mark.parametrize(
    "case, error, message, step",
    [
        ("bad_row", "DataError", "this row is damaged", 2),
        ("first_row", "DataError", "this row is damaged", 0),
        ("no_labels", "DataError", "should have `input_ids` and `labels`", 2),
        ("other_type", "DataError", "attention_mask torch.float32", 2),
        ("vocabulary", "DataError", "Found 1000 in examples", 2),
        ("scorer", "RuntimeError", "this forward is not for me", 0),
    ],
)
def test_a_failure_of_one_rank_ends_both(both, tmp_path, case, error, message, step):
    zero, one = both(case, tmp_path)
    assert (one["error"], zero["error"]) == (error, "RankError")
    assert message in one["message"]
    assert message in zero["message"]
    assert "failed on rank 1, so no rank goes on" in zero["message"]
    assert zero["value"]
    # the loader reads a batch ahead, so the step is the one before or the one at the damage
    assert zero["step"] == one["step"]
    assert abs(one["step"] - step) <= 1
    assert max(zero["seconds"], one["seconds"]) < 30
    assert zero["weights"] == one["weights"]
    assert (zero["moved"] > 0) == (step > 0)


@pytest.mark.parametrize("case", ["hangs", "dies"])
def test_a_rank_that_does_not_come_is_named(both, tmp_path, case):
    zero, one = both(case, tmp_path)
    assert zero["error"] == "RankError"
    assert "rank 0 could not go on, for want of rank 1, last seen at step" in zero["message"]
    assert zero["seconds"] < 60
    assert one["code"] == (-9 if case == "dies" else 0)
    if case == "hangs":
        assert "It waits for rank 1 (last seen at" in (tmp_path / "0.log").read_text()


def test_loaders_of_other_lengths_are_refused(both, tmp_path):
    for end in both("uneven", tmp_path):
        assert end["error"] == "DataError"
        assert "ranks are asked for [1, 2]" in end["message"] or "ranks are asked for [2, 1]" in end["message"]


@pytest.mark.parametrize("case, pools", [("empty", [16, 16, 9, 8]), ("nothing_at_first", [8, 8, 8, 8])])
def test_a_rank_without_rows_goes_along(both, tmp_path, case, pools):
    """It runs the same forwards and trains rows of the other's."""
    zero, one = both(case, tmp_path)
    assert zero["error"] is one["error"] is None, (zero, one)
    assert zero["step"] == one["step"] == 4
    assert zero["choices"] == one["choices"]
    assert zero["weights"] == one["weights"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "selection.jsonl").read_text().splitlines()]
    assert [line["pool_examples"] for line in lines] == pools
    assert [line["chosen_examples"] for line in lines] == [-(-count // 2) for count in pools]
    assert [len(set(ids)) for ids in zero["choices"]] == [-(-count // 2) for count in pools]
    assert all(line["rows_moved"] > 0 for line in lines[3:])

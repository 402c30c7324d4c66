"""Run folders that are whole, unfinished, broken or sparse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import EVALUATION, INFO, PEAK, STEPS, STEPS_TODAY, write_run

from corebatch.errors import DataError
from corebatch.report import read_run


def append(folder: Path, text: str | bytes) -> Path:
    with (folder / "selection.jsonl").open("ab") as file:
        file.write(text.encode() if isinstance(text, str) else text)
    return folder


def test_reads_every_field(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path))
    assert [step.step for step in run.steps] == [1, 2]
    first = run.steps[0]
    for key, value in STEPS[0].items():
        found = getattr(first, key)
        assert (list(found) if key == "kept" else found) == value
    assert run.steps[1].train_loss is None
    assert run.info == INFO
    assert run.notes == ()


def test_reads_what_newer_records_tell(tmp_path: Path) -> None:
    first, second = read_run(write_run(tmp_path, STEPS_TODAY, corebatch={**INFO, "peak_flops": PEAK})).steps
    told = ("positions_scored", "positions_trained", "mfu", "reuse_mb", "scoring")
    for key in (*told, "bytes_sent", "rows_moved", "token_imbalance"):
        assert getattr(first, key) == STEPS_TODAY[0][key]
    assert second.positions_trained is None
    old = read_run(write_run(tmp_path, STEPS)).steps[0]
    assert old.positions_scored is old.mfu is old.reuse_mb is old.rows_moved is old.scoring is None


def test_fields_may_be_missing(tmp_path: Path) -> None:
    steps = [{"step": 5, "pool_examples": 8, "chosen_examples": 4}]
    (step,) = read_run(write_run(tmp_path, steps)).steps
    assert (step.step, step.pool_examples, step.chosen_examples) == (5, 8, 4)
    assert step.pool_loss is None
    assert step.tokens_scored is None
    assert step.ms == {}
    assert step.kept == ()


def test_missing_settings_are_noted(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, corebatch=None))
    assert run.info == {}
    assert any("corebatch.json is missing" in note for note in run.notes)


@pytest.mark.parametrize("tail", [b'{"step": 3, "pool_exam', b"{", b'{"step": 3, "drawn": {"\xe6\x95', b"\x00\x00"])
def test_an_unfinished_last_line_is_left_out_and_noted(tmp_path: Path, tail: bytes) -> None:
    run = read_run(append(write_run(tmp_path), tail))
    assert len(run.steps) == 2
    assert run.notes == ("The last line of selection.jsonl (line 3) is unfinished and was left out.",)


def test_a_last_line_without_line_end_counts_when_it_is_whole(tmp_path: Path) -> None:
    run = read_run(append(write_run(tmp_path), json.dumps({**STEPS[1], "step": 3})))
    assert len(run.steps) == 3
    assert run.notes == ()


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"step": 3,\n', r"not valid JSON"),
        ("[1, 2]\n", r"should be a JSON object\. Found \[1, 2\]"),
        ('{"step": 3, "chosen_examples": 4}\n', r"field 'pool_examples' is missing"),
        ('{"step": "three", "pool_examples": 8, "chosen_examples": 4}\n', r"'step' should be a whole number"),
        ('{"step": 3, "pool_examples": -8, "chosen_examples": 4}\n', r"Found -8"),
        ('{"step": 3, "pool_examples": true, "chosen_examples": 4}\n', r"Found True"),
        ('{"step": 3, "pool_examples": 8, "chosen_examples": 4, "pool_loss": "low"}\n', r"'pool_loss'.*number"),
        ('{"step": 3, "pool_examples": 8, "chosen_examples": 4, "ms": [1]}\n', r"'ms' should be an object"),
        ('{"step": 3, "pool_examples": 8, "chosen_examples": 4, "drawn": {"a": 1.5}}\n', r"'drawn\.a'"),
        ('{"step": 3, "pool_examples": 8, "chosen_examples": 4, "kept": "a"}\n', r"'kept' should be a list"),
        ('{"step": 3, "pool_examples": 8, "chosen_examples": 4, "scoring": 1}\n', r"'scoring' should be a string"),
        ('{"step": 3, "pool_examples": 8, "chosen_examples": 4, "mfu": "high"}\n', r"'mfu' should be a number"),
        ('{"step": 2, "pool_examples": 8, "chosen_examples": 4}\n', r"Found step 2 after step 2"),
        (b'{"step": \xff}\n', r"not valid JSON"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str | bytes, message: str) -> None:
    folder = append(append(write_run(tmp_path), line), json.dumps({**STEPS[0], "step": 9}) + "\n")
    with pytest.raises(DataError, match=rf"selection\.jsonl:3: .*{message}"):
        read_run(folder)


def test_a_broken_last_line_with_line_end_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"selection\.jsonl:3: not valid JSON"):
        read_run(append(write_run(tmp_path), '{"step": 3\n'))


def test_no_folder_no_file_and_no_steps_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no folder at"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"selection\.jsonl is missing"):
        read_run(tmp_path)
    with pytest.raises(DataError, match="no complete step"):
        read_run(write_run(tmp_path, []))
    with pytest.raises(DataError, match="no complete step"):
        read_run(append(tmp_path, '{"step": 1, "po'))


def test_losses_that_are_not_finite_are_left_out_and_noted(tmp_path: Path) -> None:
    steps = [{**STEPS[0], "pool_loss": float("nan")}, {**STEPS[1], "train_loss": float("inf")}]
    run = read_run(write_run(tmp_path, steps))
    assert (run.steps[0].pool_loss, run.steps[1].train_loss) == (None, None)
    assert run.notes == ("2 of 2 steps have a loss that is NaN or infinite; it is left out.",)


def test_settings_that_are_broken_are_named(tmp_path: Path) -> None:
    (write_run(tmp_path) / "corebatch.json").write_text('{\n"model": ,\n}')
    with pytest.raises(DataError, match=r"corebatch\.json, line 2: not valid JSON"):
        read_run(tmp_path)
    with pytest.raises(DataError, match=r"corebatch\.json: field 'sources' should be an object"):
        read_run(write_run(tmp_path, corebatch={"sources": ["a"]}))
    with pytest.raises(DataError, match=r"corebatch\.json: peak_flops: field 'value' should be a number"):
        read_run(write_run(tmp_path, corebatch={"peak_flops": {"value": "much"}}))


def test_evaluation_with_given_and_with_computed_intervals(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path, evaluation=EVALUATION))
    assert run.before is not None
    assert run.after is not None
    assert run.before.overall is None
    assert (run.before.per_source["algebra"].low, run.before.per_source["algebra"].high) == (0.05, 0.7)
    overall = run.after.overall
    assert overall is not None
    assert overall.share == 0.75
    assert (overall.low, overall.high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson, 3 of 4


@pytest.mark.parametrize("change, message", [({"correct": 9}, "Found 9 of 4"), ({"high": 40}, "shares from 0 to 1")])
def test_evaluation_that_cannot_be_is_refused(tmp_path: Path, change: dict[str, float], message: str) -> None:
    accuracy = {"correct": 1, "total": 4, "low": 0.1, "high": 0.5, **change}
    with pytest.raises(DataError, match=rf"after\.overall.*{message}"):
        read_run(write_run(tmp_path, evaluation={"after": {"per_source": {}, "overall": accuracy}}))


def test_held_out_losses_come_from_the_newest_state(tmp_path: Path) -> None:
    write_run(tmp_path)
    for step in (10, 9):
        history = [{"step": s, "eval_loss": 3.0 - s / 10, "loss": 1.0, "eval_runtime": 2.0} for s in (5, step)]
        history.append({"step": step, "eval_algebra_loss": float(step), "eval_accuracy": 0.5})
        (tmp_path / f"checkpoint-{step}").mkdir()
        state = {"global_step": step, "log_history": history}
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps(state))
    (tmp_path / "trainer_state.json").write_text('{"global_step": 1')
    run = read_run(tmp_path)
    assert run.eval_losses == {"eval_algebra_loss": ((10, 10.0),), "eval_loss": ((5, 2.5), (10, 2.0))}
    assert len(run.notes) == 1
    assert "trainer_state.json" in run.notes[0]

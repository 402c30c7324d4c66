"""The numbers of a run that was made by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_runs import EVALUATION, INFO, PEAK, STEPS, STEPS_TODAY, long_run, write_run

from corebatch.report import LossSummary, read_run, rows, summarise


def test_totals(tmp_path: Path) -> None:
    summary = summarise(read_run(write_run(tmp_path / "my-run")))
    assert (summary.name, summary.model, summary.steps, summary.last_step) == ("my-run", "small-llama", 2, 2)
    assert (summary.examples_drawn, summary.examples_trained) == (16, 8)
    assert (summary.pool_size, summary.chosen_size) == ((8, 8), (4, 4))
    assert (summary.tokens_scored, summary.tokens_trained) == (2000, 1000)
    assert (summary.labels_scored, summary.labels_trained) == (800, 400)
    assert (summary.phase_seconds, summary.wall_seconds, summary.epochs) == (4.0, 14.5, 1.0)
    assert (summary.scored_per_second, summary.trained_per_second) == (500.0, 250.0)
    assert summary.scored_per_second_in_phase == pytest.approx(2000 / 1.2)
    assert summary.trained_per_second_in_phase == pytest.approx(1000 / 2.6)
    assert (summary.weighted, summary.weight_max, summary.effective_sample_size) == (True, 2.5, 3.25)
    assert (summary.kept, summary.dropped_rows) == (("tiny",), 3)


def test_phases_in_order_with_their_own_means(tmp_path: Path) -> None:
    phases = {phase.name: phase for phase in summarise(read_run(write_run(tmp_path))).phases}
    assert list(phases) == ["score", "select", "train", "custom"]
    assert (phases["score"].mean_ms, phases["score"].median_ms, phases["score"].share) == (600.0, 600.0, 0.3)
    assert (phases["select"].mean_ms, phases["select"].share) == (100.0, 0.025)
    assert phases["train"].share == 0.65
    assert (phases["score"].peak_memory_mb, phases["train"].peak_memory_mb) == (950.0, 1200.0)
    assert phases["custom"].peak_memory_mb is None


def test_padding_utilisation_and_what_was_sent(tmp_path: Path) -> None:
    info = {**INFO, "peak_flops": PEAK}
    summary = summarise(read_run(write_run(tmp_path, STEPS_TODAY, corebatch=info)))
    assert summary.padding_scored == pytest.approx(1 - 2000 / 3000)
    assert summary.padding_trained == pytest.approx(1 - 400 / 500)  # of the step that counts both
    assert summary.mfu == pytest.approx((0.25 * 1.8 + 0.5 * 2.7) / 4.5)
    assert (summary.peak_flops, summary.peak_how) == (1.6e11, "measured matmul float32")
    assert (summary.reuse_mb, summary.scoring) == (12.5, {"full": 1, "proxy": 1})
    assert summary.bytes_sent == {"features": 6 * 2**20, "rows": 2**20}
    assert (summary.rows_moved, summary.token_imbalance) == (1, pytest.approx(0.03))
    shown = dict(rows.totals(summary))
    assert shown["Sent between ranks"] == "7 MB, 3,584 KB a step (features 85.7 %, rows 14.3 %)"
    assert shown["Balance of ranks"].endswith("the busiest rank trained 3.0 % more tokens than the mean")
    assert json.loads(summary.to_json())["scoring"] == {"full": 1, "proxy": 1}


def test_older_records_say_nothing_of_them(tmp_path: Path) -> None:
    summary = summarise(read_run(write_run(tmp_path)))
    assert summary.padding_scored is summary.padding_trained is summary.mfu is summary.peak_flops is None
    assert summary.reuse_mb is summary.rows_moved is None
    assert summary.scoring == summary.bytes_sent == {}


def test_sources_by_number_drawn_with_those_never_drawn(tmp_path: Path) -> None:
    algebra, tiny, never = summarise(read_run(write_run(tmp_path))).sources
    assert (algebra.name, algebra.drawn, algebra.chosen, algebra.kept_steps) == ("algebra", 14, 6, 0)
    assert (algebra.drawn_share, algebra.chosen_share) == (14 / 16, 6 / 8)
    assert algebra.ratio == pytest.approx((6 / 8) / (14 / 16))
    assert (tiny.drawn, tiny.chosen, tiny.ratio, tiny.kept_steps, tiny.small) == (2, 2, 2.0, 1, True)
    assert (never.name, never.drawn, never.ratio, never.examples) == ("never", 0, None, 10)


def test_losses_at_both_ends(tmp_path: Path) -> None:
    summary = summarise(read_run(write_run(tmp_path)))
    assert summary.loss_window == 1
    assert summary.pool_loss == LossSummary(first=2.0, last=1.0)
    assert summary.chosen_loss == LossSummary(first=2.5, last=1.5)
    assert summary.train_loss == LossSummary(first=2.25, last=None)
    steps = long_run(25, ["a", "b"])
    longer = summarise(read_run(write_run(tmp_path, steps)))
    assert longer.loss_window == 3
    assert longer.pool_loss.last == pytest.approx(sum(step["pool_loss"] for step in steps[-3:]) / 3)


def test_a_run_with_little_in_it(tmp_path: Path) -> None:
    steps = [{"step": 1, "pool_examples": 0, "chosen_examples": 0}]
    summary = summarise(read_run(write_run(tmp_path, steps, corebatch=None)))
    assert (summary.tokens_scored, summary.scored_per_second, summary.phase_seconds) == (None, None, None)
    assert (summary.sources, summary.phases, summary.weighted) == ((), (), False)
    assert summary.pool_loss == LossSummary(first=None, last=None)


def test_wall_clock_of_a_resumed_run(tmp_path: Path) -> None:
    steps = [{**STEPS[0], "step": i + 1, "seconds": s} for i, s in enumerate((5.0, 10.0, 2.0, 4.0))]
    assert summarise(read_run(write_run(tmp_path, steps))).wall_seconds == 14.0


def test_json_holds_the_same_and_no_nan(tmp_path: Path) -> None:
    folder = write_run(tmp_path, evaluation=EVALUATION, corebatch={"coreset": {"ridge": float("nan")}})
    summary = summarise(read_run(folder))
    value = json.loads(summary.to_json(), parse_constant=pytest.fail)
    assert value == summary.to_dict()
    assert value["coreset"] == {"ridge": None}
    assert value["tokens_trained"] == 1000
    assert value["after"]["per_source"]["algebra"]["correct"] == 3


def test_losses_of_sources_are_by_tokens_over_the_first_and_the_last_steps(tmp_path: Path) -> None:
    steps = [
        {**STEPS[1], "step": number, "loss_by_source": losses, "loss_tokens": dict.fromkeys(losses, number)}
        for number, losses in enumerate([{"algebra": 4.0}, {"algebra": 1.0, "tiny": 3.0}] + [{}] * 17 + [{"tiny": 2.0}])
        if number or losses
    ]
    steps = [{**step, "step": step["step"] + 1} for step in steps]
    steps[0]["loss_tokens"] = {"algebra": 2.0}
    summary = summarise(read_run(write_run(tmp_path, steps, corebatch={**INFO, "claimed": "the mean over 2 sources"})))
    of = {source.name: source.loss for source in summary.sources}
    assert of["algebra"] == LossSummary(first=(4.0 * 2 + 1.0 * 1) / 3, last=None)
    assert of["tiny"] == LossSummary(first=3.0, last=2.0)
    assert of["never"] is None
    assert [name for name, _ in rows.losses(summary)][-2:] == ["trained, algebra", "trained, tiny"]
    assert dict(rows.totals(summary))["Trained for"] == "the mean over 2 sources"
    assert json.loads(summary.to_json())["claimed"] == "the mean over 2 sources"

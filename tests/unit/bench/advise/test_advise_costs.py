"""What a step and scoring cost: steps of the real trainer that leave the model as it was, told beside what was
predicted."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainingArguments

from corebatch.bench.advise import costs, scoring
from corebatch.bench.advise.shapes import Timed
from corebatch.bench.advise.steps import MOST, make_steps
from corebatch.config.settings import settings_from
from corebatch.config.values import with_keys
from corebatch.mixture import row_lengths
from probes import advised_config, tiny_probe


@pytest.mark.parametrize("coreset", [{"pool_factor": 1}, {"pool_factor": 2, "micro_batches": "plain"}])
def test_steps_are_those_of_the_run_and_leave_no_trace(tmp_path: Path, coreset: dict[str, Any]) -> None:
    probe = tiny_probe(tmp_path, coreset=coreset, lora_r=4, lora_target_modules=["v_proj"])
    before = {name: each.detach().clone() for name, each in probe.model.named_parameters()}
    made = make_steps(probe)
    assert len(made.seconds) == MOST == len(made.dims) == len(made.tokens)
    for parts in zip(made.seconds, made.load, made.train, made.optimizer, strict=True):
        assert 0 < sum(parts[1:]) <= parts[0] * 1.0001
    trained = sum(each.numel() for each in probe.model.parameters() if each.requires_grad)
    assert made.optimizer_bytes >= 2 * 4 * trained, "two moments in float32"
    assert all(torch.equal(before[name], each) for name, each in probe.model.named_parameters())
    assert all(each.grad is None for each in probe.model.parameters())
    assert "forward" not in vars(probe.model)
    if coreset["pool_factor"] == 1:
        lengths = row_lengths(probe.mixture.dataset)[probe.order]
        pieces = [lengths[first : first + 4] for first in range(0, 8 * MOST, 4)]
        assert [dims for step in made.dims for dims in step] == [(4, max(piece)) for piece in pieces]
        assert sum(made.tokens) == lengths[: 8 * MOST].sum()


def test_a_run_that_draws_by_itself_is_measured_in_its_own_order(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path, coreset={"pool_factor": 1, "sampling": {"temperature": 0.5}})
    assert len(make_steps(probe).seconds) == MOST


def test_what_a_run_does_beside_training_is_no_part_of_a_measurement(tmp_path: Path) -> None:
    keys = {"eval_strategy": "steps", "eval_steps": 1, "eval_on_start": True, "load_best_model_at_end": True}
    keys |= {"lr_scheduler_type": "reduce_lr_on_plateau", "save_strategy": "steps", "save_steps": 1, "logging_steps": 1}
    held_out = [{"path": str(tmp_path / "train.jsonl")}]
    probe = tiny_probe(tmp_path, **keys, eval_datasets=held_out, torch_compile=True)
    assert len(make_steps(probe, steps=1).seconds) == 1
    assert (
        "1 steps, not compiled"
        in costs._words(
            probe,
            {"step_seconds": 1.0, "steps": 1, "train_seconds": 1.0, "load_seconds": 0.0, "optimizer_seconds": 0.0},
        )[0]
    )


def test_costs_tell_time_by_phase_and_memory(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    found = {finding.lever: finding for finding in costs.measure(probe)}
    step, memory = found["time of a step"], found["memory"]
    assert set(found) == {"time of a step", "memory"}
    numbers = step.numbers
    assert numbers["step_seconds"] == pytest.approx(probe.known["step"])
    assert numbers["step_seconds"] - numbers["train_seconds"] == pytest.approx(probe.known["rest"])
    assert numbers["predicted_train_seconds"] > 0
    assert "the run's 4 steps take" in step.why
    weights = 4 * sum(each.numel() for each in probe.model.parameters()) / costs.MB
    assert memory.numbers["weights_mb"] == pytest.approx(weights)
    assert memory.numbers["measured_mb"] == pytest.approx(memory.numbers["predicted_mb"], rel=0.5)
    assert memory.numbers["measured_mb"] > 4 * weights


def test_a_step_that_does_not_go_into_the_time_is_told_from_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = tiny_probe(tmp_path)
    costs.measure(probe)
    probe.deadline = float("-inf")
    monkeypatch.setattr(costs, "make_steps", lambda _: pytest.fail("no time for it"))
    step = costs.measure(probe)[0]
    assert step.why.endswith("a whole step does not go into the time: give more --minutes")
    assert step.hurried
    assert probe.known["step"] == step.numbers["told_seconds"]
    probe.known["times, packed False"] = costs.padding.NO_TIME
    assert costs.measure(probe)[0].unmeasured == costs.padding.NO_TIME
    assert [finding.unmeasured for finding in scoring.measure(probe)][:2] == [costs.padding.NO_TIME] * 2


NAMES = {field.name for field in fields(TrainingArguments)}
CHECKPOINTING = "activation_checkpointing" if "activation_checkpointing" in NAMES else "gradient_checkpointing"
"""What the Trainer calls it; transformers 4 has another key."""


def test_checkpointing_that_is_not_needed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tiny_probe(tmp_path, **{CHECKPOINTING: True})
    monkeypatch.setattr(costs, "train_once", lambda probe, batch: 1.5 if switched(probe) else 1.0)
    probe.known |= {"step": 10.0, "rest": 4.0}
    found = costs._checkpointing(probe, (4, 60), (2, 60))[0]
    assert found.factor == pytest.approx(0.4 + 0.6 / 1.5)
    assert found.recommended
    assert found.arm == {CHECKPOINTING: False}
    assert switched(probe)
    monkeypatch.setattr(costs, "device_bytes", lambda _: 1000)
    assert "it is needed" in str(costs._checkpointing(probe, (4, 60), (2, 60))[0].unmeasured)


def test_what_is_measured_of_memory_goes_into_the_time() -> None:
    timed = Timed([(1, 10), (2, 10), (4, 10)], [1.0, 2.0, 4.0])
    assert costs.fitting((8, 10), timed, 100.0) == (8, 10)
    assert costs.fitting((8, 10), timed, 3.5) == (3, 10)
    assert costs.fitting((8, 10), timed, -1.0) == (1, 10)
    assert costs.fitting((8, 10), "not timed", 1.0) == (8, 10)
    assert costs.fitting((8, 10), costs.padding.NO_TIME, 100.0) == (1, 10)


def switched(probe: Any) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in probe.model.modules())


@pytest.mark.parametrize(("coreset", "pool"), [({"pool_factor": 1}, 16), ({"pool_factor": 4, "scoring": "full"}, 32)])
def test_scoring_is_told_beside_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, coreset: dict[str, Any], pool: int
) -> None:
    probe = tiny_probe(tmp_path, coreset=coreset)

    def once(probe: Any, scoring: Any, rows: Any) -> float:
        scoring.score(probe.model, rows)
        return 0.01 * len(rows)

    monkeypatch.setattr(scoring, "_once", once)
    assert scoring.measure(probe)[0].unmeasured == "the time of a step is not known"
    probe.known["step"] = 1.0
    monkeypatch.setattr(scoring, "train_once", lambda probe, batch, *, weights: 0.8 if weights else 1.0)
    values = advised_config(tmp_path, coreset=coreset)
    *found, early = scoring.measure(probe)
    assert "below the number of blocks of the model, 2" in str(early.unmeasured)
    assert len(found) == 2
    for finding in found:
        assert finding.factor == pytest.approx(0.8 + 0.01 * pool if coreset["pool_factor"] == 1 else 1)
        assert settings_from(with_keys(values, finding.arm), "the test").coreset.pool_factor > 1
        assert not finding.recommended
    probe.known["token"] = 1e9
    assert scoring.measure(probe)[0].factor < 1e-9, "a step was made"


def test_what_a_model_cannot_be_scored_by_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    probe.known["step"] = 1.0
    del probe.model.lm_head
    found = scoring.measure(probe)
    assert len(found) == len(scoring.WAYS)
    assert all(finding.unmeasured for finding in found)

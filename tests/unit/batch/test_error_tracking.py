"""The error of the small batch's gradient: what it says is true, and nothing of the run is touched."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from corebatch.batch.error_tracking import ErrorTracking, check_tracking
from corebatch.errors import ConfigError
from corebatch.seeds import seeded
from corebatch.trainer import CoresetConfig, OptimizerInBackward
from training import mixture, run, same, tiny_model, trainer, weights

NOISE = ("noise_signal", "noise_trace", "noise_scale")
TIMED = ("ms", "memory_mb", "mfu", "seconds", "gradient_error", *NOISE)
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
REUSE = {"way": "full", "reuse": True}
CASES = {
    "recommended": ({}, {"dropout": 0.1}, {}),
    "full": ({}, {"dropout": 0.1, "lora": False}, {}),
    "remembered": ({"scoring": "remembered"}, {"kind": "gpt2", "dropout": 0.1, "lora": False}, {}),
    "reused": ({"scoring": REUSE}, {}, CHECKPOINTING),
    "uniform": ({"selector": "random", "loss": "example_mean"}, {"kind": "phi", "dropout": 0.1}, {}),
}
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]


def lines(folder, name="selection.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.parametrize("case", CASES)
def test_training_is_bit_for_bit_what_it_is_without(tmp_path, case):
    coreset, model, settings = CASES[case]
    found = []
    for every in (0, 3):
        folder = tmp_path / str(every)
        made = trainer(
            folder, tiny_model(**model), CoresetConfig(**coreset, track_error=every), max_steps=8, **settings
        )
        run(made)
        record = [{k: v for k, v in line.items() if k not in TIMED} for line in lines(folder)]
        found.append((weights(made), torch.get_rng_state(), record, lines(folder, "chosen.jsonl")))
    plain, tracked = found
    assert same(plain[0], tracked[0])
    assert torch.equal(plain[1], tracked[1])
    assert plain[2:] == tracked[2:]
    assert ["gradient_error" in line for line in lines(tmp_path / "3")] == [step % 3 == 0 for step in range(1, 9)]
    assert not any("gradient_error" in line or "noise_scale" in line for line in lines(tmp_path / "0"))
    assert ["noise_trace" in line for line in lines(tmp_path / "3")] == [step % 3 == 0 for step in range(1, 9)]
    assert ["track" in line["ms"] for line in lines(tmp_path / "3")] == [step % 3 == 0 for step in range(1, 9)]
    (logged,) = [entry for entry in made.state.log_history if entry["step"] == 3 and "loss" in entry]
    (line,) = [line for line in lines(tmp_path / "3") if line["step"] == 3]
    assert logged["gradient_error"] == line["gradient_error"]["error"]
    assert logged["gradient_error_random"] == line["gradient_error"]["random"]["error"]
    assert logged["ms_track"] > 0


class Gradient(TrainerCallback):
    """Keeps the gradient of the first step as training has it."""

    found = None

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if self.found is None:
            self.found = flat([p.grad for p in model.parameters() if p.requires_grad])


def flat(parts):
    return torch.cat([part.detach().flatten().double() for part in parts])


def mean_gradient(model, rows, by_example):
    """Of the plain loss on single rows: no padding, none of corebatch."""
    trained = [p for p in model.parameters() if p.requires_grad]
    total, tokens = 0, 0
    for row in rows:
        batch = {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
        count = int((batch["labels"][:, 1:] != -100).sum())
        loss = model(**batch).loss * (1 if by_example else count)
        total = total + flat(torch.autograd.grad(loss, trained))
        tokens += 1 if by_example else count
    return total / tokens


@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
@pytest.mark.parametrize("selector", ["balanced", "random", "facility_location"])
def test_it_is_the_error_of_the_gradient_that_is_trained(tmp_path, loss, selector):
    coreset = CoresetConfig(selector=selector, loss=loss, track_error=1, pool_factor=4, seed=3)
    data, fresh = mixture(), tiny_model(lora=False, dtype=torch.float64).eval()
    watch = Gradient()
    made = trainer(
        tmp_path,
        tiny_model(lora=False, dtype=torch.float64),
        coreset,
        train_dataset=data,
        max_steps=1,
        max_grad_norm=0.0,
        extra={"callbacks": [watch]},
    )
    run(made)
    (line,), (rows,) = lines(tmp_path), lines(tmp_path, "chosen.jsonl")
    pool = sorted(rows["chosen"] + rows["passed"])
    drawn = torch.randperm(len(pool), generator=seeded(3, 1, "track"))[: len(rows["chosen"])].tolist()
    large, beside = (
        mean_gradient(fresh, [data[i] for i in ids], loss == "example_mean") for ids in (pool, [pool[i] for i in drawn])
    )
    found = line["gradient_error"]
    # transformers' own loss, which uniform selectors train with, is in float32
    bound = {"rel": 1e-4, "abs": 1e-6}
    for told, gradient in ((found, watch.found), (found["random"], beside)):
        assert told["error"] == pytest.approx(float((gradient - large).norm() / large.norm()), **bound)
        assert told["cosine"] == pytest.approx(float(gradient @ large / gradient.norm() / large.norm()), **bound)
        assert told["length"] == pytest.approx(float(gradient.norm() / large.norm()), **bound)
    assert found["norm"] == pytest.approx(float(large.norm()), **bound)


def test_modes_gradients_and_the_random_state_are_left_as_they_were(tmp_path, monkeypatch):
    model, looks = tiny_model(dropout=0.1), []

    def state():
        grads = [p.grad for p in model.parameters()]
        return [m.training for m in model.modules()], grads, torch.get_rng_state().tolist()

    original = ErrorTracking.measure

    def measure(self, *args, **kwargs):
        model.base_model.model.model.layers[0].eval()  # somebody has frozen it
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        before = state()
        found = original(self, *args, **kwargs)
        after = state()
        assert before[0] == after[0]
        assert before[2] == after[2]
        assert all(one is other for one, other in zip(before[1], after[1], strict=True))
        assert all(grad is None or bool((grad == 1).all()) for grad in after[1])
        looks.append(found)
        return found

    monkeypatch.setattr(ErrorTracking, "measure", measure)
    run(trainer(tmp_path, model, CoresetConfig(track_error=1), max_steps=2))
    assert len(looks) == 2


def test_all_rows_chosen_have_no_error(tmp_path):
    coreset = CoresetConfig(selector="random", track_error=1, pool_factor=2)
    run(trainer(tmp_path, None, coreset, train_dataset=mixture(1), max_steps=1))
    (line,) = lines(tmp_path)
    assert line["pool_examples"] == line["chosen_examples"] == 1
    assert line["gradient_error"]["error"] == pytest.approx(0, abs=1e-5)
    assert line["gradient_error"]["cosine"] == pytest.approx(1)


def test_a_resumed_run_tracks_the_same(tmp_path):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3}
    run(trainer(tmp_path, None, CoresetConfig(track_error=2), **settings))
    whole = [line.get("gradient_error") for line in lines(tmp_path)]
    run(
        trainer(tmp_path, None, CoresetConfig(track_error=2), **settings),
        resume_from_checkpoint=f"{tmp_path}/checkpoint-3",
    )
    assert [line.get("gradient_error") for line in lines(tmp_path)] == whole
    # what is only measured may be switched off on the way
    run(trainer(tmp_path, None, CoresetConfig(), **settings), resume_from_checkpoint=f"{tmp_path}/checkpoint-3")
    assert [line.get("gradient_error") for line in lines(tmp_path)] == [*whole[:3], None, None, None]
    assert all(math.isfinite(found["error"]) for found in whole if found)


def test_it_is_refused_where_gradients_are_not_whole(tmp_path):
    settings = {"gradient_accumulation_steps": 1, "max_grad_norm": 0.0}
    given = {"optimizer_cls_and_kwargs": (OptimizerInBackward, {"optimizer": torch.optim.AdamW, "lr": 1e-3})}
    with pytest.raises(ConfigError, match=r"track_error 5 needs whole gradients .* inside backward"):
        run(trainer(tmp_path, None, CoresetConfig(track_error=5), extra=given, **settings))
    with pytest.raises(ConfigError, match=r"one process or DDP.* Found FSDP"):
        check_tracking(2, in_backward=False, sharded="FSDP")
    check_tracking(0, in_backward=True, sharded="DEEPSPEED")


def test_a_hook_that_comes_late_is_refused_at_the_first_step(tmp_path):
    model = tiny_model(lora=False)
    made = trainer(tmp_path, model, CoresetConfig(track_error=1), gradient_accumulation_steps=1)
    next(model.parameters()).register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.raises(ConfigError, match="track_error 1 needs whole gradients"):
        run(made)
    assert not (tmp_path / "selection.jsonl").exists()

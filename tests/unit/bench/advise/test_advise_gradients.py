"""Advice on the noise of the gradient: by exact gradients, by source, at checkpoints, and what cannot be told."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from corebatch.bench.advise import gradients, row_gradients
from corebatch.bench.advise.engine import AdvicePart, measure_all, sentence
from corebatch.bench.advise.gradients import LEVER, OVER_RUN, SMALLER, MeasuredScale, load_trained_weights, measure
from corebatch.bench.gradients.estimate import per_example_gradients
from corebatch.config.settings import settings_from
from corebatch.config.values import with_keys
from corebatch.errors import InputError
from corebatch.noise import noise_of_rows
from models import tiny_model
from probes import advised_config, tiny_probe


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_gradients, "MOST_ROWS", 64)
    monkeypatch.setattr(row_gradients, "MOST_STEPS", 3)


def checkpoints(folder: Path, probe: Any, factors: tuple[float, ...]) -> list[Path]:
    """Of the probe's model, all weights times a factor."""
    made = []
    state = {name: value.clone() for name, value in probe.model.state_dict().items()}
    for step, factor in enumerate(factors):
        with torch.no_grad():
            for name, value in probe.model.state_dict().items():
                value.copy_(state[name] * factor)
        made.append(folder / f"checkpoint-{step}")
        probe.model.save_pretrained(made[-1])
    probe.model.load_state_dict(state)
    return made


def test_the_scale_is_that_of_gradients_made_one_by_one(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    before = {name: value.clone() for name, value in probe.model.state_dict().items()}
    found, _ = measure_all(probe, {"noise": AdvicePart(measure)})
    now = found[0]
    assert now.lever == LEVER
    rows = row_gradients.row_gradients(probe)
    with row_gradients.weights_kept(probe.model, rows.state):
        exact = per_example_gradients(rows.snapshot).double()
    assert rows.snapshot.second_moments is not None
    scaled = exact / (rows.snapshot.second_moments.sqrt() + 1e-8)
    tokens = rows.population.tokens.double()
    for gradient, told in ((scaled, now.numbers["adam"]["scale"]), (exact, now.numbers["noise_scale"])):
        expected = noise_of_rows(gradient @ gradient.T, tokens).scale
        assert told == (pytest.approx(expected, rel=1e-3) if math.isfinite(expected) else None)
        for name, scale in now.numbers["sources"].items() if gradient is exact else ():
            own = torch.tensor([rows.population.table.names[s] == name for s in rows.population.sources.tolist()])
            alone = noise_of_rows(gradient[own] @ gradient[own].T, tokens[own]).scale
            assert scale["scale"] == (pytest.approx(alone, rel=1e-3) if math.isfinite(alone) else None)
    assert len(now.numbers["sources"]) >= 2
    assert now.numbers["noise_scale_low"] < (now.numbers["noise_scale"] or math.inf)
    assert now.numbers["batch"] == 8
    assert "of 64 rows after 3 steps; a step has 8;" in now.why
    assert all(torch.equal(value, probe.model.state_dict()[name]) for name, value in before.items())
    assert [one.lever for one in found] == [LEVER, SMALLER]


@pytest.mark.parametrize(
    ("accumulation", "high", "optim", "expected"),
    [
        (16, 5.0, "adamw_torch", {"gradient_accumulation_steps": 2, "learning_rate": 1.77e-3}),
        (16, 20.0, "sgd", {"gradient_accumulation_steps": 8, "learning_rate": 2.5e-3}),
        (6, 5.0, "adamw_torch", {"gradient_accumulation_steps": 3, "learning_rate": 3.54e-3}),
        (16, 40.0, "adamw_torch", {}),
        (16, math.inf, "adamw_torch", {}),
        (1, 1.0, "adamw_torch", {}),
    ],
)
def test_a_batch_above_the_scale_is_made_smaller(
    tmp_path: Path, accumulation: int, high: float, optim: str, expected: dict[str, Any]
) -> None:
    args = SimpleNamespace(
        gradient_accumulation_steps=accumulation, per_device_train_batch_size=4, learning_rate=5e-3, optim=optim
    )
    probe: Any = SimpleNamespace(args=args, batch_size=4 * accumulation)
    found = gradients._smaller(probe, MeasuredScale(min(4.0, 0.8 * high), 0.7, high))
    assert found.arm == expected
    assert not found.recommended
    if expected:
        batch, smaller = 4 * accumulation, 4 * expected["gradient_accumulation_steps"]
        assert found.factor == pytest.approx((1 + smaller / 4) / (1 + batch / 4))
        assert found.low < found.factor < found.high < 1  # type: ignore[operator]
        made = settings_from(with_keys(advised_config(tmp_path), found.arm), "advice").training_arguments()
        assert made.gradient_accumulation_steps == expected["gradient_accumulation_steps"]
    else:
        assert found.factor is None
        assert "it stays" in found.why


def test_it_is_told_at_checkpoints(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    probe.checkpoints = checkpoints(tmp_path, probe, (1.0, 0.5))
    found = {one.lever: one for one in measure(probe)}[OVER_RUN]
    rows = row_gradients.row_gradients(probe)
    exact = per_example_gradients(rows.snapshot).double()  # with the weights that it began with, checkpoint-0's
    expected = noise_of_rows(exact @ exact.T, rows.population.tokens.double())
    scale = found.numbers["checkpoint-0"]["scale"]
    assert scale == (pytest.approx(expected.scale, rel=1e-3) if expected.signal > 0 else None)
    assert found.numbers["checkpoint-1"] != found.numbers["checkpoint-0"]
    assert found.unmeasured is None


def test_checkpoints_of_another_model_are_told_and_the_others_measured(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    good = checkpoints(tmp_path, probe, (1.0,))
    other, empty, damaged = (tmp_path / f"checkpoint-{n}" for n in (7, 8, 9))
    tiny_model("gpt2").save_pretrained(other)
    for folder in (empty, damaged):
        folder.mkdir()
    (damaged / "model.safetensors").write_bytes(b"no such thing")
    probe.checkpoints = [*good, other, empty, damaged]
    found = {one.lever: one for one in measure(probe)}[OVER_RUN]
    assert set(found.numbers) == {"checkpoint-0"}
    for words in (
        "checkpoint-7: it is of another model: found no model.embed_tokens.weight",
        "checkpoint-8: it has no weights of a model in safetensors",
        "checkpoint-9: its weights cannot be read",
    ):
        assert words in found.why
    probe.checkpoints = [other]
    found = {one.lever: one for one in measure(probe)}[OVER_RUN]
    assert found.unmeasured is not None
    assert "another model" in found.unmeasured


def test_adapters_of_a_checkpoint_are_loaded(tmp_path: Path) -> None:
    config = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["v_proj"]}
    model, trained = (get_peft_model(tiny_model("llama"), LoraConfig(**config)) for _ in range(2))
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(float(parameter.requires_grad))
    trained.save_pretrained(tmp_path / "checkpoint-1")
    load_trained_weights(model, tmp_path / "checkpoint-1")
    for (name, value), (_, expected) in zip(model.named_parameters(), trained.named_parameters(), strict=True):
        assert torch.equal(value, expected), name
    wider = get_peft_model(tiny_model("llama"), LoraConfig(**{**config, "r": 4}))
    with pytest.raises(InputError, match=r"of another model: found .*lora_A.*\[2, "):
        load_trained_weights(wider, tmp_path / "checkpoint-1")
    with pytest.raises(InputError, match="cannot be read"):
        load_trained_weights(wider, tmp_path / "checkpoint-2")


def test_too_few_rows_or_too_little_time_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    probe = tiny_probe(tmp_path)
    probe.checkpoints = checkpoints(tmp_path, probe, (1.0,))
    row_gradients.row_gradients(probe)
    probe.deadline = 0.0
    assert "no time was left" in str({one.lever: one for one in measure(probe)}[OVER_RUN].unmeasured)
    (tmp_path / "again").mkdir()
    probe = tiny_probe(tmp_path / "again")
    probe.checkpoints = [tmp_path / "checkpoint-0"]
    probe.sample = probe.sample.select(range(20))
    found = measure(probe)
    assert [one.lever for one in found] == [LEVER, OVER_RUN]
    assert all("32 rows at least. Found 20" in str(one.unmeasured) for one in found)


def test_the_closing_sentence_tells_it(tmp_path: Path) -> None:
    found = measure(tiny_probe(tmp_path))
    scale = found[0].numbers["noise_scale"]
    assert scale is not None
    side = "above" if scale < 8 else "below"
    assert f"batch of 8 is {side} the noise scale of {scale:.3g} rows" in sentence(found, [])

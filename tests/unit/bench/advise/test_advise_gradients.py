"""Advice on the noise of the gradient: by exact gradients, by source, at checkpoints, and what cannot be told."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from corebatch.bench.advise import row_gradients
from corebatch.bench.advise.batch_size import LEVER as ANOTHER
from corebatch.bench.advise.checkpoints import check_model, load_trained_weights
from corebatch.bench.advise.engine import AdvicePart, measure_all, sentence
from corebatch.bench.advise.gradients import LEVER, OVER_RUN, measure
from corebatch.bench.gradients.estimate import per_example_gradients
from corebatch.errors import InputError
from corebatch.noise import noise_of_rows
from corebatch.record.checkpoint import MARKER
from corebatch.record.model_identity import describe_model
from models import tiny_model
from probes import tiny_probe


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
    assert "told from 64 rows' gradients after 3 steps; a step has 8" in now.why
    assert all(torch.equal(value, probe.model.state_dict()[name]) for name, value in before.items())
    assert [one.lever for one in found] == [LEVER, ANOTHER]


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
        "checkpoint-7: it is of another model: model.config.",
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
    verdict = found[0].numbers["verdict"]
    assert verdict.startswith("A batch of 8 is ")
    assert sentence(found, []).startswith(verdict)


def test_a_gradient_that_is_not_scaled_has_one_scale(tmp_path: Path) -> None:
    now = measure(tiny_probe(tmp_path, optim="sgd"))[0]
    assert now.numbers["adam"] is None
    assert "Adam" not in now.why + now.numbers["verdict"]


def test_a_step_has_fewer_rows_where_time_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_gradients, "FEWEST_ROWS", 8)
    monkeypatch.setattr(row_gradients, "_seconds_of_a_row", lambda probe: 10.0)
    found = measure(tiny_probe(tmp_path))
    assert re.search(r"told from 8 rows' gradients after \d+ steps of [1-7] rows; a step has 8", found[0].why)
    short = tiny_probe(tmp_path, seconds=100.0)
    assert measure(short)[0].hurried
    assert short.known["seconds of a row"] == 10.0


def test_a_loss_that_is_another_one_is_told(tmp_path: Path) -> None:
    found = measure(tiny_probe(tmp_path, label_smoothing_factor=0.1))
    assert "label_smoothing_factor is part of the loss" in str(found[0].unmeasured)


# ---- whose checkpoints they are --------------------------------------------------------------------------------------


def test_checkpoints_of_the_same_shapes_that_are_of_another_model_are_told(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    (good,) = checkpoints(tmp_path, probe, (1.0,))
    far = tmp_path / "checkpoint-4"
    other = copy.deepcopy(probe.model)
    with torch.no_grad():
        for number, parameter in enumerate(other.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(number))
    other.save_pretrained(far)
    other.config.rms_norm_eps = 0.25
    other.save_pretrained(tmp_path / "checkpoint-5")
    probe.checkpoints = [good, far, tmp_path / "checkpoint-5"]
    found = {one.lever: one for one in measure(probe)}[OVER_RUN]
    assert set(found.numbers) == {"checkpoint-0", "checkpoint-4"}
    assert "far from the model's weights, is it of the same model: checkpoint-4 (cosine " in found.why
    assert "checkpoint-5: it is of another model: model.config.rms_norm_eps was 0.25 and is 1e-06" in found.why


def test_adapters_of_another_base_or_scale_are_told(tmp_path: Path) -> None:
    def adapted(**keys: Any) -> Any:
        config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["v_proj"], **keys)
        made = get_peft_model(tiny_model("llama"), config)
        made.peft_config["default"].base_model_name_or_path = "models/two"
        return made

    model = adapted()
    for name in ("models/two", "elsewhere/two", "models/one"):
        model.peft_config["default"].base_model_name_or_path = name
        model.peft_config["default"].save_pretrained(str(tmp_path / name))
        model.peft_config["default"].base_model_name_or_path = "models/two"
    check_model(tmp_path / "models" / "two", model, None)
    check_model(tmp_path / "elsewhere" / "two", model, None)
    with pytest.raises(InputError, match="another model: adapters of one, where the config has two"):
        check_model(tmp_path / "models" / "one", model, None)
    with pytest.raises(InputError, match="lora_alpha was 8 and is 32"):
        check_model(tmp_path / "models" / "two", adapted(lora_alpha=32), None)


def test_the_base_model_of_our_own_checkpoints_is_known_by_its_weights(tmp_path: Path) -> None:
    config = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["v_proj"]}
    model = get_peft_model(tiny_model("llama"), LoraConfig(**config))
    model.save_pretrained(tmp_path)
    (tmp_path / MARKER).write_text(json.dumps({"run": {"model": describe_model(model)}}))
    check_model(tmp_path, model, None)
    with torch.no_grad():
        next(p for p in model.parameters() if not p.requires_grad).add_(1e-3)
    with pytest.raises(InputError, match="another base model of the same shapes"):
        check_model(tmp_path, model, None)

"""The noise scale that a run records: of its own gradients, and those of the population that it draws from."""

import json

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from corebatch.errors import CheckpointError, ConfigError
from corebatch.model.weighted_loss import weighted_loss
from corebatch.noise import RunningNoise, Sketches, noise_of_parts, noise_of_rows, noise_of_sums, within_sorted
from corebatch.trainer import CoresetConfig, OptimizerInBackward
from corebatch.trainer.noise import NoiseMeter
from corebatch.trainer.parts import FURTHER
from training import Collator, mixture, run, same, tiny_model, trainer, weights

RANDOM = {"selector": "random", "micro_batches": "plain"}
WAYS = {
    "plain": {"pool_factor": 1},
    "sorted": {"pool_factor": 1, "micro_batches": "positions"},
    "in_parts": {"pool_factor": 1, "micro_batches": {"by": "positions", "most": 24}},
    "examples": {"pool_factor": 1, "objective": "examples"},
    "sources": {"pool_factor": 1, "objective": "sources"},
    "random": RANDOM,
    "importance": {"selector": "importance", "scorer": "tokens"},
    "packed": {"selector": "importance", "scorer": "tokens", "padding_free": True},
}


def lines(folder):
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


def gradient(model, batch):
    """Of sum_i weight_i L_i, and sum_i weight_i l_i."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    given = batch.get("loss_weights", torch.ones(len(batch["labels"])))
    each = given[:, None] if given.ndim == 1 else given
    inputs = {key: value for key, value in batch.items() if not key.startswith("corebatch") and key != "loss_weights"}
    loss, _ = weighted_loss(model, model, inputs, given)
    extent = float((each * (batch["labels"] != -100))[:, 1:].sum())
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]).double(), extent


def within_of(model, batches, parts, shares):
    """What sorted micro-batches leave out, by sketches of each parameter's part of their gradients."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    sketches = Sketches(parameters)
    order = sorted(range(len(batches)), key=lambda part: batches[part]["input_ids"].shape[1])
    order = [part for part in order if shares[part] > 0]
    rows = [
        torch.cat([
            sketches.of(own.view_as(p).float()).double()
            for own, p in zip(part.split([p.numel() for p in parameters]), parameters, strict=True)
        ])
        for part in parts[order]
    ]  # fmt: skip
    sketched = torch.stack(rows)
    return float(within_sorted(sketched @ sketched.T, shares[order]))


@pytest.mark.parametrize("way", WAYS)
def test_it_is_that_of_the_micro_batches_run_by_themselves(tmp_path, monkeypatch, way):
    made, begin = [], NoiseMeter.begin

    def watched(self, batches, rows):
        copies = [{k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()} for batch in batches]
        made.append((copies, rows, float(self._trainer._run.weights._items)))
        begin(self, batches, rows)

    monkeypatch.setattr(NoiseMeter, "begin", watched)
    settings = {"gradient_accumulation_steps": 8, "max_steps": 3, "learning_rate": 0.0, "max_grad_norm": 0.01}
    coreset = CoresetConfig(**WAYS[way], noise_scale=2 if way == "random" else True)
    ours = run(trainer(tmp_path, tiny_model(lora=False), coreset, train_dataset=mixture(128), **settings))
    running = RunningNoise()
    for number, ((batches, rows, divisor), line) in enumerate(zip(made, lines(tmp_path), strict=True), 1):
        if way == "random" and number % 2:
            assert "noise_scale" not in line
            continue
        parts, extents = zip(*(gradient(ours.model, batch) for batch in batches), strict=True)
        whole = torch.stack(parts).sum(dim=0)
        squares = [float((part / divisor).square().sum()) for part in parts]
        shares, squared = [each / sum(extents) for each in extents], float((whole / divisor).square().sum())
        if coreset.cut.by != "plain":
            within = within_of(ours.model, batches, torch.stack(parts) / divisor, torch.tensor(shares))
            expected = noise_of_sums(sum(squares) - within, 0.0, squared, rows)
        else:
            expected = noise_of_parts(squares, shares, squared, rows)
        running.update(expected)
        assert line["noise_signal"] == pytest.approx(expected.signal, rel=2e-3, abs=1e-4 * expected.trace)
        assert line["noise_trace"] == pytest.approx(expected.trace, rel=1e-3)
        assert line["noise_scale"] == (pytest.approx(running.scale, rel=5e-3) if running.noise.signal > 0 else None)
        assert rows == line["chosen_examples"]
    logged = [entry["noise/scale"] for entry in ours.state.log_history if "noise/scale" in entry]
    assert logged == [line["noise_scale"] for line in lines(tmp_path) if line.get("noise_scale")]
    if way == "in_parts":
        assert max(len(batches) for batches, *_ in made) > 8
        assert all(FURTHER not in batch for batches, *_ in made for batch in batches)


def alike(count=96):
    """Rows that teach much of the same: of few tokens."""
    few = {key: [[each if each == -100 else 3 + each % 5 for each in row] for row in mixture(count)[key]]
           for key in ("input_ids", "labels")}  # fmt: skip
    return Dataset.from_dict({**few, "source": mixture(count)["source"]})


def truth(model, data):
    rows = [gradient(model, Collator()([row])) for row in data]
    gradients = torch.stack([each for each, _ in rows])
    return noise_of_rows(gradients @ gradients.T, torch.tensor([size for _, size in rows]))


def found_over_steps(folder):
    """Means of signal and trace, and their standard errors."""
    found = torch.tensor([(line["noise_signal"], line["noise_trace"]) for line in lines(folder)])
    return found.mean(dim=0).tolist(), (found.std(dim=0) / len(found) ** 0.5).tolist()


@pytest.mark.parametrize("way", ["plain", "random", "importance"])
def test_over_steps_it_is_that_of_the_population(tmp_path, way):
    data, model = alike(), tiny_model(lora=False)
    expected = truth(model, data)
    settings = {"gradient_accumulation_steps": 4, "max_steps": 60, "train_dataset": data}
    coreset = CoresetConfig(**{**WAYS[way], "micro_batches": "plain"}, noise_scale=True)
    run(trainer(tmp_path, model, coreset, learning_rate=0.0, **settings))
    (signal, trace), (error, other) = found_over_steps(tmp_path)
    assert abs(signal - expected.signal) < 4 * error
    assert error < 0.1 * expected.signal
    if way != "importance":  # whose rows have another variance on purpose
        assert abs(trace - expected.trace) < 4 * other


def test_where_rows_are_chosen_jointly_those_that_are_drawn_tell_it(tmp_path):
    data, model = alike(), tiny_model(lora=False)
    expected = truth(model, data)
    coreset = CoresetConfig(track_error=1, noise_scale=True)
    settings = {"gradient_accumulation_steps": 3, "max_steps": 20, "logging_steps": 10, "train_dataset": data}
    made = run(trainer(tmp_path, model, coreset, learning_rate=0.0, **settings))
    (signal, trace), (error, other) = found_over_steps(tmp_path)
    assert abs(signal - expected.signal) < 4 * error
    assert abs(trace - expected.trace) < 4 * other
    assert error < 0.15 * expected.signal
    assert "rows drawn" in json.loads((tmp_path / "corebatch.json").read_text())["noise"]
    assert made.state.log_history[-2]["noise/scale"] == lines(tmp_path)[-1]["noise_scale"]


@pytest.mark.parametrize("settings", [{}, {"bf16": True}])
def test_with_nothing_else_the_update_is_the_plain_trainer_s_bit_for_bit(tmp_path, settings):
    ended = []
    for plain in (True, False):
        model, coreset = tiny_model(dropout=0.1), CoresetConfig(pool_factor=1, noise_scale=1)
        ended.append(weights(run(trainer(tmp_path / str(plain), model, coreset, plain=plain, **settings))))
    assert same(*ended)
    assert all(line["noise_trace"] > 0 for line in lines(tmp_path / "False"))


class Looks(TrainerCallback):
    """Takes gradients of its own before a step is trained."""

    def on_step_begin(self, args, state, control, model=None, **_):
        gradient(model, Collator()([mixture()[0]]))


def test_gradients_that_a_callback_takes_are_not_counted(tmp_path):
    found = []
    for callbacks in ([], [Looks()]):
        folder = tmp_path / str(len(callbacks))
        coreset = CoresetConfig(pool_factor=1, noise_scale=1)
        run(trainer(folder, tiny_model(), coreset, max_steps=2, extra={"callbacks": callbacks}))
        found.append([(line["noise_signal"], line["noise_trace"]) for line in lines(folder)])
    assert found[0] == found[1]
    assert None not in found[0][0]


def test_a_resumed_run_goes_on_with_the_average(tmp_path):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    coreset = CoresetConfig(pool_factor=1, noise_scale=2)
    run(trainer(tmp_path, tiny_model(), coreset, **settings))
    whole = [line.get("noise_scale") for line in lines(tmp_path)]
    (tmp_path / "checkpoint-8").rename(tmp_path / "later")
    run(trainer(tmp_path, tiny_model(), coreset, **settings), resume_from_checkpoint=True)
    assert [line.get("noise_scale") for line in lines(tmp_path)] == whole
    assert sum(scale is not None for scale in whole) >= 2


@pytest.mark.parametrize(
    ("coreset", "settings", "found"),
    [
        ({}, {}, "feedback 0.99, which chooses rows jointly.*track_error"),
        ({"selector": "cube", "scoring": "full"}, {}, "selector cube"),
        ({**RANDOM, "small_sources": "auto"}, {}, "small_sources"),
        ({**RANDOM, "replay": {"rare": 0.2}}, {}, "replay"),
        ({"selector": "importance", "scorer": "tokens", "selector_options": {"calibrate": True}}, {}, "importance"),
        ({"pool_factor": 1}, {"gradient_accumulation_steps": 1}, "1 micro-batches a step, of which it takes 2"),
        ({"pool_factor": 1, "micro_batches": "length"}, {}, "2 micro-batches of a rank, sorted by length.* 8"),
        ({"pool_factor": 1, "by_length": {}}, {}, "by_length"),
        (
            {"pool_factor": 1},
            {"extra": {"optimizer_cls_and_kwargs": (OptimizerInBackward, {"lr": 1e-3})}},
            "OptimizerInBackward",
        ),
    ],
)  # fmt: skip
def test_what_it_cannot_be_told_of_is_an_error(tmp_path, coreset, settings, found):
    with pytest.raises(ConfigError, match=found):
        run(trainer(tmp_path, coreset=CoresetConfig(**coreset, noise_scale=True), **settings))


@pytest.mark.parametrize("value", ["always", 0, -1, 1.5, None])
def test_a_bad_setting_is_an_error(value):
    with pytest.raises(ConfigError, match="noise_scale should be"):
        CoresetConfig(noise_scale=value)


def test_left_to_us_it_is_measured_where_it_can_be(tmp_path):
    for name, coreset, there in (("a", {}, False), ("b", {**RANDOM}, True), ("c", {"noise_scale": False}, False)):
        made = run(trainer(tmp_path / name, coreset=CoresetConfig(**coreset), max_steps=10))
        assert ["noise_scale" in line for line in lines(tmp_path / name)] == [False] * 9 + [there]
        told = json.loads((tmp_path / name / "corebatch.json").read_text())["noise"]
        assert told.startswith("measured") == there
        assert ("jointly (coreset.track_error tells it" in told) == (name == "a")
        assert not made._run.noise._handles


def drawn(folder):
    return [line.get("drawn_at_random") for line in lines(folder)]


@pytest.mark.parametrize(
    "coreset", [{}, {"selector": "cube", "scoring": "full"}, {"feedback": 0.5, "objective": "sources"}]
)
def test_every_so_many_th_step_s_rows_are_drawn_at_random_where_others_are_chosen_jointly(tmp_path, coreset):
    made = run(trainer(tmp_path, coreset=CoresetConfig(**coreset, micro_batches="plain", noise_scale=3), max_steps=7))
    assert drawn(tmp_path) == [False, False, True, False, False, True, False]
    for line in lines(tmp_path):
        assert (line.get("noise_trace") is not None) == line["drawn_at_random"]
        assert line["chosen_examples"] == line["pool_examples"] / 2
        if line["drawn_at_random"]:
            assert line["weight_max"] == 1
    told = "measured at every step whose number 3 divides, whose rows are drawn at random"
    assert json.loads((tmp_path / "corebatch.json").read_text())["noise"] == told
    assert made._run.noise.running.noise.trace > 0


def test_over_steps_the_noise_of_such_steps_is_that_of_the_population(tmp_path):
    data, model = alike(), tiny_model(lora=False)
    expected = truth(model, data)
    settings = {"gradient_accumulation_steps": 4, "max_steps": 80, "train_dataset": data, "logging_steps": 20}
    run(trainer(tmp_path, model, CoresetConfig(micro_batches="plain", noise_scale=2), learning_rate=0.0, **settings))
    found = torch.tensor(
        [(line["noise_signal"], line["noise_trace"]) for line in lines(tmp_path) if line["drawn_at_random"]]
    )
    (signal, trace), (error, other) = found.mean(dim=0), found.std(dim=0) / len(found) ** 0.5
    assert abs(signal - expected.signal) < 4 * error
    assert abs(trace - expected.trace) < 4 * other
    assert error < 0.15 * expected.signal


def test_a_run_with_such_steps_resumes_bit_for_bit_and_not_with_another_number(tmp_path):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    coreset = CoresetConfig(micro_batches="plain", noise_scale=3)
    whole = weights(run(trainer(tmp_path, tiny_model(), coreset, **settings)))
    before = [(line["chosen"], line["carried"], line.get("noise_scale")) for line in lines(tmp_path)]
    (tmp_path / "checkpoint-8").rename(tmp_path / "later")
    for other in (2, "auto"):
        changed = trainer(tmp_path, tiny_model(), coreset.changed(noise_scale=other), **settings)
        with pytest.raises(CheckpointError, match=r"at random at every so-many-th step, 3 .*would choose otherwise"):
            run(changed, resume_from_checkpoint=True)
    assert same(weights(run(trainer(tmp_path, tiny_model(), coreset, **settings), resume_from_checkpoint=True)), whole)
    assert [(line["chosen"], line["carried"], line.get("noise_scale")) for line in lines(tmp_path)] == before


@pytest.mark.parametrize(
    ("coreset", "settings", "found"),
    [
        ({"noise_scale": True}, {}, "noise_scale true .*feedback 0.99.* a number of steps from 2 on"),
        ({"noise_scale": 1}, {}, "noise_scale 1 .*feedback 0.99.* a number of steps from 2 on"),
        ({"small_sources": "auto"}, {}, r"small_sources, which chooses rows jointly .*Leave it out\.$"),
        ({"replay": {"rare": 0.2}}, {}, r"replay, which chooses rows jointly .*Leave it out\.$"),
        ({"scoring": "remembered"}, {}, r"scoring remembered, which .*Leave it out\.$"),
        ({"scoring": {"way": "two_phase"}, "pool_factor": 4}, {}, r"scoring two_phase, which .*Leave it out\.$"),
        ({"scoring": "none", "selector": "cube"}, {}, r"selector cube, which .*Leave it out\.$"),
        ({"scorer": "loss", "selector": "hard"}, {}, r"selector hard, which .*Leave it out\.$"),
        ({}, {"gradient_accumulation_steps": 1}, r"1 micro-batches a step, of which it takes 2\. Leave it out\.$"),
        ({"micro_batches": "length"}, {}, r"2 micro-batches of a rank, sorted by length.*Leave it out\.$"),
    ],
)  # fmt: skip
def test_where_no_step_can_have_rows_at_random_is_an_error(tmp_path, coreset, settings, found):
    made = CoresetConfig(**{"noise_scale": 3, "micro_batches": "plain", **coreset})
    with pytest.raises(ConfigError, match=found):
        trainer(tmp_path, coreset=made, **settings)


def test_beside_the_rows_that_are_drawn_no_step_is_random(tmp_path):
    run(trainer(tmp_path, coreset=CoresetConfig(track_error=2, noise_scale=2), max_steps=2))
    assert drawn(tmp_path) == [None, None]
    assert lines(tmp_path)[1]["noise_trace"] is not None

"""A batch that grows, through the Trainer: the rows, the update, the learning rate, the end, and going on."""

import json
import math
import shutil
from itertools import chain

import pytest
import torch
from datasets import Dataset
from transformers import TrainerCallback

from corebatch.errors import CheckpointError, ConfigError
from corebatch.noise import Noise, RunningNoise
from corebatch.trainer import CoresetConfig, OptimizerInBackward
from corebatch.trainer.noise import NoiseMeter
from training import (
    BY_LENGTH,
    Collator,
    mixture,
    resumed_at,
    run,
    same,
    tiny_model,
    trainer,
    weights,
)

RAMP = {"ramp": {"most": 4, "until": 0.5}}
EPOCHS = {"max_steps": -1, "num_train_epochs": 2}


def coreset(budget=RAMP, **settings):
    return CoresetConfig(**{"budget": budget, "pool_factor": 1, **settings})


def lines(folder, name="selection.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def untimed(folder):
    return [{k: v for k, v in line.items() if k not in ("ms", "memory_mb", "mfu", "seconds")} for line in lines(folder)]


class Told(TrainerCallback):
    """What other callbacks see."""

    def __init__(self):
        self.epochs, self.ends, self.rates, self.gradients = [], [], [], []

    def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **_):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})

    def on_step_end(self, args, state, control, **_):
        self.epochs.append(state.epoch)

    def on_epoch_end(self, args, state, control, **_):
        self.ends.append(state.global_step)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pool_factor": 2},
        {"pool_factor": 3, "selector": "random", "micro_batches": "plain"},
        {"micro_batches": {"by": "positions", "most": 40}},
        {"objective": "sources", "sampling": {"shares": {"rare": 0.3}}},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
@pytest.mark.parametrize("count", [96, 70])
def test_a_run_draws_the_rows_of_its_steps_in_fewer(tmp_path, settings, count):
    made = trainer(tmp_path, tiny_model(), coreset(**settings), train_dataset=mixture(count), **EPOCHS)
    told = Told()
    made.add_callback(told)
    run(made)
    found, factor = lines(tmp_path), settings.get("pool_factor", 1)
    drawn = [sorted(line["chosen"] + line["passed"]) for line in lines(tmp_path, "chosen.jsonl")]
    steps = 2 * math.ceil(count / (8 * factor))
    assert len(found) < steps
    assert made.state.global_step == made.state.max_steps == len(found)
    if "sampling" not in settings:
        assert sorted(chain(*drawn)) == sorted([*range(count), *range(count)])
        middle = [line["epoch"] for line in found].index(1.0) + 1
        assert sorted(chain(*drawn[:middle])) == list(range(count))
        assert told.ends == [middle, len(found)]
    sizes = [line["chosen_examples"] for line in found]
    assert sizes[0] == 8
    assert 16 < max(sizes) <= 32
    assert told.epochs == sorted(told.epochs)
    assert told.epochs[-1] == 2
    logged = [line for line in made.state.log_history if "learning_rate" in line]
    assert [line["learning_rate"] for line in logged] == pytest.approx(told.rates)
    assert [line["chosen_examples"] for line in logged] == sizes
    # linear to 0 over the rows, told at whole configured steps
    at = [0, *(math.floor(epoch * steps / 2 + 1e-9) for epoch in told.epochs[:-1])]
    assert told.rates == pytest.approx([5e-3 * (1 - place / steps) for place in at], abs=5e-3 / steps)
    assert made.lr_scheduler.last_epoch == steps


@pytest.mark.parametrize("settings", [{}, {"micro_batches": "positions"}, {"loss": "example_mean"}])
def test_the_update_is_that_of_all_rows_of_the_step(tmp_path, settings):
    """Of M_t rows, in float64, as one batch has it."""
    model = tiny_model(lora=False, dtype=torch.float64)
    made = trainer(tmp_path, model, coreset(**settings), max_grad_norm=0, optim="sgd", learning_rate=0.0, max_steps=9)
    told = Told()
    made.add_callback(told)
    run(made)
    rows = [line["chosen"] for line in lines(tmp_path, "chosen.jsonl")]
    assert len(rows[-2]) > 16
    for chosen, found in zip(rows, told.gradients, strict=True):
        model.zero_grad()
        total, parts = 0.0, 0
        for number in chosen:
            batch = Collator()([made.train_dataset[number]])
            tokens = int((batch["labels"][0, 1:] != -100).sum())
            unit = tokens if "loss" in settings else 1
            total, parts = total + model(**batch).loss * tokens / unit, parts + tokens / unit
        (total / parts).backward()
        for name, parameter in model.named_parameters():
            assert float((found[name] - parameter.grad).norm()) <= 2e-6 * float(parameter.grad.norm())


def test_the_learning_rate_by_the_square_root(tmp_path):
    budget = {"ramp": {"most": 4, "until": 0.01, "learning_rate": "sqrt"}}
    made, told = trainer(tmp_path, coreset=coreset(budget), lr_scheduler_type="constant"), Told()
    made.add_callback(told)
    run(made)
    # 6 configured steps of 8 rows: 8, then 32, then what is left
    assert [line["chosen_examples"] for line in lines(tmp_path)] == [8, 32, 8]
    assert told.rates == pytest.approx([5e-3, 1e-2, 5e-3])
    logged = [line["learning_rate"] for line in made.state.log_history if "learning_rate" in line]
    assert logged == pytest.approx(told.rates)
    assert made.optimizer.param_groups[0]["lr"] == 5e-3


def test_a_batch_that_may_not_grow_yet_is_the_run_without(tmp_path):
    """A ramp whose first look is after the end: the same weights, lines and checkpoints' steps."""
    ran = [
        run(trainer(tmp_path / name, tiny_model(dropout=0.1), CoresetConfig(budget=budget), train_dataset=mixture(70)))
        for name, budget in (("with", {"ramp": {"most": 1.01}}), ("without", "constant"))
    ]
    assert same(*map(weights, ran))
    assert untimed(tmp_path / "with") == untimed(tmp_path / "without")


@pytest.mark.parametrize(
    "settings, more",
    [
        ({}, {}),
        ({"pool_factor": 2}, {}),
        ({"budget": {"adadagrad": {"every": 1, "eta": 0.6}}, "noise_scale": True}, {}),
        ({"micro_batches": "positions", "sampling": {"temperature": 0.5}}, {}),
        ({"objective": [{"until": 0.4, "is": "tokens"}, {"is": "sources", "ramp": True}]}, {}),
        ({"objective": {"online": "odm"}}, {}),
        ({}, BY_LENGTH),
        ({}, {"dataloader_num_workers": 1}),
    ],
    ids=["plain", "pool", "noise", "shares", "schedule", "online", "grouped", "worker"],
)
def test_resumed_is_uninterrupted(tmp_path, settings, more):
    """From every step, with an epoch's short last batch, and with steps that end within what the loop skips."""
    everywhere = not settings and not more
    more = {**EPOCHS, "gradient_accumulation_steps": 3, "per_device_train_batch_size": 2, **more}

    def made(folder):
        model = tiny_model(dropout=0.1)
        more_settings = {"save_strategy": "steps", "save_steps": 1, **more}
        return trainer(folder, model, coreset(**settings), train_dataset=mixture(40), **more_settings)

    whole = run(made(tmp_path / "whole"))
    steps = whole.state.global_step
    last = untimed(tmp_path / "whole")[-1]["pool_examples"]
    assert whole._run.step.claims.done == pytest.approx(1 - last / 80, abs=0.03)
    for step in range(1, steps) if everywhere else (2, steps - 2):
        killed, resumed = resumed_at(step, tmp_path / "whole", made)
        assert resumed.state.global_step == resumed.state.max_steps == steps
        assert same(weights(whole), weights(resumed))
        assert untimed(tmp_path / "whole") == untimed(killed)
        assert (tmp_path / "whole" / "chosen.jsonl").read_text() == (killed / "chosen.jsonl").read_text()
        logs = [[line.get("loss") for line in each.state.log_history if "loss" in line] for each in (whole, resumed)]
        assert logs[0] == logs[1]
        assert whole.lr_scheduler.last_epoch == resumed.lr_scheduler.last_epoch
        shutil.rmtree(killed)


def test_a_finished_run_has_nothing_to_do(tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 50}
    steps = run(trainer(tmp_path, coreset=coreset(), **settings)).state.global_step
    assert (tmp_path / f"checkpoint-{steps}").is_dir()
    with pytest.raises(ConfigError, match=r"coreset.budget goes on .* Found ignore_data_skip true"):
        run(trainer(tmp_path, coreset=coreset(), ignore_data_skip=True, **settings), resume_from_checkpoint=True)
    again = trainer(tmp_path, coreset=coreset(), **settings)
    assert again.train(resume_from_checkpoint=True).global_step == steps
    assert f"All {steps} steps are done" in caplog.text
    with pytest.raises(CheckpointError, match="has drawn the rows of 6 steps, more than the 5 that the run is to make"):
        run(trainer(tmp_path, coreset=coreset(), **{**settings, "max_steps": 5}), resume_from_checkpoint=True)


@pytest.mark.parametrize(
    "settings, more, message",
    [
        ({"by_length": {}}, {}, "coreset.budget changes how many rows a step has. Found coreset.by_length"),
        ({"sampling": {"learnt": "by_size"}}, {}, "Found coreset.sampling.learnt"),
        (
            {"sampling": {"shares": [{"until": 0.5, "is": {"rare": 0.1}}, {"is": {"rare": 0.5}}]}},
            {},
            "Found coreset.sampling.shares by a schedule",
        ),
        ({}, {"train_dataset": mixture().to_iterable_dataset()}, "coreset.budget spreads .* Found a stream"),
        (
            {},
            {
                "gradient_accumulation_steps": 1,
                "extra": {"optimizer_cls_and_kwargs": (OptimizerInBackward, {"lr": 1e-3})},
            },
            "coreset.budget may train more micro-batches than .* Found OptimizerInBackward",
        ),
    ],
)
def test_what_it_does_not_go_with(tmp_path, settings, more, message):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, tiny_model(), coreset(**settings), **more)


@pytest.mark.parametrize("budget", ["noise", "adadagrad"])
def test_it_follows_the_noise_that_is_measured(tmp_path, budget):
    """M_t is what the rule has of the running averages, as they were before the step, from every line's estimates."""
    every, options = 2, {"most": 16, "every": 2, **({"eta": 0.8} if budget == "adadagrad" else {})}
    made = trainer(
        tmp_path, tiny_model(lora=False), coreset({budget: options}, noise_scale=every), max_steps=40,
        learning_rate=3e-3, per_device_train_batch_size=2,
    )  # fmt: skip
    run(made)
    found, running, size, sizes = lines(tmp_path), RunningNoise(), 4, []
    for number, line in enumerate(found):
        if number and number % every == 0:
            noise = running.noise
            if budget == "noise":
                wanted = min(noise.scale, 2 * size)
            else:
                wanted = noise.trace / (0.64 * (max(0, noise.signal) + noise.trace / size))
            size = min(max(size, 2 * math.ceil(wanted / 2 - 1e-9)), 64)
        sizes.append(size)
        if (number + 1) % every == 0:
            running.update(Noise(signal=line["noise_signal"], trace=line["noise_trace"], rows=size))
    assert [line["chosen_examples"] for line in found][:-3] == sizes[:-3]
    assert len(set(sizes)) > 2
    assert sum(line["chosen_examples"] for line in found) == 40 * 4


def test_adadagrad_grows_in_a_run_as_its_rule_has_it_where_the_noise_is_known(tmp_path):
    """Only the bias of the head is trained, on rows of one label drawn from p: with q the model's probabilities, the
    gradient is q - p, and a row's variance 1 - |p|^2, however long it has trained. M_t by the rule of these, smoothed
    alike, against M_t by what was measured."""
    shares = torch.zeros(48).double()
    shares[3:9] = torch.tensor([0.4, 0.2, 0.15, 0.1, 0.1, 0.05]).double()
    model, steps = tiny_model("phi", lora=False).requires_grad_(False), 250
    model.lm_head.weight.zero_()
    model.lm_head.bias.zero_().requires_grad_(True)
    labels = torch.multinomial(shares, steps * 8, replacement=True, generator=torch.Generator().manual_seed(1)).tolist()
    rows = Dataset.from_list([{"input_ids": [3, label], "labels": [-100, label]} for label in labels])
    budget = {"adadagrad": {"eta": 0.5, "most": 32}}
    made = trainer(
        tmp_path, model, coreset(budget, noise_scale=True), train_dataset=rows, per_device_train_batch_size=2,
        gradient_accumulation_steps=4, max_steps=steps, optim="sgd", learning_rate=0.3, lr_scheduler_type="constant",
        max_grad_norm=0, logging_steps=1000,
    )  # fmt: skip
    signals = []

    class Known(TrainerCallback):
        def on_step_begin(self, *_, **__):
            signals.append(float((torch.softmax(model.lm_head.bias.detach().double(), 0) - shares).square().sum()))

    made.add_callback(Known())
    run(made)
    sizes, running, size, trace = [line["chosen_examples"] for line in lines(tmp_path)], RunningNoise(), 8, 0.755
    for number, signal in enumerate(signals[:-1]):
        if number and number % 10 == 0:
            known = running.noise.signal
            size = max(size, 2 * math.ceil(trace / (0.25 * (known + trace / size)) / 2 - 1e-9))
            assert sizes[number] == pytest.approx(size, rel=0.35 if number < 30 else 0.2)
        running.update(Noise(signal=signal, trace=trace, rows=8))
    assert sizes[-2] >= 48
    assert sum(sizes) == steps * 8


@pytest.mark.parametrize("way", ["track_error", "noise_scale"])
def test_noise_of_rows_that_are_chosen_jointly_is_tracked_or_that_of_random_steps(tmp_path, way):
    budget = {"adadagrad": {"every": 2, "eta": 0.3}}
    made = trainer(tmp_path, coreset=coreset(budget, pool_factor=2, micro_batches="plain", **{way: 2}), max_steps=12)
    run(made)
    assert max(line["chosen_examples"] for line in lines(tmp_path)) > 8


@pytest.mark.parametrize(
    "settings, more, message",
    [
        (
            {"noise_scale": False},
            {},
            "budget noise goes by the measured noise. Found coreset.noise_scale false. Use ramp",
        ),
        (
            {"pool_factor": 2},
            {},
            r"Found coreset.feedback 0.99, which chooses rows jointly \(coreset.track_error tells it by those "
            r"drawn\). Set coreset.track_error, or give coreset.noise_scale a number of steps from 2 on",
        ),
        ({}, {"gradient_accumulation_steps": 1}, "Found 1 micro-batches a step, of which it takes 2. Use ramp"),
    ],
)
def test_noise_that_is_not_measured_is_named(tmp_path, settings, more, message):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, tiny_model(), coreset("noise", **settings), **more)


def test_noise_that_never_comes_ends_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(NoiseMeter, "settle", lambda self, numbers: None)
    made = trainer(tmp_path, coreset=coreset("noise", noise_scale=1), max_steps=20)
    with pytest.raises(ConfigError, match=r"goes by the measured noise. Found none after 11 steps"):
        run(made)


def test_a_checkpoint_of_another_budget_is_another_runs(tmp_path):
    run(trainer(tmp_path, coreset=coreset(), save_strategy="steps", save_steps=2))
    with pytest.raises(CheckpointError, match=r"budget was \{'ramp': .* and is 'constant'"):
        run(trainer(tmp_path, coreset=coreset("constant", loss_by_source=True)), resume_from_checkpoint=True)

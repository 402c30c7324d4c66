"""The update under an objective: with every row trained it is the formula's, with fewer it is resumed exactly."""

import json

import pytest
import torch

from corebatch.errors import ConfigError, CorebatchError, DataError
from corebatch.trainer import CoresetConfig, CoresetTrainer, count_source_tokens
from corebatch.types import IGNORED
from training import Collator, mixture, run, same, tiny_model, trainer, weights

OBJECTIVES = [
    "examples",
    "sources",
    {"rare": 0.5, "logic": 0.5},
    {"temperature": 0.3},
    [{"until": 0.5, "is": "tokens"}, {"is": "sources", "until": 1.0, "ramp": True}],
]
RATE = 0.5


def weighed(rows=24):
    return mixture(rows).add_column("worth", [0.5 + (n % 4) for n in range(rows)])


def row_losses(model, dataset):
    """Summed token losses, trained tokens and sources of all rows, by the model's own logits."""
    losses, tokens = [], []
    for row in dataset:
        batch = Collator()([row])
        labels = batch.pop("labels")[:, 1:]
        logits = model(**batch).logits[:, :-1]
        each = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        losses.append(each.sum())
        tokens.append(int((labels != IGNORED).sum()))
    return torch.stack(losses), torch.tensor(tokens), list(dataset["source"])


def formula(value, losses, tokens, sources, worth, progress):
    """The claimed loss of all rows, written out."""
    names, each = sorted(set(sources)), dict.fromkeys(sources, 0)
    for source, count in zip(sources, tokens.tolist(), strict=True):
        each[source] += count
    share = {name: each[name] / sum(each.values()) for name in names}
    if value == "examples":
        return (worth * losses / tokens).sum() / len(tokens)
    wanted = {name: value.get(name, 0.0) if isinstance(value, dict) else 1 / len(names) for name in names}
    if isinstance(value, dict) and "temperature" in value:
        powers = {name: share[name] ** value["temperature"] for name in names}
        wanted = {name: powers[name] / sum(powers.values()) for name in names}
    if isinstance(value, list):
        part = max(0.0, (progress - 0.5) / 0.5)
        wanted = {name: (1 - part) * share[name] + part / len(names) for name in names}
    u = torch.tensor([wanted[source] / share[source] for source in sources], dtype=torch.float64)
    return (worth * u * losses).sum() / tokens.sum()


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("cut", ["plain", "positions"])
@pytest.mark.parametrize("value", OBJECTIVES, ids=str)
def test_with_every_row_trained_the_update_is_the_formula_s(tmp_path, value, cut, lora):
    dataset, steps = weighed(), 2
    settings = {
        "train_dataset": dataset, "optim": "sgd", "learning_rate": RATE, "lr_scheduler_type": "constant",
        "max_steps": steps, "max_grad_norm": 0.0, "per_device_train_batch_size": 6, "gradient_accumulation_steps": 4,
    }  # fmt: skip
    coreset = CoresetConfig(pool_factor=1, objective=value, weight_column="worth", micro_batches=cut)
    assert coreset.takes_part
    made = run(trainer(tmp_path, tiny_model(lora=lora, dtype=torch.float64), coreset, **settings))
    model = tiny_model(lora=lora, dtype=torch.float64)
    trained = [p for p in model.parameters() if p.requires_grad]
    worth = torch.tensor(dataset["worth"], dtype=torch.float64)
    for step in range(steps):  # an epoch is one step of all rows
        losses, tokens, sources = row_losses(model, dataset)
        loss = formula(value, losses, tokens, sources, worth, step / steps)
        logged = made.state.log_history[step]["loss"]
        assert logged == pytest.approx(float(loss.detach()), rel=1e-5)
        for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
            parameter.data -= RATE * gradient
    ours, moved = weights(made), model.state_dict()
    assert max(float((ours[key] - moved[key]).abs().max()) for key in moved) < 1e-6


def test_drawn_as_the_data_are_is_the_plain_trainer(tmp_path):
    assert not CoresetConfig(pool_factor=1, objective="drawn").takes_part
    assert not CoresetConfig(pool_factor=1, objective="tokens").takes_part


@pytest.mark.parametrize(
    "settings",
    [
        {"objective": "sources"},
        {"objective": {"temperature": 0.5}, "scorer": "last_layer", "scoring": "remembered", "weight_column": "worth"},
        {"objective": [{"until": 0.5, "is": "tokens"}, {"is": "sources", "ramp": True}], "pool_factor": 1},
    ],
    ids=["default", "remembered", "schedule"],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, settings):
    coreset = CoresetConfig(**{"pool_factor": 3, **settings})
    common = {"train_dataset": weighed(50), "max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = run(trainer(tmp_path, tiny_model(), coreset, **common))
    stopped = str(tmp_path / "checkpoint-2")
    part = run(trainer(tmp_path, tiny_model(), coreset, **common), resume_from_checkpoint=stopped)
    assert same(weights(whole), weights(part))
    record = json.loads((tmp_path / "corebatch.json").read_text())
    assert "mean over" in record["claimed"]
    assert record["claimed"] in record["method_note"]
    assert record["coreset"]["objective"] == coreset.objective
    with pytest.raises(CorebatchError, match="objective was"):
        run(
            trainer(tmp_path, tiny_model(), coreset.changed(objective="examples"), **common),
            resume_from_checkpoint=stopped,
        )


def test_the_error_of_the_gradient_is_measured_against_what_is_claimed(tmp_path):
    coreset = CoresetConfig(pool_factor=2, objective="sources", scorer="tokens", selector="importance", track_error=1)
    run(trainer(tmp_path, tiny_model(), coreset, train_dataset=weighed(), per_device_train_batch_size=12,
                gradient_accumulation_steps=1, max_steps=1))  # fmt: skip
    line = json.loads((tmp_path / "selection.jsonl").read_text())
    model, dataset = tiny_model(), weighed()
    losses, tokens, sources = row_losses(model, dataset)
    loss = formula("sources", losses, tokens, sources, 1.0, 0)
    trained = [p for p in model.parameters() if p.requires_grad]
    norm = torch.cat([g.flatten() for g in torch.autograd.grad(loss, trained)]).norm()
    assert line["gradient_error"]["norm"] == pytest.approx(float(norm), rel=1e-4)


@pytest.mark.parametrize(
    "settings, error, told",
    [
        ({"objective": {"algebr": 0.5}}, ConfigError, "Found 'algebr'. Did you mean 'algebra'"),
        ({"objective": {"algebra": 0.9, "rare": 0.9}}, ConfigError, "a sum of 1.8"),
        ({"weight_column": "wort"}, ConfigError, "Did you mean 'worth'"),
        ({"weight_column": "source"}, DataError, "'algebra' in row 0"),
        ({"weight_column": "minus"}, DataError, "Found -1.0 in row 3"),
        ({"weight_column": "nothing"}, DataError, "zeros alone"),
        ({"objective": "sources", "source_tokens": {"algebra": 5}}, ConfigError, "Found none in 'geometry'"),
        ({"objective": "sources", "source_tokens": {"arithmetic": 5}}, ConfigError, "Found 'arithmetic'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_input_is_named_before_anything_is_trained(tmp_path, settings, error, told):
    dataset = (
        weighed().add_column("minus", [-1.0 if n == 3 else 1.0 for n in range(24)]).add_column("nothing", [0] * 24)
    )
    made = trainer(tmp_path, tiny_model(), CoresetConfig(pool_factor=1, **settings), train_dataset=dataset)
    before = weights(made)
    with pytest.raises(error) as caught:
        made.train()
    assert told in str(caught.value)
    assert same(before, weights(made))


def test_a_source_without_trained_tokens_is_named(tmp_path):
    rows = [{**row, "labels": [-100] * len(row["labels"])} if row["source"] == "rare" else row for row in mixture(24)]
    made = trainer(
        tmp_path, tiny_model(), CoresetConfig(objective="sources"), train_dataset=type(mixture(2)).from_list(rows)
    )
    with pytest.raises(ConfigError, match="Found none in 'rare'"):
        made.train()


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter(mixture(48))


def test_a_stream_is_counted_beforehand(tmp_path):
    with pytest.raises(ConfigError, match="count_source_tokens"):
        trainer(tmp_path / "a", tiny_model(), CoresetConfig(objective="sources"), train_dataset=Stream()).train()
    with pytest.raises(ConfigError, match="by an example's number"):
        trainer(tmp_path / "b", tiny_model(), CoresetConfig(weight_column="worth"), train_dataset=Stream()).train()
    counted = count_source_tokens(Stream(), Collator())
    of_set = count_source_tokens(mixture(48), Collator())
    assert counted == of_set
    assert sum(counted.values()) > sum(count_source_tokens(Stream(), Collator(), rows=20).values())
    coreset = CoresetConfig(objective="sources", source_tokens=counted)
    made = run(trainer(tmp_path / "c", tiny_model(), coreset, train_dataset=Stream(), max_steps=2))
    assert isinstance(made, CoresetTrainer)
    assert made._run.step.claims.counts is not None


class Owned(CoresetTrainer):
    """Computes the loss itself and asks for no weights."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None, **kwargs):
        outputs = model(**{key: inputs[key] for key in ("input_ids", "attention_mask", "labels")})
        return (outputs.loss, outputs) if return_outputs else outputs.loss


def test_a_loss_that_cannot_be_weighed_is_named(tmp_path):
    from training import arguments

    made = Owned(tiny_model(), arguments(tmp_path), train_dataset=weighed(), data_collator=Collator(),
                 coreset=CoresetConfig(pool_factor=1, objective="sources"))  # fmt: skip
    with pytest.raises(CorebatchError, match="compute_loss"):
        made.train()
    smoothed = trainer(tmp_path / "s", tiny_model(), CoresetConfig(pool_factor=1), train_dataset=weighed(),
                       label_smoothing_factor=0.1)  # fmt: skip
    assert not smoothed.coreset.takes_part
    coreset = CoresetConfig(pool_factor=1, objective="sources")
    with pytest.raises(CorebatchError, match="label_smoothing_factor"):
        trainer(tmp_path / "t", tiny_model(), coreset, train_dataset=weighed(), label_smoothing_factor=0.1).train()

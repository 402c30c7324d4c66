"""Hosts that patch a trainer, and callbacks that change it: they train as the plain Trainer does, or are named."""

from __future__ import annotations

import types
from typing import Any

import pytest
from transformers import Trainer, TrainerCallback

from corebatch.errors import ConfigError, CorebatchError
from corebatch.trainer import CoresetConfig, CoresetMixin, CoresetTrainer
from training import Collator, mixture, run, same, tiny_model, trainer, weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]


def plainly(self: Any, epoch_iterator: Any, num_batches: int, device: Any = None) -> Any:
    """What a host puts in the place of get_batch_samples: takes batches and counts tokens by itself."""
    batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
    return batches, sum((batch["labels"][:, 1:] != -100).sum() for batch in batches)


def of_its_own_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
    return Trainer.get_batch_samples(self, *args, **kwargs)


def a_loader(self: Any) -> Any:
    return Trainer.get_train_dataloader(self)


@pytest.mark.parametrize(
    "name, patch, found",
    [
        ("get_batch_samples", plainly, r"chosen in get_batch_samples.*instance.*plainly.*nothing was chosen"),
        ("get_batch_samples", of_its_own_loop, r"chosen in get_batch_samples.*instance.*of_its_own_loop"),
        ("get_train_dataloader", a_loader, r"carries the ids.*get_train_dataloader of the instance.*a_loader"),
    ],
    ids=["samples", "the parent's samples", "loader"],
)
@pytest.mark.parametrize("where", ["instance", "class"])
def test_a_method_that_is_replaced_is_named_before_any_weight_is_moved(
    tmp_path, name, patch, found, where, monkeypatch
):
    made = trainer(tmp_path, tiny_model(lora=False))
    before = weights(made)
    if where == "instance":
        monkeypatch.setattr(made, name, types.MethodType(patch, made))
    else:
        monkeypatch.setattr(CoresetMixin, name, patch)
        found = found.replace("get_train_dataloader of the instance.*", "").replace("instance.*", "")
    with pytest.raises(ConfigError, match=found):
        run(made)
    assert same(before, weights(made))


@pytest.mark.parametrize("name", ["get_batch_samples", "get_train_dataloader", "compute_loss", "training_step"])
def test_a_method_that_is_wrapped_trains_as_before(tmp_path, name):
    """A timer or a logger around the method that was there."""
    made, calls = trainer(tmp_path / "a", tiny_model()), []
    usual = getattr(made, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        return usual(*args, **kwargs)

    setattr(made, name, wrapped)
    assert same(weights(run(made)), weights(run(trainer(tmp_path / "b", tiny_model()))))
    assert calls


def test_get_batch_samples_that_is_patched_on_the_trainer_class_goes_on_below_ours(tmp_path, monkeypatch):
    """As hosts that patch transformers itself do."""
    expected = weights(run(trainer(tmp_path / "a", tiny_model())))
    one = weights(run(trainer(tmp_path / "b", tiny_model(), plain=True)))
    monkeypatch.setattr(Trainer, "get_batch_samples", plainly)
    assert same(weights(run(trainer(tmp_path / "c", tiny_model()))), expected)
    assert same(weights(run(trainer(tmp_path / "d", tiny_model(), CoresetConfig(pool_factor=1)))), one)


def test_a_training_step_that_is_patched_on_the_trainer_class(tmp_path, monkeypatch):
    expected, usual = weights(run(trainer(tmp_path / "a", tiny_model()))), Trainer.training_step

    def training_step(self: Any, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
        return usual(self, model, inputs, num_items_in_batch)

    monkeypatch.setattr(Trainer, "training_step", training_step)
    assert same(weights(run(trainer(tmp_path / "b", tiny_model()))), expected)


def test_a_compute_loss_of_the_instance_never_trains_unweighted(tmp_path):
    made = trainer(tmp_path, tiny_model(lora=False))
    before = weights(made)

    def compute_loss(model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        outputs = model(**{k: v for k, v in inputs.items() if k in ("input_ids", "labels", "attention_mask")})
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    made.compute_loss = compute_loss
    with pytest.raises(CorebatchError, match="compute_loss"):
        run(made)
    assert same(before, weights(made))


class Mixed:
    """What a host mixes into its trainers: an optimizer of its own, a log, a scheduler."""

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        self.optimizer_calls = getattr(self, "optimizer_calls", 0) + 1
        return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        logs["mixed"] = 1.0
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


@pytest.mark.parametrize("order", ["before", "after"])
def test_classes_that_are_mixed_in(tmp_path, order):
    bases = (Mixed, CoresetTrainer) if order == "before" else (CoresetMixin, Mixed, Trainer)
    kind = type("Host", bases, {})
    plain = trainer(tmp_path / "a", tiny_model())
    made = kind(model=tiny_model(), args=plain.args, train_dataset=mixture(), data_collator=Collator())
    assert same(weights(run(made)), weights(run(trainer(tmp_path / "b", tiny_model()))))
    assert made.optimizer_calls == 1
    assert all("mixed" in line for line in made.state.log_history[:-1])


class Accumulates(TrainerCallback):
    """Changes the arguments from the second epoch on."""

    def __init__(self, **changes: Any) -> None:
        self.changes = changes

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        for name, value in self.changes.items():
            setattr(args, name, value)


@pytest.mark.parametrize(
    "changes", [{"gradient_accumulation_steps": 1}, {"per_device_train_batch_size": 2}, {"logging_steps": 2}], ids=str
)
def test_arguments_that_a_callback_changes_on_the_way(tmp_path, changes):
    """The plain Trainer's number of steps and micro-batches; the loader stays as it was made."""
    steps = []
    for plain in (True, False):
        data = mixture(32 if plain else 64)
        extra = {"callbacks": [Accumulates(**changes)]}
        settings = {"max_steps": -1, "num_train_epochs": 3, "train_dataset": data, "extra": extra}
        steps.append(run(trainer(tmp_path / str(plain), tiny_model(), plain=plain, **settings)).state.global_step)
    assert steps[0] == steps[1]


def test_callbacks_that_come_and_go(tmp_path):
    made = trainer(tmp_path / "a", tiny_model())
    callback = Accumulates()
    made.add_callback(callback)
    made.add_callback(TrainerCallback)
    made.remove_callback(callback)
    run(made)
    assert made.state.global_step == 6
    assert (tmp_path / "a" / "selection.jsonl").read_text().count("\n") == 6


def test_the_loader_may_be_looked_at_before_training(tmp_path):
    made = trainer(tmp_path / "a", tiny_model())
    assert len(made.get_train_dataloader()) == 12
    assert same(weights(run(made)), weights(run(trainer(tmp_path / "b", tiny_model()))))

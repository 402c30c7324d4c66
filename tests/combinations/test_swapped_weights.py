"""Optimizers and callbacks that put other weights into the model: for evaluation, or between scoring and training."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from corebatch.trainer import CoresetConfig
from training import largest_difference, mixture, run, same, tiny_model, trainer, weights

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
]
FULL = CoresetConfig(scoring="full")
EVALUATES = {"eval_strategy": "steps", "eval_steps": 1}
needs_schedulefree = pytest.mark.skipif(
    importlib.util.find_spec("schedulefree") is None, reason="schedulefree is not installed"
)


class TwoModes(torch.optim.SGD):
    """Weights are halved while it is in evaluation mode: exactly, so that nothing is left of it."""

    training = True

    def _switch(self, training: bool) -> None:
        if training != self.training:
            self.training = training
            with torch.no_grad():
                for group in self.param_groups:
                    for weight in group["params"]:
                        weight.mul_(2 if training else 0.5)

    def train(self) -> None:
        self._switch(True)

    def eval(self) -> None:
        self._switch(False)


def with_two_modes(folder: Any, *callbacks: Any, evaluates: bool = True, **settings: Any) -> Any:
    model = tiny_model(lora=False)
    extra = {"optimizers": (TwoModes(model.parameters(), lr=1e-2), None), "callbacks": list(callbacks)}
    if evaluates:
        extra["eval_dataset"] = mixture(8, seed=9)
        settings = {**EVALUATES, **settings}
    return run(trainer(folder, model, FULL, extra=extra, **settings))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_evaluation_in_between_changes_nothing(tmp_path, checkpointing):
    without = with_two_modes(tmp_path / "a", evaluates=False, gradient_checkpointing=checkpointing)
    made = with_two_modes(tmp_path / "b", gradient_checkpointing=checkpointing)
    made.optimizer.train()
    assert same(weights(made), weights(without))
    if checkpointing:
        assert made._run.step.states is not None
        assert made._run.step.states.reason is None


@needs_schedulefree
@pytest.mark.parametrize("optim", ["schedule_free_adamw", "schedule_free_sgd", "schedule_free_radam"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_schedule_free_optimizers(tmp_path, optim, checkpointing):
    """The losses of the pools are those of the weights that are trained, though evaluations lie between."""
    settings = {"optim": optim, "lr_scheduler_type": "constant", "gradient_checkpointing": checkpointing}
    extra = {"eval_dataset": mixture(8, seed=9)}
    made = run(trainer(tmp_path / "a", tiny_model(), FULL, extra=extra, **EVALUATES, **settings))
    without = run(trainer(tmp_path / "b", tiny_model(), FULL, **settings))
    assert made.state.global_step == 6
    made.optimizer.train()
    without.optimizer.train()
    assert largest_difference(weights(made), weights(without)) < 1e-4, "train() after eval() is not exact in floats"


@needs_schedulefree
@pytest.mark.parametrize("evaluates", [False, True])
def test_a_schedule_free_run_that_is_resumed_is_the_uninterrupted_one(tmp_path, evaluates):
    settings = {
        "optim": "schedule_free_adamw",
        "lr_scheduler_type": "constant",
        "save_strategy": "steps",
        "save_steps": 3,
    }
    extra = {"eval_dataset": mixture(8, seed=9)}
    settings |= EVALUATES if evaluates else {}
    whole = run(trainer(tmp_path / "a", tiny_model(), FULL, extra=extra, **settings))
    resumed = trainer(tmp_path / "a", tiny_model(), FULL, extra=extra, **settings)
    run(resumed, resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    assert same(weights(resumed), weights(whole))


class Swaps(TrainerCallback):
    """Moves the weights before a step is trained, as a moving average that is taken back does."""

    def __init__(self, how: str) -> None:
        self.how = how

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for weight in model.parameters():
            if self.how == "in place":
                with torch.no_grad():
                    weight.mul_(0.9)
            elif self.how == "data":
                weight.data.mul_(0.9)
            else:
                weight.data = weight.data * 0.9


@pytest.mark.parametrize("how", ["in place", "data", "other data"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_weights_that_a_callback_moves_after_scoring_are_the_ones_that_are_trained(tmp_path, how, lora, caplog):
    """Under checkpointing, where the scoring forward would have been used again: never a gradient of old weights."""

    def trained(folder: str, checkpointing: bool) -> Any:
        extra = {"callbacks": [Swaps(how)]}
        settings = {"gradient_checkpointing": checkpointing, "optim": "sgd", "learning_rate": 0.1}
        return run(trainer(tmp_path / folder, tiny_model(lora=lora), FULL, extra=extra, **settings))

    made = trained("a", True)
    assert largest_difference(weights(made), weights(trained("b", False))) < 1e-5
    assert "Weights were changed after the pool was scored" in caplog.text
    assert caplog.text.count("Weights were changed") == 1


class Averages(TrainerCallback):
    """Evaluates a moving average and takes it back, through `data` as most implementations do."""

    def __init__(self) -> None:
        self.average: dict[str, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        for name, weight in model.named_parameters():
            before = self.average.get(name, weight.data)
            self.average[name] = 0.5 * before + 0.5 * weight.data
        kept = {name: weight.data.clone() for name, weight in model.named_parameters()}
        for name, weight in model.named_parameters():
            weight.data.copy_(self.average[name])
        for name, weight in model.named_parameters():
            weight.data.copy_(kept[name])


class Merges(TrainerCallback):
    """Evaluates with adapters merged."""

    def on_evaluate(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        model.merge_adapter()
        model.unmerge_adapter()


@pytest.mark.parametrize("callback", [Averages, Merges])
def test_weights_that_come_back_before_scoring_change_nothing(tmp_path, callback):
    settings = {"gradient_checkpointing": True, **EVALUATES}
    extra = {"eval_dataset": mixture(8, seed=9)}
    made = run(trainer(tmp_path / "a", tiny_model(), FULL, extra=extra | {"callbacks": [callback()]}, **settings))
    without = run(trainer(tmp_path / "b", tiny_model(), FULL, extra=extra, **settings))
    assert largest_difference(weights(made), weights(without)) < 1e-5
    assert made._run.step.states.reason is None


def test_an_averaged_model_of_torch_beside_it(tmp_path):
    model = tiny_model(lora=False)
    average = torch.optim.swa_utils.AveragedModel(model)

    class Updates(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            average.update_parameters(model)

    made = run(trainer(tmp_path / "a", model, FULL, extra={"callbacks": [Updates()]}))
    assert same(weights(made), weights(run(trainer(tmp_path / "b", tiny_model(lora=False), FULL))))

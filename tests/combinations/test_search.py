"""Hyper-parameter search, models that are made when training begins, and several calls of train."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from transformers import Trainer, TrainerCallback, set_seed

from corebatch.errors import CheckpointError, ConfigError
from corebatch.trainer import CoresetConfig, CoresetTrainer
from training import Collator, arguments, largest_difference, mixture, run, same, tiny_model, trainer, weights

optuna.logging.set_verbosity(optuna.logging.ERROR)
pytestmark = pytest.mark.usefixtures("one_thread")


def fresh() -> Any:
    """The model of each run; the Trainer's random state as it is where a model is given."""
    model = tiny_model()
    set_seed(3)
    return model


class Notes(TrainerCallback):
    """What each trial trained."""

    def __init__(self) -> None:
        self.trials: list[dict[str, Any]] = []
        self.trainer: Any = None

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        made = self.trainer
        self.trials.append(
            {
                "batch": args.per_device_train_batch_size,
                "pool_factor": made.coreset.pool_factor if hasattr(made, "coreset") else None,
                "steps": state.global_step,
                "losses": [line["loss"] for line in state.log_history if "loss" in line],
                "weights": weights(made),
            }
        )


def searched(folder: Any, space: Any, *, cls: Any = CoresetTrainer, trials: int = 3, **settings: Any) -> Notes:
    notes = Notes()
    extra = {"coreset": settings.pop("coreset", CoresetConfig())} if cls is CoresetTrainer else {}
    made = cls(
        model_init=lambda: fresh(),
        args=arguments(folder, **{"max_steps": -1, "num_train_epochs": 1, "eval_strategy": "epoch", **settings}),
        train_dataset=mixture(64),
        eval_dataset=mixture(8, seed=4),
        data_collator=Collator(),
        callbacks=[notes],
        **extra,
    )
    notes.trainer = made
    made.hyperparameter_search(direction="minimize", backend="optuna", n_trials=trials, hp_space=space)
    return notes


def grid(name: str, values: list[Any]) -> Any:
    """The values one after the other: suggest_categorical of one value each."""
    return lambda trial: {name: trial.suggest_categorical(f"{name} {trial.number}", [values[trial.number]])}


def test_trials_of_batch_sizes_have_the_steps_of_their_size(tmp_path):
    space = grid("per_device_train_batch_size", [2, 4, 8])
    found = searched(tmp_path / "ours", space).trials
    plain = searched(tmp_path / "plain", space, cls=Trainer).trials
    assert [trial["batch"] for trial in found] == [2, 4, 8]
    assert [2 * trial["steps"] for trial in found] == [trial["steps"] for trial in plain]


@pytest.mark.parametrize("scoring", ["full", "remembered"])
@pytest.mark.parametrize("recipe", ["recommended", "colm"])
def test_every_trial_begins_anew(tmp_path, scoring, recipe):
    """Memory, selector, random state: a trial with the settings of the first trains the same, bit for bit."""
    if recipe == "colm" and scoring == "remembered":
        pytest.skip("zeroth order is not remembered")
    coreset = CoresetConfig.from_dict({"recipe": recipe, "scoring": scoring})
    found = searched(tmp_path, grid("learning_rate", [1e-3, 5e-3, 1e-3]), coreset=coreset, num_train_epochs=2).trials
    assert same(found[0]["weights"], found[2]["weights"])
    assert not same(found[0]["weights"], found[1]["weights"])
    settings = {"max_steps": -1, "num_train_epochs": 2, "learning_rate": 1e-3}
    alone = trainer(tmp_path / "alone", coreset=coreset, train_dataset=mixture(64), **settings)
    assert same(found[0]["weights"], weights(run(alone)))
    for number in range(3):
        assert (tmp_path / f"run-{number}" / "selection.jsonl").is_file()


@pytest.mark.parametrize("name", ["coreset.pool_factor", "pool_factor"])
def test_settings_of_coreset_are_searched(tmp_path, name):
    found = searched(tmp_path / "ours", grid(name, [4, 1, 2])).trials
    assert [trial["pool_factor"] for trial in found] == [4, 1, 2]
    assert [trial["steps"] for trial in found] == [2, 8, 4]
    plain = searched(tmp_path / "plain", grid("learning_rate", [5e-3]), cls=Trainer, trials=1).trials
    assert same(found[1]["weights"], plain[0]["weights"]), "a trial of pool_factor 1 is the plain Trainer's"


def test_pool_factor_one_can_be_searched_from(tmp_path):
    found = searched(
        tmp_path, grid("coreset.pool_factor", [1, 2]), trials=2, coreset=CoresetConfig(pool_factor=1)
    ).trials
    assert [trial["steps"] for trial in found] == [8, 4]


@pytest.mark.parametrize(
    "space, found",
    [
        ({"coreset.poolfactor": 2}, r"coreset\.pool_factor.*Found 'coreset\.poolfactor'"),
        ({"coreset.pool_factor": 0}, "pool_factor should be an integer of at least 1"),
        ({"coreset.selector": "nobody"}, "nobody"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.1"),
    ],
    ids=["name", "range", "selector", "argument"],
)
def test_what_a_trial_cannot_have_is_named(tmp_path, space, found):
    with pytest.raises((ConfigError, ValueError), match=found):
        searched(tmp_path, lambda trial: space, trials=1)


def test_a_model_made_when_training_begins(tmp_path):
    def made(folder: str) -> Any:
        return CoresetTrainer(
            model_init=lambda: fresh(),
            args=arguments(tmp_path / folder, save_strategy="steps", save_steps=3),
            train_dataset=mixture(),
            data_collator=Collator(),
        )

    given = run(trainer(tmp_path / "given", tiny_model()))
    first = run(made("first"))
    assert same(weights(first), weights(given))
    run(first)  # a second call begins with a new model
    assert same(weights(first), weights(given))
    resumed = made("first")
    resumed.train(resume_from_checkpoint=str(tmp_path / "first" / "checkpoint-3"))
    assert same(weights(resumed), weights(given))
    last = made("first")
    last.train(resume_from_checkpoint=True)
    assert last.state.global_step == 6
    with pytest.raises(CheckpointError, match="Found none"):
        made("nothing").train(resume_from_checkpoint=True)


def test_a_second_call_of_train_goes_on_from_the_weights_with_a_fresh_state(tmp_path):
    made = run(trainer(tmp_path / "one", tiny_model(), CoresetConfig(normalise="adam", selector="facility_location")))
    model, made.optimizer = made.model, None  # which the Trainer would go on with
    other = trainer(tmp_path / "two", tiny_model(), CoresetConfig(normalise="adam", selector="facility_location"))
    other.model.load_state_dict(model.state_dict())
    run(made)
    run(other)
    assert largest_difference(weights(made), weights(other)) < 1e-6


def test_a_model_that_was_replaced_between_is_the_one_that_is_scored(tmp_path):
    made = run(trainer(tmp_path / "one", tiny_model()))
    made.model = made.model_wrapped = fresh()
    made.optimizer = made.lr_scheduler = None
    run(made)
    assert same(weights(made), weights(run(trainer(tmp_path / "two", tiny_model()))))


def test_settings_that_were_changed_between_are_checked(tmp_path):
    made = run(trainer(tmp_path, tiny_model()))
    made.args.label_smoothing_factor = 0.1
    with pytest.raises(ValueError, match="label_smoothing_factor"):
        run(made)

"""What the log says of the losses of sources."""

import pytest

from corebatch.record.source_losses import logged_losses
from corebatch.step_line import StepLine


def step(number, losses, tokens):
    return StepLine(step=number, pool_examples=8, chosen_examples=4, loss_by_source=losses, loss_tokens=tokens)


def test_means_over_steps_are_by_tokens_and_unknown_steps_say_nothing():
    steps = [
        step(1, {"a": 1.0, "b": 5.0}, {"a": 10.0, "b": 1.0}),
        step(2, {"a": 4.0}, {"a": 5.0}),
        step(3, None, None),
        StepLine(step=4, pool_examples=8, chosen_examples=4),
    ]
    assert logged_losses(steps, []) == {"loss/a": 2.0, "loss/b": 5.0}
    assert logged_losses(steps[2:], []) == {}


@pytest.mark.parametrize(
    "name, kept", [("gsm8k", "gsm8k"), ("org/data: é?", "org/data_ é_"), ("../a//b", "_/a/_/b"), ("", "_")]
)
def test_names_are_as_they_are_but_where_mlflow_refuses_them(name, kept):
    steps = [step(1, {name: 1.0}, {name: 2.0})]
    assert list(logged_losses(steps, ["tensorboard", "wandb"])) == [f"loss/{name}"]
    for tracker in ("mlflow", "dagshub"):
        assert list(logged_losses(steps, ["wandb", tracker])) == [f"loss/{kept}"]


def test_two_names_that_become_one_stay_two():
    steps = [step(1, {"a?": 1.0, "a*": 2.0}, {"a?": 1.0, "a*": 1.0})]
    assert logged_losses(steps, ["mlflow"]) == {"loss/a_": 2.0, "loss/a__": 1.0}


def test_mlflow_takes_the_names():
    validation = pytest.importorskip("mlflow.utils.validation", reason="mlflow is not installed")
    for name in ("gsm8k", "org/data: é?", "../a//b", "a b", "..", "/x/"):
        (key,) = logged_losses([step(1, {name: 1.0}, {name: 2.0})], ["mlflow"])
        validation._validate_metric_name(f"train/{key}")

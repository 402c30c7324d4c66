"""Features out of the training backward are those that scoring gives: the reference of each is a scoring run."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from corebatch.model.rows import Padding, put_together, take_rows
from corebatch.model.weighted_loss import weighted_loss
from corebatch.scoring import GradientNorm, LastLayer
from corebatch.scoring.trained import TrainedFeatures
from corebatch.scoring.value_gradients import ValueGradientScorer
from corebatch.trainer import CoresetConfig
from corebatch.types import ID, PLACES
from models import batch_for, in_micro_batches, tiny_model
from training import Collator, mixture, run, trainer
from training import tiny_model as trained_model

KINDS = ("llama", "gpt2", "phi", "qwen3", "gemma", "opt", "gptneox", "falcon_new", "phi3")
WEIGHTS = torch.tensor([0.5, 2.0, 1.25, 3.0, 0.75, 0.1], dtype=torch.float64)
ROWS = (0, 4, 2, 1, 7, 9)  # of the pool; rows 3 and 8 have no trained token
ITEMS = 37.0
BOUND = 1e-9
SINGLE = ("llama", "qwen3", "gemma", "phi3")
"""Kinds whose norms compute in float32 whatever the model: a weighted gradient rounds there otherwise than one of
weight one."""

Batch = dict[str, Any]


def pool(kind: str) -> list[Batch]:
    return [batch_for(kind, rows=5, width=12, pad=2), batch_for(kind, rows=5, width=9, seed=2)]


def in_training(model: Any, checkpointing: str = "none") -> Any:
    if checkpointing != "none":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            model.gradient_checkpointing_enable({"use_reentrant": checkpointing == "reentrant"})
        if not any(parameter.requires_grad for parameter in model.get_input_embeddings().parameters()):
            model.enable_input_require_grads()
    return model.train()


def small_batch(
    batches: Sequence[Batch], rows: Sequence[int] = ROWS, weights: Tensor = WEIGHTS, *, loss: Any = "token_mean",
    count: int = 2, packed: bool = False,
) -> list[Batch]:  # fmt: skip
    """Rows of the pool in `count` micro-batches, as the mixin packs them."""
    taken = [{**row, ID: torch.tensor(number)} for number, row in zip(rows, take_rows(batches, rows), strict=True)]
    tokens = torch.tensor([int((row["labels"][1:] != -100).sum()) for row in taken])
    each = weights[: len(rows)] / (tokens.clamp(min=1) if loss == "example_mean" else 1)
    filler = {**take_rows(batches, [0])[0], ID: torch.tensor(0)}
    return in_micro_batches(taken, each, count, Padding(token=0), filler, numbers=rows, packed=packed)


def train(
    model: Any, scorer: ValueGradientScorer, batches: Sequence[Batch], *args: Any, loss: Any = "token_mean",
    **settings: Any,
) -> TrainedFeatures:  # fmt: skip
    """Forward and backward over a `small_batch`, watched as the mixin does."""
    watching = TrainedFeatures(scorer, loss=loss, seed=0)
    watching.watch(model, batches[0])
    for batch in small_batch(batches, *args, loss=loss, **settings):
        places, given = batch.pop(PLACES), batch.pop("loss_weights")
        of_rows = given[places[:, 1]] if given.ndim == 1 else given[places[:, 1], places[:, 3] - 1]
        trained = [int((batch["labels"][b, start + 1 : end] != -100).sum()) for _, b, start, end in places.tolist()]
        watching.announce(places, of_rows, torch.tensor(trained))
        total = weighted_loss(model, model, batch, given)[0]
        watching.scale_by(total)
        (total / ITEMS * 3).backward()
    return watching


def scored(model: Any, scorer: ValueGradientScorer, batches: Sequence[Batch], rows: Sequence[int], loss: Any) -> Tensor:
    batch = put_together(take_rows(batches, rows), Padding(token=0))
    return scorer.run(model, batch, loss=loss, seed=0).features


def assert_as_scored(
    model: Any, scorer: ValueGradientScorer, batches: Sequence[Batch], found: Any, rows: Sequence[int] = ROWS,
    loss: Any = "token_mean", bound: float = BOUND,
) -> None:  # fmt: skip
    assert found is not None
    numbers, features = found
    assert sorted(numbers.tolist()) == sorted(rows)
    expected = scored(model, scorer, batches, numbers.tolist(), loss)
    assert features.shape == expected.shape
    assert features.dtype == torch.float64
    error = (features - expected).norm(dim=1) / expected.norm(dim=1)
    assert float(error.max()) < bound


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_trained_is_scored(kind: str, lora: bool) -> None:
    model, batches, scorer = in_training(tiny_model(kind, lora=lora)), pool(kind), LastLayer(num_blocks=2)
    found = train(model, scorer, batches).take()
    assert_as_scored(model, scorer, batches, found, bound=1e-6 if kind in SINGLE else BOUND)


@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("checkpointing", ["none", "reentrant", "not_reentrant"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_units_layouts_and_checkpointing(lora: bool, checkpointing: str, packed: bool, loss: Any) -> None:
    model = in_training(tiny_model("phi", lora=lora), checkpointing)
    batches, scorer = pool("phi"), LastLayer(num_blocks=2)
    assert_as_scored(
        model, scorer, batches, train(model, scorer, batches, packed=packed, loss=loss).take(), loss=loss
    )  # fmt: skip


@pytest.mark.parametrize("count", [1, 3, 6])
def test_gradient_accumulation_does_not_matter(count: int) -> None:
    model, batches, scorer = in_training(tiny_model("phi", lora=True)), pool("phi"), LastLayer()
    assert_as_scored(model, scorer, batches, train(model, scorer, batches, count=count).take())


@pytest.mark.parametrize(
    "scorer", [LastLayer(num_blocks=1), LastLayer(max_dim=10, projection_dim=8), GradientNorm()], ids=repr
)
def test_other_scorers_of_value_projections(scorer: ValueGradientScorer) -> None:
    model, batches = in_training(tiny_model("phi")), pool("phi")
    assert_as_scored(model, scorer, batches, train(model, scorer, batches).take())


def test_hooks_leave_the_gradients_of_training_alone() -> None:
    model, batches = in_training(tiny_model("phi")), pool("phi")
    train(model, LastLayer(), batches).close()
    watched = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    for batch in small_batch(batches):
        del batch[PLACES]
        (weighted_loss(model, model, batch, batch.pop("loss_weights"))[0] / ITEMS * 3).backward()
    assert all(torch.equal(one, other.grad) for one, other in zip(watched, model.parameters(), strict=True))


# ---- what is left out ------------------------------------------------------------------------------------------------


def test_rows_of_weight_zero_are_left_out() -> None:
    model, batches, scorer = in_training(tiny_model("phi")), pool("phi"), LastLayer()
    weights = torch.tensor([0.5, 0.0, 1.0, 2.0, 0.0, 1.0], dtype=torch.float64)
    found = train(model, scorer, batches, ROWS, weights).take()
    assert_as_scored(model, scorer, batches, found, rows=[ROWS[i] for i in (0, 2, 3, 5)])


def test_a_row_without_a_trained_token_is_zero() -> None:
    model, batches, scorer = in_training(tiny_model("phi")), pool("phi"), LastLayer()
    found = train(model, scorer, batches, (0, 3, 4)).take()
    assert found is not None
    numbers, features = found
    assert sorted(numbers.tolist()) == [0, 3, 4]
    assert features[numbers == 3].abs().max() == 0


def test_fillers_are_no_examples() -> None:
    """Three micro-batches for two rows: the third holds a filler alone."""
    model, batches, scorer = in_training(tiny_model("phi")), pool("phi"), LastLayer()
    found = train(model, scorer, batches, (4, 1), count=3).take()
    assert_as_scored(model, scorer, batches, found, rows=(4, 1))


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_is_not_finite_is_left_out(bad: float) -> None:
    """Half precision overflows now and then, and the loss scaler skips that step; the memory must not keep it."""
    model, batches, scorer = in_training(tiny_model("phi")), pool("phi"), LastLayer()
    watching = TrainedFeatures(scorer, loss="token_mean", seed=0)
    watching.watch(model, batches[0])
    batch = put_together(take_rows(batches, [0, 1, 2]), Padding(token=0))
    watching.announce(torch.tensor([[i, i, 0, 12 - 2 * i] for i in range(3)]), WEIGHTS[:3], torch.tensor([9, 5, 3]))

    def overflows(module: Any, args: Any, output: Any) -> Any:
        def spoil(grad: Tensor) -> Tensor:
            grad = grad.clone()
            grad[1, 2] = bad
            return grad

        output.register_hook(spoil)

    handle = model.model.final_layernorm.register_forward_hook(overflows)
    total = weighted_loss(model, model, batch, WEIGHTS[:3])[0]
    watching.scale_by(total)
    total.backward()
    handle.remove()
    found = watching.take()
    assert found is not None
    assert found[0].tolist() == [0, 2]
    assert bool(torch.isfinite(found[1]).all())


def test_only_what_was_announced_is_taken() -> None:
    model, batches, scorer = in_training(tiny_model("phi")), pool("phi"), LastLayer()
    watching = train(model, scorer, batches)
    assert watching.take() is not None
    assert watching.take() is None, "taken once"
    watching.quiet()
    model(**batches[0]).loss.backward()
    scorer.run(model, batches[0])
    assert watching.take() is None
    watching.announce(torch.tensor([[0, 0, 0, 12]]), WEIGHTS[:1], torch.tensor([9]))
    model.eval()(**batches[0]).loss.backward()  # no training
    assert watching.take() is None
    watching.close()
    assert not any(module._forward_hooks for module in model.modules())


# ---- through the trainer ---------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
@pytest.mark.parametrize(
    "lora, loss, padding_free, settings",
    [
        (True, "token_mean", False, {}),
        (False, "token_mean", True, {}),
        (True, "example_mean", False, {"gradient_checkpointing": True}),
        (False, "token_mean", False, {"gradient_checkpointing": True,
                                      "gradient_checkpointing_kwargs": {"use_reentrant": False}}),
        (True, "token_mean", True, {"gradient_checkpointing": True}),
    ],
)  # fmt: skip
def test_the_memory_after_a_step_holds_what_scoring_gave_before_it(
    tmp_path: Path, lora: bool, loss: Any, padding_free: bool, settings: dict[str, Any]
) -> None:
    coreset = CoresetConfig(scoring="remembered", loss=loss, padding_free=padding_free, pool_factor=3)
    model, data = trained_model(lora=lora, dtype=torch.float64), mixture()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    made = run(trainer(tmp_path, model, coreset, max_steps=1, train_dataset=data, **settings))
    made._run.update_memory()
    memory = made._run.scoring.memory
    ids = torch.tensor(sorted(memory._slots))
    assert len(ids) == 8
    model = trained_model(lora=lora, dtype=torch.float64)
    model.load_state_dict(before)
    scorer = LastLayer()
    rows = data.remove_columns("source")
    scores = scorer.run(model, Collator()([rows[i] for i in ids.tolist()]), loss=loss, seed=coreset.seed)
    found = memory.recall(ids, scores.tokens, 1, 1)
    assert found.known.all()
    sizes = scores.features.norm(dim=1)
    torch.testing.assert_close(found.sizes, sizes, rtol=1e-5, atol=0)
    expected = memory.narrow(scores.features)
    assert float(((found.features - expected).norm(dim=1) / sizes).max()) < 2e-3  # half precision
    assert float(F.cosine_similarity(found.features, expected).min()) > 1 - 1e-5

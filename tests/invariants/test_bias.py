"""Given the pool, the mean over seeds of what the default trains is the pool's gradient: bias^2 at most 2 % of its
error.

An estimate without any bias has a mean over K draws that is off by its error / K; that much is taken off. Features are
computed once a pool, by the trainer; every seed then goes through the trainer's own choice and weights.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from corebatch.batch.weights import loss_weights
from corebatch.scoring import Scores
from corebatch.trainer import CoresetConfig, CoresetTrainer
from training import Collator, arguments, mixture, tiny_model

SEEDS = 300
MOST = 0.02


class Watching(CoresetTrainer):
    """Keeps what the last step chose from, and what it chose."""

    def _choose(self, pool: Any, plan: Any, scores: Any) -> Any:
        choice = super()._choose(pool, plan, scores)
        self.seen = (pool, plan, scores, choice)
        return choice


class Gradients(TrainerCallback):
    """Keeps the gradient that the last step stepped on."""

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
        self.flat = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.requires_grad])


def row_gradients(model: Any, data: Any) -> Tensor:
    """The gradient of each row's summed token loss, in order: float64 [N, parameters]."""
    model.eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    found = []
    for row in data:
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])
        logits = model(input_ids=ids).logits[0, :-1].double()
        loss = torch.nn.functional.cross_entropy(logits, labels[1:], ignore_index=-100, reduction="sum")
        found.append(torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, trained)]))
    return torch.stack(found)


def stepped(
    tmp_path: Any, model: Any, coreset: CoresetConfig, rows: int, steps: int, batch: int | None = None
) -> tuple[Watching, Any, Tensor]:
    """A trainer after some steps at a rate of zero, its data, and the gradient of the last of them.

    Args:
        batch: rows of a step; by default so many that a pool holds all rows.
    """
    data, gradients = mixture(rows, seed=1), Gradients()
    batch = batch or -(-rows // coreset.pool_factor)
    settings = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": 1}
    settings |= {"max_steps": steps, "learning_rate": 0.0, "max_grad_norm": 0.0}
    made = Watching(
        model=model,
        args=arguments(tmp_path, **settings),
        train_dataset=data,
        data_collator=Collator(),
        coreset=coreset,
        callbacks=[gradients],
    )
    made.train()
    return made, data, gradients.flat


def trained_share(
    tmp_path: Any,
    model: Any,
    coreset: CoresetConfig,
    *,
    rows: int = 16,
    steps: int = 1,
    batch: int | None = None,
    scored: Scores | None = None,
) -> float:
    """bias^2 over the error of the trained gradient, given the pool of the last step.

    Args:
        scored: features of the whole pool, where each seed scores other rows of it.
    """
    made, data, gradient = stepped(tmp_path, model, coreset, rows, steps, batch)
    pool, plan, scores, choice = made.seen
    tokens, budget = pool.tokens, plan.budget
    assert bool(pool.eligible.all())
    assert budget < len(tokens)
    each = row_gradients(model, data)[pool.ids]
    large = each.sum(0) / tokens.sum() if coreset.loss == "token_mean" else (each / tokens[:, None]).mean(0)

    def estimate(choice: Any) -> Tensor:
        assert len(choice.selection) == budget
        weighted = made._run.method.selector.weighted
        made_of = (choice.selection.weights, choice.selection.indices, tokens)
        weights = loss_weights(*made_of, loss=coreset.loss, weighted=weighted, slots=1)
        given, whole = weights.rows, weights.denominator
        return (given.double()[:, None] * each[choice.selection.indices]).sum(0) / whole.double()

    def drawn(seed: int) -> Tensor:
        if scored is None:
            return estimate(made._run.scoring.choose(pool, plan, scores, seed, None))
        again = made._run.scoring.plan(pool, budget, seed)
        some = Scores(features=scored.features[again.exact], losses=None, tokens=tokens[again.exact])
        return estimate(made._run.scoring.choose(pool, again, some, seed, None))

    torch.testing.assert_close(gradient, estimate(choice), rtol=1e-3, atol=1e-6)  # that is what is trained
    return bias_share(torch.stack([drawn(seed) for seed in range(SEEDS)]), large)


def bias_share(draws: Tensor, target: Tensor) -> float:
    """bias^2 over the mean squared error, without what the mean over so many draws is off by chance."""
    off = float((draws.mean(0) - target).square().sum())
    error = float((draws - target).square().sum(1).mean())
    return (off - (error - off) / (len(draws) - 1)) / error


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("pool_factor", [2, 3])
def test_the_default_is_unbiased_given_a_small_pool(tmp_path: Any, lora: bool, pool_factor: int) -> None:
    settings = CoresetConfig(scoring="full", pool_factor=pool_factor)
    assert abs(trained_share(tmp_path, tiny_model(lora=lora), settings)) <= MOST


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_measure_finds_a_bias_where_there_is_one(tmp_path: Any, lora: bool) -> None:
    """`balanced` swaps, so nearly the same rows come out whatever the draw."""
    assert trained_share(tmp_path, tiny_model(lora=lora), CoresetConfig(scoring="full", selector="balanced")) > MOST


WAYS: dict[str, CoresetConfig] = {
    "by default": CoresetConfig(),
    "every row scored": CoresetConfig(scoring="full"),
    "half of it known": CoresetConfig(scoring={"way": "remembered", "unknown": "guess"}),
    "no scoring": CoresetConfig(scoring="none"),
    "an early exit": CoresetConfig(scoring={"way": "first_blocks", "blocks": 1}),
    "example mean": CoresetConfig(loss="example_mean", scoring="full"),
    "small sources kept": CoresetConfig(small_sources="auto"),
    "the optimizer's scale": CoresetConfig(normalise="optimizer"),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_default_is_unbiased_in_every_way(tmp_path: Any, way: str) -> None:
    """At the second step, when the memory knows the rows that were trained at the first."""
    assert abs(trained_share(tmp_path, tiny_model(), WAYS[way], rows=24, steps=2)) <= MOST


@pytest.mark.parametrize("rows", [21, 27])
def test_the_rest_of_an_epoch_is_unbiased(tmp_path: Any, rows: int) -> None:
    """The second pool has 5 or 11 rows, which the pool factor does not divide."""
    settings = CoresetConfig(scoring="full")
    assert abs(trained_share(tmp_path, tiny_model(), settings, rows=rows, steps=2, batch=8)) <= MOST


def test_two_phases_are_unbiased(tmp_path: Any) -> None:
    """Over both phases: every seed scores other rows."""
    made, _, _ = stepped(tmp_path / "full", tiny_model(), CoresetConfig(scoring="full"), 24, 1)
    settings = CoresetConfig(scoring={"way": "two_phase", "share": 0.75})
    assert abs(trained_share(tmp_path / "two", tiny_model(), settings, rows=24, scored=made.seen[2])) <= MOST

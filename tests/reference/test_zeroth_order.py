"""`zeroth_order` against a finite difference that really perturbs a copy's weight."""

from __future__ import annotations

import copy

import pytest
import torch
from autograd_twin import full_token_losses, per_example_gradients
from torch import Tensor

from corebatch.errors import UnsupportedModelError
from corebatch.scoring import ZerothOrder
from models import ARCHITECTURES, batch_for, tiny_batch, tiny_model, value_weights

FIXED_BATCH = ["gptbigcode", "gptbigcode_heads"]
# Norms and softmaxes that go through float32 round the loss; here nothing does.
EXACT = ["phi", "gpt2", "gptneox", "opt", "gptj"]


def differences(
    model: torch.nn.Module, batch: dict[str, Tensor], kind: str, scorer: ZerothOrder, seed: int, lora: bool
) -> tuple[Tensor, Tensor]:
    """[N, K] of (L_i(w + e z_k) - L_i(w - e z_k)) / 2e, and the losses' mean [N]."""
    columns = scorer.projection(model, batch).columns
    columns_of_factors, losses = [], []
    for k in range(scorer.num_directions):
        sides = []
        for sign in (1, -1):
            moved = copy.deepcopy(model)
            weight = value_weights(moved, kind)[-1].data
            weight = weight.T if kind == "gpt2" and not lora else weight  # a view; the weight itself changes
            rows = torch.arange(len(weight)) if columns is None else columns
            z = scorer.direction(len(rows), weight.shape[1], k, seed, weight)
            weight[rows] += sign * scorer.epsilon * z
            with torch.no_grad():
                sides.append(full_token_losses(moved, batch).sum(dim=1))
        columns_of_factors.append((sides[0] - sides[1]) / (2 * scorer.epsilon))
        losses.append((sides[0] + sides[1]) / 2)
    return torch.stack(columns_of_factors, dim=1), torch.stack(losses).mean(dim=0)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("directions", [1, 3])
@pytest.mark.parametrize("kind", [kind for kind in ARCHITECTURES if kind not in FIXED_BATCH])
def test_equals_a_real_perturbation(kind: str, directions: int, lora: bool) -> None:
    model, batch = tiny_model(kind, lora=lora), batch_for(kind)
    scorer = ZerothOrder(num_directions=directions)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected, losses = differences(model, batch, kind, scorer, 5, lora)
    tolerance = 1e-6 if kind in EXACT else 2e-3
    for unit in ("token_mean", "example_mean"):
        scores = scorer.run(model, batch, loss=unit, seed=5)
        tokens = scores.tokens.clamp(min=1).unsqueeze(1) if unit == "example_mean" else 1
        assert scores.features.shape == (5, directions)
        assert float(expected.norm()) > 1e-2
        assert float((scores.features - expected / tokens).norm()) <= tolerance * float((expected / tokens).norm())
        assert scores.losses is not None
        torch.testing.assert_close(scores.losses, losses, rtol=1e-7, atol=0.0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["mpt", "bloom", "falcon_alibi", "llama"])
@pytest.mark.parametrize("rows", [1, 4, 12])  # 4 heads, 12 tokens: shapes that look like rows
def test_any_number_of_rows(kind: str, rows: int) -> None:
    model, batch = tiny_model(kind), batch_for(kind, rows=rows)
    scorer = ZerothOrder()
    expected, _ = differences(model, batch, kind, scorer, 0, False)
    found = scorer.run(model, batch).features
    assert float((found - expected).norm()) <= 2e-3 * float(expected.norm())


def test_a_small_step_is_the_gradient_along_the_direction() -> None:
    model, batch = tiny_model("gpt2", lora=True), tiny_batch()
    scorer = ZerothOrder(epsilon=1e-4, num_directions=2)
    found = scorer.run(model, batch, seed=1).features
    weight = value_weights(model, "gpt2")[-1]
    (gradients,) = per_example_gradients(model, batch, [weight])
    columns = scorer.projection(model, batch).columns
    assert columns is not None
    for k in range(2):
        z = scorer.direction(len(columns), weight.shape[1], k, 1, weight)
        along = (gradients[:, columns] * z).sum(dim=(1, 2))
        torch.testing.assert_close(found[:, k], along, rtol=1e-5, atol=1e-8)


def test_directions_are_the_same_at_every_step_and_differ_by_seed_and_number() -> None:
    model, batch = tiny_model("phi"), tiny_batch()
    one, scorer = ZerothOrder(num_directions=2), ZerothOrder(num_directions=2)
    scorer.run(model, batch, seed=8)
    again = scorer.run(model, batch, seed=7).features
    assert torch.equal(one.run(model, batch, seed=7).features, again)
    assert not torch.allclose(again, scorer.run(model, batch, seed=8).features)
    assert not torch.allclose(again[:, 0], again[:, 1])


@pytest.mark.parametrize("kind", FIXED_BATCH)
def test_a_model_that_restores_the_number_of_rows_is_an_error(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=r"GPTBigCodeForCausalLM.*last_layer"):
        ZerothOrder().score(tiny_model(kind), batch_for(kind))


def test_a_last_block_in_low_precision_is_an_error() -> None:
    with pytest.raises(UnsupportedModelError, match=r"torch\.bfloat16"):
        ZerothOrder().score(tiny_model("llama", dtype=torch.bfloat16), tiny_batch())


def test_adapters_switched_off_since_the_first_batch_are_an_error() -> None:
    model, batch, scorer = tiny_model("llama", lora=True), tiny_batch(), ZerothOrder()
    scorer.score(model, batch)
    model.base_model.disable_adapter_layers()
    with pytest.raises(UnsupportedModelError, match="Found 0"):
        scorer.score(model, batch)

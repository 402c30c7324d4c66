"""`last_layer` against a loop over examples in float64, for every architecture; and which columns are values."""

from __future__ import annotations

import pytest
import torch
from autograd_twin import full_token_losses, per_example_gradients
from torch import Tensor, nn

from corebatch.errors import UnsupportedModelError
from corebatch.model.projections import ValueProjection, executed_value_projections, value_columns
from corebatch.scoring import LastLayer
from models import ARCHITECTURES, FUSED, HEADS, adapted, batch_for, tiny_batch, tiny_model, value_modules, value_weights

LORA = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


def flat(gradients: list[Tensor], kind: str, lora: bool, projections: tuple[ValueProjection, ...]) -> Tensor:
    """[N, P] as features are laid out: blocks in order, each [outputs, inputs] cut to the values' outputs."""
    parts = []
    for gradient, projection in zip(gradients, projections, strict=True):
        if kind == "gpt2" and not lora:
            gradient = gradient.transpose(1, 2)
        parts.append(gradient if projection.columns is None else gradient[:, projection.columns])
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-8) -> None:
    assert found.shape == expected.shape
    assert float(expected.norm(dim=1).max()) > 1e-3, "the case shows nothing"
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


@LORA
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_equals_a_loop_over_examples(kind: str, lora: bool) -> None:
    model, batch = tiny_model(kind, lora=lora), batch_for(kind)
    expected_losses = full_token_losses(model, batch).sum(dim=1)
    for unit in ("token_mean", "example_mean"):
        gradients = per_example_gradients(model, batch, value_weights(model, kind)[-2:], unit)
        for blocks in (1, 2):
            scorer = LastLayer(num_blocks=blocks)
            scores = scorer.run(model, batch, loss=unit)
            projections = scorer.projections(model, batch)
            assert_close(scores.features, flat(gradients[-blocks:], kind, lora, projections))
            assert scores.losses is not None
            torch.testing.assert_close(scores.losses, expected_losses, rtol=1e-10, atol=0.0)
    assert scores.tokens.tolist() == (batch["labels"][:, 1:] != -100).sum(dim=1).tolist()


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptneox"])
@pytest.mark.parametrize(
    "padding, attention",
    [({"left": True, "pad": 3}, "sdpa"), ({}, "eager")],  # eager softmax is in float32: -1.8e308 would be -inf there
    ids=["left", "eager"],
)
def test_other_padding_and_attention(kind: str, padding: dict[str, int], attention: str) -> None:
    model, batch = tiny_model(kind, lora=True, attn_implementation=attention), batch_for(kind, **padding)
    scorer = LastLayer(num_blocks=2)
    gradients = per_example_gradients(model, batch, value_weights(model, kind)[-2:])
    found = scorer.score(model, batch)
    assert_close(found, flat(gradients, kind, True, scorer.projections(model, batch)))


@pytest.mark.parametrize("blocks", [3, 7])
def test_all_blocks_if_there_are_fewer(blocks: int) -> None:
    model, batch = tiny_model("llama"), tiny_batch()
    scorer = LastLayer(num_blocks=blocks)
    gradients = per_example_gradients(model, batch, value_weights(model, "llama"))
    assert_close(scorer.score(model, batch), flat(gradients, "llama", False, scorer.projections(model, batch)))


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj", "o_proj", "down_proj"]},
        {"target_modules": "all-linear"},
        {"use_rslora": True},
        {"use_dora": True},
        {"layers_to_transform": [2]},
        {"modules_to_save": ["lm_head"]},
        {"target_modules": ["v_proj", "lm_head"]},
    ],
    ids=lambda settings: ",".join(f"{key}={value}" for key, value in settings.items()),
)
def test_other_ways_of_adapting(settings: dict[str, object]) -> None:
    model, batch = adapted(tiny_model("llama"), "llama", **settings).eval(), tiny_batch()
    scorer = LastLayer(num_blocks=2)
    gradients = per_example_gradients(model, batch, value_weights(model, "llama")[-2:])
    assert_close(scorer.score(model, batch), flat(gradients, "llama", True, scorer.projections(model, batch)))


def test_a_projection_that_is_not_adapted_counts_as_itself() -> None:
    model, batch = adapted(tiny_model("llama"), "llama", target_modules=["q_proj"]).eval(), tiny_batch()
    scorer = LastLayer(num_blocks=2)
    gradients = per_example_gradients(model, batch, [m.weight for m in value_modules(model, "llama")[-2:]])
    assert_close(scorer.score(model, batch), flat(gradients, "llama", False, scorer.projections(model, batch)))


@pytest.mark.parametrize("change", ["merge", "disable"])
def test_adapters_switched_off_since_the_first_batch_are_an_error(change: str) -> None:
    model, batch, scorer = tiny_model("llama", lora=True), tiny_batch(), LastLayer()
    scorer.score(model, batch)
    if change == "merge":
        model.merge_adapter()
    else:
        model.base_model.disable_adapter_layers()
    with pytest.raises(UnsupportedModelError, match="Found 0"):
        scorer.score(model, batch)


def test_a_new_model_is_traced_anew() -> None:
    """Also at the address of one that is gone."""
    batch, scorer = tiny_batch(), LastLayer(num_blocks=1)
    for seed in range(4):
        model = tiny_model("llama", seed=seed)
        assert torch.equal(scorer.score(model, batch), LastLayer(num_blocks=1).score(model, batch))
        assert scorer.projections(model, batch)[0].hooked is value_modules(model, "llama")[-1]
        del model


# Which columns are values


def attention_context(
    model: nn.Module, batch: dict[str, Tensor], kind: str, change: dict[str, Tensor] | None = None
) -> Tensor:
    """The input of the last block's output projection, with some columns of its value projection multiplied."""
    name = [n for n, _ in model.named_modules() if n.rsplit(".", 1)[-1] == ARCHITECTURES[kind].value][-1]
    seen: list[Tensor] = []

    def multiply(module: nn.Module, args: object, output: Tensor) -> Tensor:
        return output if change is None else output * change["factors"]

    outer = model.get_submodule(name.rsplit(".", 1)[0])
    handles = [
        model.get_submodule(name).register_forward_hook(multiply),
        outer.get_submodule(ARCHITECTURES[kind].output).register_forward_pre_hook(lambda _, args: seen.append(args[0])),
    ]
    try:
        with torch.no_grad():
            model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen[-1]


@pytest.mark.parametrize("kind", FUSED)
def test_values_are_the_columns_that_the_context_is_linear_in(kind: str) -> None:
    model, batch = tiny_model(kind), batch_for(kind, rows=3)
    (projection,) = executed_value_projections(model, batch, 1)
    columns = projection.columns
    assert columns is not None
    width = next(getattr(projection.hooked, key) for key in ("out_features", "nf") if hasattr(projection.hooked, key))

    def factors(value: float, *, others: bool = False) -> dict[str, Tensor]:
        result = torch.full((width,), value if others else 1.0, dtype=torch.float64)
        result[columns] = 1.0 if others else value
        return {"factors": result}

    plain = attention_context(model, batch, kind)
    assert bool((attention_context(model, batch, kind, factors(0.0)) == 0).all())
    # Exactly twice: the attention's pattern does not depend on these columns.
    assert torch.equal(attention_context(model, batch, kind, factors(2.0)), 2 * plain)
    rest = attention_context(model, batch, kind, factors(0.0, others=True))
    assert not torch.allclose(rest, plain, rtol=1e-2)
    assert bool((rest != 0).any())


@pytest.mark.parametrize("kind, model_type, width", [("qkv_proj", "codegen", 96), ("qkv_proj", "minimax", 96)])
def test_a_layout_that_is_not_known_is_an_error(kind: str, model_type: str, width: int) -> None:
    class Config:
        num_attention_heads, num_key_value_heads, head_dim, hidden_size = HEADS, HEADS, 8, 32

    Config.model_type = model_type  # type: ignore[attr-defined]
    with pytest.raises(UnsupportedModelError, match=f"'{kind}' with {width} columns.*'{model_type}'"):
        value_columns(kind, width, Config)


# The two-sided sketch of large projections


def sketched(model: nn.Module, batch: dict[str, Tensor], seed: int, **options: int) -> Tensor:
    return LastLayer(num_blocks=1, **options).run(model, batch, seed=seed).features


def test_a_sketch_keeps_inner_products_in_expectation() -> None:
    model, batch = tiny_model("phi"), tiny_batch()
    exact = LastLayer(num_blocks=1).score(model, batch)
    truth = exact @ exact.T
    draws = []
    for seed in range(400):
        features = sketched(model, batch, seed, max_dim=100, projection_dim=8)
        assert features.shape == (5, 64)
        draws.append(features @ features.T)
    products = torch.stack(draws)
    error, spread = products.mean(dim=0) - truth, products.std(dim=0) / len(draws) ** 0.5
    assert bool((error.abs() <= 4 * spread).all())
    assert float(spread.max()) < 0.1 * float(truth.max())


def test_a_sketch_is_reproducible_and_depends_on_the_seed_alone() -> None:
    model, batch = tiny_model("phi"), tiny_batch()
    options = {"max_dim": 100, "projection_dim": 8}
    first = sketched(model, batch, 3, **options)
    torch.rand(7)
    assert torch.equal(first, sketched(model, batch, 3, **options))
    assert not torch.allclose(first, sketched(model, batch, 4, **options))
    scorer = LastLayer(num_blocks=1, **options)
    scorer.run(model, batch, seed=4)
    assert torch.equal(first, scorer.run(model, batch, seed=3).features)


@pytest.mark.parametrize("max_dim, columns", [(32 * 32, 32 * 32), (32 * 32 - 1, 8 * 8)])
def test_exact_up_to_max_dim(max_dim: int, columns: int) -> None:
    model, batch = tiny_model("phi"), tiny_batch()
    found = sketched(model, batch, 0, max_dim=max_dim, projection_dim=8)
    assert found.shape == (5, columns)
    if columns == 32 * 32:
        assert torch.equal(found, LastLayer(num_blocks=1).score(model, batch))


def test_a_side_that_is_narrow_is_not_sketched() -> None:
    model, batch = tiny_model("phi", lora=True), tiny_batch()
    found = sketched(model, batch, 0, max_dim=10, projection_dim=8)
    assert found.shape == (5, 8 * 3)

"""What every scorer promises, on three architectures, adapted and not. New scorers are found through SCORERS."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel

from corebatch.errors import CorebatchError, UnsupportedModelError
from corebatch.scoring import SCORERS, Scorer
from models import VOCABULARY, batch_for, take, tiny_batch, tiny_model

KINDS = ("llama", "phi", "gpt2")
WITH_FORWARD = [name for name in SCORERS if SCORERS[name].needs_forward]
OF_PROJECTIONS = ["gradient_norm", "last_layer", "zeroth_order"]
NOT_OF_THE_LOSS = {"length", "representation"}  # a row without a trained token has them too

EVERY = pytest.mark.parametrize("name", SCORERS)
MODELS = pytest.mark.parametrize("kind, lora", [(kind, lora) for kind in KINDS for lora in (False, True)])


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


@EVERY
@MODELS
@pytest.mark.parametrize("unit", ["token_mean", "example_mean"])
def test_one_finite_row_an_example(name: str, kind: str, lora: bool, unit: Any) -> None:
    model, batch = tiny_model(kind, lora=lora), batch_for(kind)
    scores = SCORERS[name]().run(model, batch, loss=unit)
    assert scores.features.ndim == 2
    assert scores.features.shape[0] == 5
    assert scores.features.is_floating_point()
    assert bool(torch.isfinite(scores.features).all())
    assert float(scores.features.abs().max()) > 0
    assert not scores.features.requires_grad
    assert scores.tokens.tolist() == (batch["labels"][:, 1:] != -100).sum(dim=1).tolist()
    assert (scores.losses is not None) == SCORERS[name].needs_forward
    if scores.losses is not None:
        own = model(**take(batch, slice(0, 1))).loss * scores.tokens[0]
        assert scores.losses.shape == (5,)
        assert not scores.losses.requires_grad
        assert scores.losses[0].item() == pytest.approx(own.item(), rel=1e-5)
    if unit == "token_mean":
        assert torch.equal(SCORERS[name]().score(model, batch), scores.features)


# No trace


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def hooks(model: nn.Module) -> list[tuple[int, ...]]:
    keys = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return [tuple(len(getattr(module, key)) for key in keys) for module in model.modules()]


def random_states() -> list[Any]:
    _, keys, position, *_ = np.random.get_state()  # noqa: NPY002 (the global state is what is watched)
    return [torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), position]


def everything(model: nn.Module) -> dict[str, Any]:
    return {
        "weights": {key: value.clone() for key, value in model.state_dict().items()},
        "gradients": {
            key: None if p.grad is None else (id(p.grad), p.grad.clone()) for key, p in model.named_parameters()
        },
        "requires_grad": {key: p.requires_grad for key, p in model.named_parameters()},
        "parameters": [id(p) for p in model.parameters()],
        "modes": modes(model),
        "hooks": hooks(model),
        "random": random_states(),
        "grad mode": torch.is_grad_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "attributes": [sorted(vars(module)) for module in model.modules()],
    }


def assert_same_state(model: nn.Module, before: dict[str, Any]) -> None:
    after = everything(model)
    for what in ("requires_grad", "parameters", "modes", "hooks", "random", "grad mode", "autocast", "attributes"):
        assert after[what] == before[what], what
    assert all(torch.equal(value, before["weights"][key]) for key, value in after["weights"].items())
    for key, value in after["gradients"].items():
        expected = before["gradients"][key]
        assert (value is None) == (expected is None), key
        assert value is None or (value[0] == expected[0] and torch.equal(value[1], expected[1])), key


def in_use(kind: str, lora: bool) -> Any:
    """A model in the middle of training: dropout, gradients there, one module put in evaluation mode by its user."""
    model = tiny_model(kind, lora=lora, dropout=0.3).train()
    for number, parameter in enumerate(model.parameters()):
        if parameter.requires_grad and number % 2:
            parameter.grad = torch.full_like(parameter, 0.5)
    blocks(model)[1].eval()
    return model


def blocks(model: nn.Module) -> nn.ModuleList:
    return next(module for module in model.modules() if isinstance(module, nn.ModuleList))


@EVERY
@MODELS
@pytest.mark.parametrize("gradients", [True, False])
def test_the_model_is_left_as_it_was(name: str, kind: str, lora: bool, gradients: bool) -> None:
    model, batch = in_use(kind, lora), batch_for(kind)
    given = {key: value.clone() for key, value in batch.items()}
    with torch.set_grad_enabled(gradients):
        before = everything(model)
        SCORERS[name]().score(model, batch)
        assert_same_state(model, before)
    assert batch.keys() == given.keys()
    assert all(torch.equal(batch[key], given[key]) for key in given)


class Boom(Exception):
    pass


def boom(*_: Any) -> None:
    raise Boom


@pytest.mark.parametrize("name", WITH_FORWARD)
@MODELS
@pytest.mark.parametrize("where", ["first block", "last block", "head", "second call"])
def test_also_if_the_forward_raises(name: str, kind: str, lora: bool, where: str) -> None:
    model, batch, scorer = in_use(kind, lora), batch_for(kind), SCORERS[name]()
    if where == "second call":  # everything is traced by then
        scorer.score(model, batch)
    if where == "first block":
        blocks(model)[0].register_forward_pre_hook(boom)
    elif where == "head":
        model.get_output_embeddings().register_forward_pre_hook(boom)
    else:
        blocks(model)[-1].register_forward_hook(boom)
    before = everything(model)
    with pytest.raises(Boom):
        scorer.score(model, batch)
    assert_same_state(model, before)


@EVERY
@MODELS
def test_the_same_call_gives_the_same_bits(name: str, kind: str, lora: bool) -> None:
    model, batch, scorer = tiny_model(kind, lora=lora, dtype=torch.float32), batch_for(kind), SCORERS[name]()
    first = scorer.run(model, batch, seed=2).features
    torch.rand(3)
    assert torch.equal(scorer.run(model, batch, seed=2).features, first)
    assert torch.equal(SCORERS[name]().run(model, batch, seed=2).features, first)


# Rows stand for themselves


@EVERY
@MODELS
def test_a_row_scored_alone_is_the_row_scored_with_others(name: str, kind: str, lora: bool) -> None:
    model, batch, scorer = tiny_model(kind, lora=lora), batch_for(kind), SCORERS[name]()
    together = scorer.run(model, batch)
    alone = [scorer.run(model, take(batch, [row])) for row in range(5)]
    assert_near(torch.cat([scores.features for scores in alone]), together.features)
    order = [3, 0, 4]
    assert_near(scorer.score(model, take(batch, order)), together.features[order])
    if together.losses is not None:
        torch.testing.assert_close(torch.cat([s.losses for s in alone if s.losses is not None]), together.losses)


@EVERY
@MODELS
@pytest.mark.parametrize("padding", [{"pad": 5}, {"left": True}, {"left": True, "pad": 4}], ids=str)
def test_padding_does_not_matter(name: str, kind: str, lora: bool, padding: dict[str, Any]) -> None:
    model, scorer = tiny_model(kind, lora=lora), SCORERS[name]()
    expected = scorer.score(model, batch_for(kind))
    assert_near(scorer.score(model, batch_for(kind, **padding)), expected)


@pytest.mark.parametrize("name", [name for name in SCORERS if name not in NOT_OF_THE_LOSS])
@MODELS
def test_a_row_without_a_trained_token_is_zero(name: str, kind: str, lora: bool) -> None:
    model, batch = tiny_model(kind, lora=lora), batch_for(kind)
    scores = SCORERS[name]().run(model, batch)
    assert scores.tokens[3] == 0
    assert bool((scores.features[3] == 0).all())
    assert bool((scores.features[[0, 1, 2, 4]] != 0).any(dim=1).all())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    nothing = SCORERS[name]().run(model, batch, loss="example_mean")
    assert bool((nothing.features == 0).all())
    assert nothing.losses is None or bool((nothing.losses == 0).all())


# Ways of training


@EVERY
@MODELS
def test_autocast(name: str, kind: str, lora: bool) -> None:
    model, batch = tiny_model(kind, lora=lora, dtype=torch.float32), batch_for(kind)
    exact = SCORERS[name]().run(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = everything(model)
        scores = SCORERS[name]().run(model, batch)
        assert_same_state(model, before)
    assert scores.features.dtype == torch.float32
    assert bool(torch.isfinite(scores.features).all())
    assert_near(scores.features, exact.features, 0.5 if name == "zeroth_order" else 0.1)
    if scores.losses is not None:
        assert exact.losses is not None
        torch.testing.assert_close(scores.losses, exact.losses, rtol=0.05, atol=0.05)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")  # its name in 4.57
@EVERY
@MODELS
def test_training_mode_dropout_and_checkpointing_change_nothing(name: str, kind: str, lora: bool) -> None:
    batch = batch_for(kind)
    expected = SCORERS[name]().score(tiny_model(kind, lora=lora), batch)
    model = tiny_model(kind, lora=lora, dropout=0.5).train()
    assert torch.equal(SCORERS[name]().score(model, batch), expected)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    assert torch.equal(SCORERS[name]().score(model, batch), expected)
    model(**batch).loss.backward()  # and training goes on


@pytest.mark.parametrize("name", WITH_FORWARD)
def test_frozen_and_trained_weights_score_alike(name: str) -> None:
    batch, model = tiny_batch(), tiny_model("llama")
    expected = SCORERS[name]().score(model, batch)
    assert torch.equal(SCORERS[name]().score(model.requires_grad_(False), batch), expected)


@EVERY
def test_tags_of_the_loader_and_weights_are_not_inputs(name: str) -> None:
    model, batch = tiny_model("llama"), tiny_batch()
    expected = SCORERS[name]().score(model, batch)
    more = {"corebatch_id": torch.arange(5), "corebatch_source": torch.zeros(5), "loss_weights": torch.ones(5)}
    assert torch.equal(SCORERS[name]().score(model, {**batch, **more}), expected)


# Errors


def bad_batches() -> Iterator[tuple[str, dict[str, Tensor], str]]:
    batch = tiny_batch()
    yield "no labels", {key: batch[key] for key in ("input_ids", "attention_mask")}, "['attention_mask', 'input_ids']"
    yield "no input_ids", {"labels": batch["labels"]}, "['labels']"
    yield "empty", {}, "[]"
    yield "short labels", {**batch, "labels": batch["labels"][:, 1:]}, "(5, 12) and (5, 11)"
    yield "fewer labels", {**batch, "labels": batch["labels"][:4]}, "(5, 12) and (4, 12)"
    yield "one row", {key: value[0] for key, value in batch.items()}, "(12,) and (12,)"


@EVERY
@pytest.mark.parametrize("batch, found", [pytest.param(b, f, id=i) for i, b, f in bad_batches()])
def test_a_batch_that_is_none_is_an_error(name: str, batch: dict[str, Tensor], found: str) -> None:
    with pytest.raises(CorebatchError) as caught:
        SCORERS[name]().score(tiny_model("llama"), batch)
    assert isinstance(caught.value, ValueError)
    assert found in str(caught.value)


@pytest.mark.parametrize("name", OF_PROJECTIONS)
def test_a_model_without_a_known_value_projection_is_an_error_that_lists_what_ran(name: str) -> None:
    config = BertConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        is_decoder=True,
    )  # fmt: skip
    with pytest.raises(UnsupportedModelError, match=r"BertLMHeadModel executed .*attention\.self\.value"):
        SCORERS[name]().score(BertLMHeadModel(config), tiny_batch())


@pytest.mark.parametrize("name", WITH_FORWARD)
def test_a_model_without_a_head_is_an_error(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match="LlamaModel has none"):
        SCORERS[name]().score(tiny_model("llama").model, tiny_batch())


def test_the_repr_shows_the_options() -> None:
    scorer: Scorer = SCORERS["last_layer"](num_blocks=2)
    assert repr(scorer) == "LastLayer(num_blocks=2, projection_dim=64, max_dim=16384)"


@pytest.mark.parametrize(
    "name, option, value",
    [
        *[
            ("last_layer", option, value)
            for option in ("num_blocks", "projection_dim", "max_dim")
            for value in (0, 1.5)
        ],
        ("last_layer", "num_blocks", True),
        *[("zeroth_order", "num_directions", value) for value in (0, -1, 2.0, True, "1")],
        *[("zeroth_order", "epsilon", value) for value in (0, -1e-3, float("nan"), float("inf"), "1e-3", None)],
    ],
)
def test_an_option_out_of_range_is_an_error(name: str, option: str, value: object) -> None:
    with pytest.raises(CorebatchError) as caught:
        SCORERS[name](**{option: value})
    assert f"{name}'s {option} should be" in str(caught.value)
    assert repr(value) in str(caught.value)

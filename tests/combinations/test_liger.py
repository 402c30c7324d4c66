"""Liger kernels: a weighted step calls the model without labels, so that its fused loss leaves the head to us.

Liger's kernels are Triton's. Without a GPU the one that matters here, the fused loss, runs in Triton's interpreter; the
others do not. Where Liger is not installed, a forward of the same shape stands in for it.
"""

import importlib.util
import os
from types import MethodType

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from corebatch.errors import UnsupportedModelError
from corebatch.model.weighted_loss import weighted_loss
from corebatch.scoring import SCORERS, make_scorer
from corebatch.trainer import CoresetConfig
from training import VOCABULARY, Collator, largest_difference, mixture, run, tiny_model, trainer, weights

of_liger = pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning",  # Triton's interpreter with NumPy below 2.4
    "ignore:`past_key_values`.*:FutureWarning",  # Liger's forward of a Llama, with transformers 5.2x
)


def installed():
    return all(importlib.util.find_spec(name) is not None for name in ("liger_kernel", "triton"))


FUSED_ALONE = {"rope": False, "rms_norm": False, "swiglu": False, "fused_linear_cross_entropy": True}


@pytest.fixture
def liger(monkeypatch):
    """Settings of TrainingArguments that switch Liger on."""
    if not installed():
        pytest.skip("liger-kernel and triton are not installed")
    if torch.cuda.is_available():
        return {"use_liger_kernel": True, "use_cpu": False}
    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("without a GPU Liger runs in Triton's interpreter alone: set TRITON_INTERPRET=1")
    return {"use_liger_kernel": True, "liger_kernel_config": FUSED_ALONE}


def with_fused_loss(model, *, calls_head=True):
    """The model with a forward as Liger gives it: in training a loss straight from the head's weight, if there are
    labels; else the head is called (`calls_head`) or not even then."""
    fused = []

    def forward(self, input_ids=None, attention_mask=None, labels=None, num_items_in_batch=None, **rest):
        rest.pop("use_cache", None)
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).last_hidden_state
        skip = self.training and labels is not None
        if skip or not calls_head:
            logits = hidden @ self.lm_head.weight.T
            fused.append(len(input_ids))
        else:
            logits = self.lm_head(hidden)
        loss = None
        if labels is not None:
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100,
                reduction="mean" if num_items_in_batch is None else "sum",
            )  # fmt: skip
            loss = loss if num_items_in_batch is None else loss / num_items_in_batch
        return CausalLMOutputWithPast(loss=loss, logits=None if skip else logits)

    model.forward = MethodType(forward, model)
    return fused


@pytest.mark.parametrize("selector", ["balanced", "random"])
def test_weights_are_those_without_a_fused_loss(tmp_path, selector):
    coreset = CoresetConfig(selector=selector)
    plain = run(trainer(tmp_path / "plain", tiny_model(lora=False), coreset))
    model = tiny_model(lora=False)
    fused = with_fused_loss(model)
    made = run(trainer(tmp_path / "fused", model, coreset))
    assert largest_difference(weights(plain), weights(made)) < 1e-6
    assert bool(fused) == (selector == "random")  # uniform: the model's own loss, Liger's that is


@pytest.mark.parametrize("way", ["scored", "trained"])
def test_a_forward_that_never_calls_its_head_is_refused(tmp_path, way):
    model = tiny_model(lora=False)
    with_fused_loss(model, calls_head=False)
    scoring = "full" if way == "scored" else "none"
    with pytest.raises(UnsupportedModelError, match=r"liger_kernel_config: \{fused_linear_cross_entropy: false\}"):
        run(trainer(tmp_path, model, CoresetConfig(scoring=scoring)))


@pytest.mark.parametrize("scorer", [name for name, kind in SCORERS.items() if kind.needs_forward])
def test_every_scorer_names_the_cause(scorer):
    model = tiny_model(lora=False)
    with_fused_loss(model, calls_head=False)
    with pytest.raises(UnsupportedModelError, match="fused"):
        make_scorer(scorer).score(model, Collator()(list(mixture(4))))


def test_our_loss_is_not_the_kernel_that_liger_puts_in_the_place_of_cross_entropy(monkeypatch):
    model = tiny_model()
    batch = {key: value for key, value in Collator()(list(mixture(4))).items() if key != "source"}
    tokens = (batch["labels"][:, 1:] != -100).sum()
    expected = model(**batch).loss * tokens

    def broken(*_, **__):
        raise AssertionError("Liger's kernel was called")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", broken)
    losses = make_scorer("last_layer").run(model, batch).losses
    loss, _ = weighted_loss(model, model, batch, torch.ones(4))
    torch.testing.assert_close(losses.sum(), expected)
    torch.testing.assert_close(loss, expected)


@of_liger
@pytest.mark.parametrize("selector", ["balanced", "random"])
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_liger_itself(tmp_path, liger, selector, lora):
    def settings():
        return {**liger, "max_steps": 3, "eval_strategy": "epoch", "extra": {"eval_dataset": mixture(8, seed=5)}}

    coreset = CoresetConfig(selector=selector)
    plain = trainer(tmp_path / "plain", tiny_model(lora=lora), coreset, **{**settings(), "use_liger_kernel": False})
    run(plain)
    made = run(trainer(tmp_path / "liger", tiny_model(lora=lora), coreset, **settings()))
    base = made.model.get_base_model() if lora else made.model
    assert "liger" in base.forward.__func__.__module__
    assert base.lm_head.out_features == VOCABULARY
    assert largest_difference(weights(plain), weights(made)) < 1e-4


@of_liger
def test_liger_s_cross_entropy_kernel(tmp_path, liger):
    kernel = {**FUSED_ALONE, "fused_linear_cross_entropy": False, "cross_entropy": True}
    usual = torch.nn.functional.cross_entropy
    plain = run(trainer(tmp_path / "plain", max_steps=2))
    try:
        made = run(trainer(tmp_path / "liger", **{**liger, "liger_kernel_config": kernel, "max_steps": 2}))
        assert torch.nn.functional.cross_entropy is not usual
    finally:
        torch.nn.functional.cross_entropy = usual
    assert largest_difference(weights(plain), weights(made)) < 1e-6

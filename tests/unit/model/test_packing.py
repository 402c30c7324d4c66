"""Packed rows train what padded rows train, for the models that `check_packing` lets pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from packaging.version import Version
from peft import PromptTuningConfig, get_peft_model
from torch import Tensor, nn
from transformers import Lfm2Config, Lfm2ForCausalLM, MambaConfig, MambaForCausalLM

from corebatch.model.head import logit_map
from corebatch.model.head_loss import weighted_token_loss
from corebatch.model.packing import check_packing, packing_unfit
from corebatch.model.rows import Padding, pack_together, put_together, take_rows
from corebatch.model.weighted_loss import weighted_loss
from corebatch.types import ID, SOURCE
from models import ARCHITECTURES, HIDDEN, TOKENS, VOCABULARY, batch_for, in_micro_batches, take, tiny_batch, tiny_model

NO_POSITIONS = ("bloom", "mpt")
FALCONS = ("falcon", "falcon_multi_query", "falcon_new", "falcon_alibi")
UNREAD = ("opt",) if Version(transformers.__version__) >= Version("5.24") else ("opt", *FALCONS)
"""They take position_ids, but their mask does not; Falcon's does from transformers 5.24."""
PACKED = [kind for kind in ARCHITECTURES if kind not in (*NO_POSITIONS, *UNREAD)]
FLOAT32_INSIDE = ("gemma", "gemma2", "gemma3", "cohere")
"""Their norms or their softmax are in float32 whatever the model's type."""
WEIGHTS = torch.tensor([1.0, 0.3, 2.0, 1.7, 0.5], dtype=torch.float64)


def rows_for(kind: str, **settings: Any) -> list[dict[str, Tensor]]:
    batch = batch_for(kind, **settings)
    batch |= {ID: torch.arange(5), SOURCE: torch.zeros(5, dtype=torch.long)}
    return take_rows([batch], range(5))


def loss_by_hand(model: Any, batch: dict[str, Tensor], weights: Tensor) -> Tensor:
    """The weighted loss of padded rows from full logits, in their own precision."""
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False).logits[:, :-1]
    losses = nn.functional.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    return (losses.sum(dim=1) * weights).sum()


def loss_and_gradients(
    model: Any, rows: list[dict[str, Tensor]], weights: Tensor, *, packed: bool, left: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """Of two micro-batches' weighted losses together."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    made = in_micro_batches(rows, weights, 2, Padding(token=0, left=left), rows[0], packed=packed, numbers=range(5))
    losses = [weighted_loss(model, model, batch, batch.pop("loss_weights"))[0] for batch in made]
    assert [len(batch["input_ids"]) for batch in made] == ([1, 1] if packed else [3, 2])
    total = torch.stack(losses).sum()
    return total, list(torch.autograd.grad(total, trained))


# Equality


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", PACKED)
def test_packed_equals_padded(kind: str, lora: bool) -> None:
    model, rows, bound = tiny_model(kind, lora=lora), rows_for(kind), 1e-6 if kind in FLOAT32_INSIDE else 1e-10
    found, gradients = loss_and_gradients(model, rows, WEIGHTS, packed=True)
    expected, wanted = loss_and_gradients(model, rows, WEIGHTS, packed=False)
    torch.testing.assert_close(found, expected, rtol=bound, atol=0.0)
    for one, other in zip(gradients, wanted, strict=True):
        assert float((one - other).norm()) <= bound * max(1.0, float(other.norm()))
    torch.testing.assert_close(found, loss_by_hand(model, batch_for(kind), WEIGHTS), rtol=bound, atol=0.0)


@pytest.mark.parametrize(
    "kind, attention",
    [
        ("llama", "sdpa"),
        ("llama", "eager"),
        ("mistral", "sdpa"),
        ("gemma2", "eager"),
        ("gpt2", "sdpa"),
        ("gpt2", "eager"),
    ],
)
def test_packed_equals_padded_on_the_left(kind: str, attention: str) -> None:
    """In float32, since in float64 a padded row's eager attention is NaN in transformers."""
    model = tiny_model(kind, attn_implementation=attention, dtype=torch.float32)
    rows = rows_for(kind, left=True)
    found, gradients = loss_and_gradients(model, rows, WEIGHTS, packed=True)
    expected, wanted = loss_and_gradients(model, rows, WEIGHTS, packed=False, left=True)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
    for one, other in zip(gradients, wanted, strict=True):
        assert float((one - other).norm()) <= 1e-4 * max(1.0, float(other.norm()))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_the_plain_loss_of_packed_rows_is_that_of_padded_rows(kind: str, training: bool) -> None:
    """A model whose configuration asks for a cache would let rows see each other: the batch says no."""
    model, rows = tiny_model(kind).train(training), rows_for(kind)
    model.config.use_cache = True
    items = torch.tensor(17.0)
    sums = []
    for packed in (True, False):
        made = in_micro_batches(rows, None, 2, Padding(token=0), rows[0], packed=packed)
        sums.append(sum(model(**batch, num_items_in_batch=items).loss for batch in made))
    torch.testing.assert_close(sums[0], sums[1], rtol=1e-6, atol=0.0)  # transformers' loss is in float32


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_weights_by_row_and_by_label(trained: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(4, 7, dtype=torch.float64).requires_grad_(trained)
    hidden = torch.randn(3, 6, 4, dtype=torch.float64, generator=generator).requires_grad_()
    labels = torch.randint(0, 7, (3, 6), generator=generator).masked_fill(
        torch.rand(3, 6, generator=generator) < 0.3, -100
    )
    rows, transform = torch.tensor([0.5, 2.0, 0.0]), logit_map(tiny_model())
    wanted_of = [hidden, *(head.parameters() if trained else [])]
    by_row = weighted_token_loss(head, hidden, labels, rows, transform)
    spread = rows.unsqueeze(1).repeat(1, 6)
    spread[:, 0] = 1e9  # the weight of a first label multiplies nothing
    by_label = weighted_token_loss(head, hidden, labels, spread, transform)
    assert torch.equal(by_row, by_label)
    pairs = zip(torch.autograd.grad(by_row, wanted_of), torch.autograd.grad(by_label, wanted_of), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    # Label t's weight is that of the loss of predicting it, from position t - 1.
    one_hot = torch.zeros(3, 6)
    one_hot[1, 4], labels[1, 4] = 3.0, 5
    expected = 3.0 * nn.functional.cross_entropy(head(hidden[1, 3]), torch.tensor(5))
    torch.testing.assert_close(weighted_token_loss(head, hidden, labels, one_hot, transform), expected)


# The verdict


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_the_verdict(kind: str, dtype: torch.dtype) -> None:
    model = tiny_model(kind, dtype=dtype, lora=True)
    unfit, reason = packing_unfit(model), check_packing(model, rows_for(kind))
    assert (unfit is not None) == (kind in NO_POSITIONS)
    assert (reason is None) == (kind in PACKED)
    if unfit is not None:
        assert unfit.startswith(f"{ARCHITECTURES[kind].name}ForCausalLM takes no position_ids")
    if reason is not None:
        assert f"{0.02 if dtype == torch.bfloat16 else 0.001} is allowed" in reason


@pytest.mark.parametrize("kind", UNREAD)
def test_what_is_refused_is_wrong_indeed(kind: str) -> None:
    model, rows = tiny_model(kind), rows_for(kind)
    found, _ = loss_and_gradients(model, rows, WEIGHTS, packed=True)
    expected, _ = loss_and_gradients(model, rows, WEIGHTS, packed=False)
    assert abs(found.item() - expected.item()) > 1e-2


def test_recurrent_models_are_refused() -> None:
    common = {**TOKENS, "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2}
    mamba = MambaForCausalLM(MambaConfig(**common, state_size=4)).eval()
    assert "takes no position_ids" in (packing_unfit(mamba) or "")
    hybrid = Lfm2ForCausalLM(
        Lfm2Config(
            **common, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2,
            layer_types=["conv", "full_attention"],
        )
    ).eval()  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    for parameter in hybrid.parameters():
        if parameter.ndim > 1:
            parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    assert packing_unfit(hybrid) is None
    assert "gives packed rows other token losses" in (check_packing(hybrid, rows_for("llama")) or "")


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_a_model_that_forgets_the_positions_is_refused(precision: str) -> None:
    """With a mask of ones transformers reads no positions: positions are right and rows see each other."""
    model = tiny_model(dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)

    def forget(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {"attention_mask": torch.ones_like(kwargs["input_ids"]), **kwargs}

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        assert check_packing(model, rows_for("llama")) is None
        model.register_forward_pre_hook(forget, with_kwargs=True)
        reason = check_packing(model, rows_for("llama"))
    assert reason is not None
    assert ("on the mean of a row, where 0.02" in reason) == (precision != "float32")


def test_a_forward_that_fails_is_a_reason() -> None:
    model = tiny_model()

    def refuse(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if len(kwargs["input_ids"]) == 1:
            raise RuntimeError("no single rows here")

    model.register_forward_pre_hook(refuse, with_kwargs=True)
    assert check_packing(model, rows_for("llama")) == (
        "LlamaForCausalLM fails on packed rows (RuntimeError: no single rows here)"
    )


def test_what_fails_without_packing_too_is_an_error() -> None:
    model = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    rows = [{key: value for key, value in row.items() if key != "position_ids"} for row in rows_for("llama")]
    with pytest.raises(ValueError, match="prompt learning"):
        check_packing(model, rows)


def test_rows_that_cannot_be_packed_are_a_reason_and_both_forwards_run() -> None:
    """Where weights are sharded, every rank has to run as many forwards."""
    model, rows, widths = tiny_model(), rows_for("llama"), []
    model.register_forward_pre_hook(lambda *args: widths.append(args[2]["input_ids"].shape), with_kwargs=True)
    rows[0] = {**rows[0], "attention_mask": torch.tensor([1, 0] * 6)}
    assert "zeros inside the row in example 0" in (check_packing(model, rows) or "")
    rows = [{**row, "difficulty": torch.tensor(0.5)} for row in rows_for("llama")]
    assert "Found 'difficulty'" in (check_packing(model, rows) or "")
    assert (
        check_packing(model, [{key: value[:1] if value.ndim else value for key, value in rows_for("llama")[0].items()}])
        is None
    )
    assert [tuple(shape) for shape in widths] == [(2, 8), (1, 14), (2, 8), (1, 14), (2, 1), (1, 2)]


def test_one_row_is_run_twice() -> None:
    assert check_packing(tiny_model(), rows_for("llama")[:1]) is None
    assert check_packing(tiny_model("opt"), rows_for("opt")[:1]) is not None


def test_losses_that_are_not_finite_are_told_elsewhere() -> None:
    model = tiny_model()
    model.lm_head.weight.data[:] = torch.nan
    assert check_packing(model, rows_for("llama")) is None


def test_the_check_leaves_no_trace() -> None:
    model = tiny_model(lora=True, dropout=0.2).train()
    model.get_base_model().model.norm.eval()
    modes, state, random = [m.training for m in model.modules()], dict(model.state_dict()), torch.get_rng_state()
    before = {key: value.clone() for key, value in state.items()}
    assert check_packing(model, rows_for("llama"), flash=True) is None
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_wrapper_that_passes_everything_on_is_tried() -> None:
    class Wrapper(nn.Module):
        def forward(self, *args: Any, **kwargs: Any) -> None: ...

    assert packing_unfit(Wrapper()) is None


def test_padded_and_packed_hold_the_same_tokens() -> None:
    """The two layouts that are compared, by their logits."""
    model, batch = tiny_model(), tiny_batch()
    rows = take_rows([batch], [1, 3])
    packed, padded = pack_together(rows), put_together(rows, Padding(token=0))
    logits = model(**{key: value for key, value in packed.items() if key != "labels"}).logits[0]
    apart = model(**padded).logits
    torch.testing.assert_close(logits, torch.cat([apart[0, :10], apart[1, :6]]), rtol=1e-10, atol=1e-10)
    assert torch.equal(take(padded, 0)["input_ids"][:10], packed["input_ids"][0, :10])

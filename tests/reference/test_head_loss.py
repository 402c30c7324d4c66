"""The chunked loss at the head against full logits in float64, and what it keeps in memory."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from autograd_twin import full_token_losses
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from corebatch.errors import InputError, UnsupportedModelError
from corebatch.model import head_loss
from corebatch.model.head import Positions, logit_map
from corebatch.model.head_loss import token_losses, weighted_token_loss
from corebatch.model.weighted_loss import weighted_loss
from corebatch.scoring import SCORERS
from models import adapted, batch_for, tiny_batch, tiny_model

B, T, D, V = 3, 7, 5, 11
MAPS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda logits: logits,
    "soft cap": lambda logits: torch.tanh(logits / 2.0) * 2.0,
    "scaled": lambda logits: logits * 0.25,
    "divided": lambda logits: logits / 3.0,
}
CHUNKS = pytest.mark.parametrize("chunk", [1, 3 * V, 2**25])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels_with_gaps(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, V, (B, T), generator=generator)
    labels[torch.rand(B, T, generator=generator) < 0.4] = -100
    labels[1] = -100
    return labels


def made_head(*, bias: bool, trained: bool) -> nn.Linear:
    made = nn.Linear(D, V, bias=bias, dtype=torch.float64)
    made.weight.data = random(V, D, seed=1)
    if bias:
        made.bias.data = random(V, seed=2)
    return made.requires_grad_(trained)


def full(made: nn.Module, hidden: Tensor, labels: Tensor, weights: Tensor, transform: Any) -> Tensor:
    logits = transform(made(hidden))[:, :-1]
    losses = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100)
    return (losses.view(B, T - 1).sum(dim=1) * weights).sum()


@CHUNKS
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("map_name", MAPS)
def test_weighted_loss_equals_full_logits(
    map_name: str, trained: bool, bias: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", chunk)
    made, transform, labels = made_head(bias=bias, trained=trained), MAPS[map_name], labels_with_gaps()
    weights = torch.tensor([0.5, 2.0, 1.7])
    wanted_of, found_of = random(B, T, D).requires_grad_(), random(B, T, D).requires_grad_()
    parameters = list(made.parameters()) if trained else []
    expected = full(made, wanted_of, labels, weights, transform)
    expected_gradients = torch.autograd.grad(3.0 * expected, [wanted_of, *parameters])
    found = weighted_token_loss(made, found_of, labels, weights, transform)
    gradients = torch.autograd.grad(3.0 * found, [found_of, *parameters])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-13)


@CHUNKS
def test_tied_embeddings_get_both_gradients(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", chunk)
    labels, weights = labels_with_gaps(), torch.tensor([1.0, 1.0, 0.25])
    tokens = labels.clamp(min=0)
    gradients = []
    for loss in (full, weighted_token_loss):
        made = made_head(bias=False, trained=True)
        hidden = torch.tanh(F.embedding(tokens, made.weight))
        loss(made, hidden, labels, weights, MAPS["plain"]).backward()
        gradients.append(made.weight.grad)
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-11, atol=1e-13)


@CHUNKS
@pytest.mark.parametrize("map_name", MAPS)
def test_token_losses_and_their_derivatives(map_name: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", chunk)
    made, transform = made_head(bias=True, trained=True), MAPS[map_name]
    hidden, targets = random(9, D).requires_grad_(), torch.arange(9)
    expected = F.cross_entropy(transform(made(hidden)), targets, reduction="none")
    (wanted,) = torch.autograd.grad(expected.sum(), hidden)
    losses, derivatives = token_losses(made, hidden, targets, transform, gradients=True)
    assert derivatives is not None
    torch.testing.assert_close(losses, expected.detach(), rtol=1e-12, atol=0.0)
    torch.testing.assert_close(derivatives, wanted, rtol=1e-11, atol=1e-13)
    assert made.weight.grad is None
    alone, nothing = token_losses(made, hidden, targets, transform, gradients=False)
    assert torch.equal(alone, losses)
    assert nothing is None


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_no_label_at_all_gives_zero_and_still_a_graph(trained: bool) -> None:
    made, hidden = made_head(bias=False, trained=trained), random(B, T, D).requires_grad_()
    loss = weighted_token_loss(made, hidden, torch.full((B, T), -100), torch.ones(B), MAPS["plain"])
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert bool((gradient == 0).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_hidden_states_give_float32_losses(dtype: torch.dtype) -> None:
    made = made_head(bias=False, trained=False).to(dtype)
    hidden = random(B, T, D).to(dtype).requires_grad_()
    transform = logit_map(tiny_model("llama"))
    loss = weighted_token_loss(made, hidden, labels_with_gaps(), torch.ones(B), transform)
    loss.backward()
    assert loss.dtype == torch.float32
    assert hidden.grad is not None
    assert hidden.grad.dtype == dtype
    assert bool(torch.isfinite(hidden.grad).all())


def test_positions() -> None:
    labels = torch.tensor([[5, -100, 7, 8], [-100, -100, -100, -100], [1, 2, -100, 3]])
    positions = Positions.of(labels)
    assert positions.rows.tolist() == [0, 0, 2, 2]
    assert positions.targets.tolist() == [7, 8, 2, 3]
    hidden = torch.arange(12.0).view(3, 4, 1)
    assert positions.take(hidden).flatten().tolist() == [1.0, 2.0, 8.0, 10.0]
    spread = positions.spread(torch.tensor([[1.0], [2.0], [3.0], [4.0]]), hidden)
    assert spread.squeeze(-1).tolist() == [[0, 1, 2, 0], [0, 0, 0, 0], [3, 0, 4, 0]]
    assert positions.sum_rows(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist() == [3.0, 0.0, 7.0]
    with pytest.raises(UnsupportedModelError, match=r"\(3, 3, 1\)"):
        positions.take(hidden[:, 1:])


@pytest.mark.parametrize("weights", [torch.ones(B + 1), torch.ones(B, 1), torch.tensor(1.0)])
def test_weights_of_another_shape_are_an_error(weights: Tensor) -> None:
    with pytest.raises(InputError, match="loss_weights should have one weight for each of the 3 rows") as caught:
        weighted_token_loss(made_head(bias=False, trained=False), random(B, T, D), labels_with_gaps(), weights, F.relu)
    assert str(tuple(weights.shape)) in str(caught.value)


# Through a model


@pytest.mark.parametrize("kind", ["llama", "gemma2", "granite", "cohere", "gptj", "phi", "gptneox"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_weighted_loss_of_a_model(kind: str, lora: bool) -> None:
    """GPT-J's and Phi's heads have a bias; Gemma 2, Granite and Cohere map their logits; some tie their embeddings."""
    model, batch, weights = tiny_model(kind, lora=lora), batch_for(kind), torch.tensor([1.0, 0.3, 2.0, 1.0, 0.0])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    expected = (full_token_losses(model, batch).sum(dim=1) * weights).sum()
    wanted = torch.autograd.grad(expected, trained)
    found, outputs = weighted_loss(model, model, batch, weights)
    assert outputs.loss is found
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0.0)
    for one, other in zip(torch.autograd.grad(found, trained), wanted, strict=True):
        assert float((one - other).norm()) <= 1e-6 * float(other.norm()) + 1e-12


def test_dropout_in_an_adapted_head_is_the_same_on_the_way_back() -> None:
    """A trained head is computed twice; both times with the same mask."""
    model = adapted(tiny_model("llama"), "llama", target_modules=["lm_head"], dropout=0.5).train()
    batch, trained = tiny_batch(), [p for p in model.parameters() if p.requires_grad]
    adapter = next(parameter for name, parameter in model.named_parameters() if "lora_B" in name)

    def loss() -> Tensor:
        torch.manual_seed(0)
        return weighted_loss(model, model, batch, torch.ones(5))[0]

    (gradient,) = torch.autograd.grad(loss(), [adapter])
    direction = random(*adapter.shape, seed=4)
    sides = []
    for sign in (1, -1):
        adapter.data += sign * 1e-5 * direction
        sides.append(loss().item())
        adapter.data -= sign * 1e-5 * direction
    assert len(trained) == 2
    assert float((gradient * direction).sum()) == pytest.approx((sides[0] - sides[1]) / 2e-5, rel=1e-5)


# Memory


class Largest(TorchDispatchMode):
    """Notes the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        # Of the storage: an expanded view has many elements and no memory.
        sizes = [leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in leaves]
        self.elements = max([self.elements, *sizes])
        return result


LONG, WORDS = 24, 499


def all_labels() -> dict[str, Tensor]:
    batch = tiny_batch(rows=4, width=LONG, vocabulary=WORDS)
    batch["labels"] = batch["input_ids"].clone()
    batch["attention_mask"] = torch.ones_like(batch["attention_mask"])
    return batch


@pytest.mark.parametrize("what", [*sorted(SCORERS), "weighted, frozen head", "weighted, trained head"])
def test_no_tensor_of_all_logits_is_ever_made(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_loss, "CHUNK_ELEMENTS", 8 * WORDS)
    model, batch = tiny_model("llama", lora="trained" not in what, vocab_size=WORDS, dtype=torch.float32), all_labels()
    logits = batch["input_ids"].numel() * WORDS
    with Largest() as seen:
        if what in SCORERS:
            SCORERS[what]().score(model, batch)
        else:
            weighted_loss(model, model, batch, torch.ones(4))[0].backward()
    assert seen.elements < logits
    assert seen.elements <= max(8 * WORDS, WORDS * 32)  # a chunk, or the head's weight
    with Largest() as seen:
        model(**batch)
    assert seen.elements >= logits, "the plain loss should be seen to make them"


class Kept:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_bytes(run: Callable[[], Any]) -> int:
    """Bytes that autograd still holds when the forward is over, each storage once, parameters included."""
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def pack(tensor: Tensor) -> Kept:
        kept.add(holder := Kept(tensor))
        return holder

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda holder: holder.tensor):
        result = run()
    storages = [holder.tensor.untyped_storage() for holder in kept]
    del result
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("labels", ["all", "some"])
def test_the_weighted_loss_keeps_no_more_than_the_plain_one(labels: str, lora: bool) -> None:
    model = tiny_model("llama", lora=lora, vocab_size=WORDS, dtype=torch.float32).train()
    batch = all_labels() if labels == "all" else tiny_batch(rows=4, width=LONG, vocabulary=WORDS)
    plain = saved_bytes(lambda: model(**batch).loss)
    ours = saved_bytes(lambda: weighted_loss(model, model, batch, torch.ones(4))[0])
    assert ours <= plain
    logits = batch["input_ids"].numel() * WORDS * 4
    assert plain - ours >= 0.8 * logits

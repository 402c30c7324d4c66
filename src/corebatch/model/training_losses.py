"""Losses of single labels out of a training forward that a model runs by itself, without a second one.

Where its loss is PyTorch's cross-entropy, autograd keeps the log probabilities for the backward pass, and each label's
loss is read there. Elsewhere it is computed of the logits that the forward returns, some label positions at a time.

Shape suffixes: B rows of a micro-batch, T tokens, L label positions, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from corebatch.model.head import Positions
from corebatch.model.head_loss import CHUNK_ELEMENTS
from corebatch.types import IGNORED

NODE, DEPTH = "NllLossBackward0", 8
"""What autograd calls the backward of the cross-entropy's second half, and how many nodes from the loss it may be."""
CLOSE, CLOSE_LOW = 1e-4, 1e-2
"""How far the sum of the labels' losses may be from what the forward says, as a share of it, and where it says so in 16
bits: a loss that is computed in place (Liger's) leaves something else in the logits."""


def spread(positions: Positions, losses: Tensor) -> Tensor:
    """[L] -> [B, T]: each loss where its label stands, 0 elsewhere."""
    mask = positions.mask
    full = torch.zeros(mask.shape, dtype=losses.dtype, device=losses.device)
    return F.pad(full.masked_scatter_(mask.to(losses.device), losses), (1, 0))


@torch.no_grad()
def training_losses(output: Any, labels: Tensor, items: Any) -> tuple[Tensor, Tensor] | None:
    """The labels' losses in a forward with gradients.

    Args:
        output: of a causal language model that was given labels.
        labels: LongTensor [B, T].
        items: `num_items_in_batch` as the Trainer has it, or None: the loss is a mean over the labels.

    Returns:
        Losses [B, T], each where its label stands and 0 elsewhere, and a bool tensor that says whether they add up to
        the forward's loss; None where the forward tells nothing of single labels.
    """
    known = output if isinstance(output, Mapping) else dict(zip(("loss", "logits"), output, strict=False))
    log_probabilities, loss, logits = (known.get(key) for key in ("log_probs", "loss", "logits"))
    narrow = (labels.shape[0], labels.shape[1] - 1)
    if isinstance(log_probabilities, Tensor) and log_probabilities.shape == narrow:  # TRL's fused head
        found = F.pad(-log_probabilities.detach().float(), (1, 0))
        return found, torch.ones((), dtype=torch.bool, device=found.device)
    if not isinstance(loss, Tensor) or loss.ndim:
        return None
    made = _of_graph(loss, labels)
    if made is None and type(logits) is Tensor and logits.shape[:2] == labels.shape:
        made = _of_logits(logits, labels)
    return None if made is None else (made, _adds_up(made, loss, labels, items))


def _of_graph(loss: Tensor, labels: Tensor) -> Tensor | None:
    """[B, T] of the log probabilities that autograd keeps; None where it keeps none, or hands them to somebody."""
    hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if hooks is None or hooks(True) is not None:  # what is kept lies elsewhere, and is fetched once
        return None
    nodes, found = [loss.grad_fn], []
    for _ in range(DEPTH):
        found = [node for node in nodes if node is not None and node.name() == NODE]
        if found:
            break
        nodes = [follower for node in nodes if node is not None for follower, _ in node.next_functions]
    if len(found) != 1 or found[0]._saved_weight is not None:  # type: ignore[attr-defined]
        return None
    try:
        kept, targets = found[0]._saved_self, found[0]._saved_target  # type: ignore[attr-defined]
    except RuntimeError:  # it was changed in place, or is gone
        return None
    rows, width = labels.shape
    if len(targets) not in (rows * width, rows * (width - 1)):
        return None
    picked = -kept.gather(1, targets.clamp(min=0).unsqueeze(1)).squeeze(1)
    return F.pad(picked.masked_fill_(targets == IGNORED, 0).view(rows, -1)[:, : width - 1], (1, 0))


def _of_logits(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, T] of logits [B, T, V]."""
    positions = Positions.of(labels.to(logits.device))
    rows, columns = positions.mask.nonzero(as_tuple=True)
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    losses = torch.empty(len(rows), dtype=dtype, device=logits.device)
    for part in torch.arange(len(rows), device=logits.device).split(max(1, CHUNK_ELEMENTS // logits.shape[-1])):
        taken = logits.detach()[rows[part], columns[part]].to(dtype)
        losses[part] = F.nll_loss(F.log_softmax(taken, dim=-1), positions.targets[part], reduction="none")
    return spread(positions, losses)


def _adds_up(losses: Tensor, loss: Tensor, labels: Tensor, items: Any) -> Tensor:
    """Whether the labels' losses are what the forward's loss is a sum of, over `items` or over their number."""
    total, count = losses.sum(), (labels[:, 1:] != IGNORED).sum().to(losses.device)
    said = [loss.detach().to(losses.device) * number for number in (count if items is None else items, count)]
    share = CLOSE if loss.dtype.itemsize >= 4 else CLOSE_LOW
    near = [(total - each).abs() <= share * each.abs() + 1e-6 for each in said]
    return (near[0] | near[1] | (count == 0)).reshape(())

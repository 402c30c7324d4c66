"""Losses of single tokens, computed where the head is: chunk by chunk over label positions, never [B, T, V] logits.

All is called inside the hook on the head (`intercepted_head`): the head's weights are present just then, also when they
are sharded. The head's own `forward` is called, not the module: an engine that shards weights would put them away after
a call, before the one that is under way. Not so DeepSpeed ZeRO-3, which keeps count of modules in backward; there ranks
agree on the number of calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.utils.checkpoint import checkpoint

from corebatch.errors import InputError
from corebatch.model.head import Positions, intercepted_head, logit_map
from corebatch.model.modes import forward_inputs, scoring_mode

CHUNK_ELEMENTS = 2**25
"""Logits that exist at one time: 128 MiB in float32."""


def vocabulary(head: nn.Module) -> int:
    """How many logits the head gives for a position; a guess if it does not say."""
    weight = getattr(head, "weight", None)
    return int(getattr(head, "out_features", None) or (weight.shape[0] if weight is not None else 2**15))


def chunks(length: int, head: nn.Module) -> Iterator[slice]:
    """Slices over L positions such that the logits of one hold CHUNK_ELEMENTS numbers; on ranks that share the head's
    weights equally many, the last ones empty, since each call of the head is an exchange between them."""
    step = max(1, CHUNK_ELEMENTS // vocabulary(head))
    for start in range(0, step * _most(-(-length // step), head), step):
        yield slice(min(start, length), min(start + step, length))


def _most(count: int, head: nn.Module) -> int:
    """The largest `count` of the ranks that share the head by DeepSpeed ZeRO-3 or FSDP2; else the one given."""
    divided = _divided(head)
    if not torch.distributed.is_initialized() or (divided is None and not _sharded(head)):
        return count
    found = torch.tensor(count, device=next(head.parameters()).device)
    group = getattr(divided, "ds_process_group", None)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group=group)
    return int(found)


def _sharded(head: nn.Module) -> bool:
    """Whether FSDP2 has made the head, or a part of it, a group of its own."""
    return any(isinstance(module, FSDPModule) for module in head.modules())


def _divided(head: nn.Module) -> Any:
    """A parameter of the head that DeepSpeed ZeRO-3 has divided, or None."""
    return next((p for p in head.parameters() if hasattr(p, "ds_id")), None)


def _within(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """What to call inside the head's hook."""
    return head.forward if _divided(head) is None else head


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """[L, V], [L] -> [L]. `F.cross_entropy` in its two halves: Liger may have put a kernel of its own in that place,
    whose gradients are computed for losses that are summed without weights."""
    return F.nll_loss(F.log_softmax(logits, dim=-1), targets, reduction="none")


def token_losses(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    transform: Callable[[Tensor], Tensor],
    *,
    gradients: bool,
) -> tuple[Tensor, Tensor | None]:
    """Cross-entropy of each position, and its derivative by that position's hidden state.

    Args:
        head: maps [L, D] to [L, V].
        hidden: [L, D].
        targets: LongTensor [L].
        transform: what follows the head; see `logit_map`.
        gradients: whether derivatives are wanted.

    Returns:
        losses [L] (float32, or float64 for a float64 model) and d losses[l] / d hidden[l] as [L, D], or None.
    """
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    losses = torch.empty(len(targets), dtype=dtype, device=hidden.device)
    derivatives = torch.empty_like(hidden) if gradients else None
    for part in chunks(len(targets), head):
        with torch.set_grad_enabled(gradients):
            piece = hidden[part].detach().requires_grad_(gradients)
            loss = _cross_entropy(transform(_within(head)(piece)), targets[part])
            if derivatives is not None:
                (derivatives[part],) = torch.autograd.grad(loss.sum(), piece)
        losses[part] = loss.detach()
    return losses, derivatives


Read = Callable[[nn.Module, Tensor, Callable[[Tensor], Tensor]], Any]
"""What is made of a forward, in the head's hook: of the head, hidden states [B, T, D], and what follows the head."""


def forward_losses(
    model: nn.Module, batch: Mapping[str, Tensor], positions: Positions, read: Read | None = None
) -> tuple[Tensor, Any]:
    """One forward without gradients: the losses [L] at the label positions, and what `read` returned."""
    transform = logit_map(model)

    def take(head: nn.Module, hidden: Tensor) -> tuple[Tensor, Any]:
        losses, _ = token_losses(head, positions.take(hidden), positions.targets, transform, gradients=False)
        return losses, None if read is None else read(head, hidden, transform)

    with scoring_mode(model), intercepted_head(model, take) as results:
        model(**forward_inputs(batch))
    losses, found = results[0]
    return losses, found


class _FrozenHeadLoss(torch.autograd.Function):
    """sum_l weights_l loss_l for a head that is not trained: the derivative is computed on the way forward, so that
    [L, D] numbers are kept and nothing is computed twice."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weights: Tensor,
        targets: Tensor,
        head: nn.Module,
        transform: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        losses, derivatives = token_losses(head, hidden, targets, transform, gradients=True)
        assert derivatives is not None
        ctx.save_for_backward(derivatives.mul_(weights.unsqueeze(1).to(derivatives.dtype)))
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        (derivatives,) = ctx.saved_tensors
        return derivatives * grad.to(derivatives.dtype), None, None, None, None


def weighted_token_loss(
    head: nn.Module,
    hidden: Tensor,
    labels: Tensor,
    loss_weights: Tensor,
    transform: Callable[[Tensor], Tensor],
    watch: Callable[[Positions, Tensor], object] = lambda *_: None,
) -> Tensor:
    """sum_it weight_it loss_it, differentiable by the hidden states and, if it is trained, the head.

    Args:
        head: maps [L, D] to [L, V].
        hidden: [B, T, D].
        labels: LongTensor [B, T], not yet shifted.
        loss_weights: [B], one for all losses of a row, or [B, T], not yet shifted: `loss_weights[b, t]` multiplies
            the loss of predicting `labels[b, t]`, and the first column nothing.
        transform: see `logit_map`.
        watch: is given the label positions and their losses [L], without weights and gradients.

    Raises:
        InputError: the weights have another shape.
    """
    if loss_weights.shape not in (labels.shape[:1], labels.shape):
        raise InputError(
            f"loss_weights should have one weight for each of the {len(labels)} rows, "
            f"or one for each label, {tuple(labels.shape)}. Found shape {tuple(loss_weights.shape)}."
        )
    positions = Positions.of(labels)
    taken = positions.take(hidden)
    dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    weights = loss_weights.to(dtype)
    weights = weights[positions.rows] if weights.ndim == 1 else weights[:, 1:][positions.mask]
    if not any(parameter.requires_grad for parameter in head.parameters()):
        total, losses = _FrozenHeadLoss.apply(taken, weights, positions.targets, head, transform)
        watch(positions, losses)
        return total

    inside = True  # the head's hook; later, in backward, a sharding engine has to be asked for the weights

    def piece(hidden_piece: Tensor, targets: Tensor, weights_piece: Tensor) -> tuple[Tensor, Tensor]:
        logits = transform((_within(head) if inside else head)(hidden_piece))
        losses = _cross_entropy(logits, targets)
        return (losses * weights_piece).sum(), losses.detach()

    total = taken.sum().to(dtype) * 0  # joins the graph even where no label is trained
    found = []
    for part in chunks(len(taken), head):
        loss, each = checkpoint(
            piece,
            taken[part],
            positions.targets[part],
            weights[part],
            use_reentrant=False,  # the random state is kept: a head with LoRA may have dropout
        )
        total = total + loss
        found.append(each)
    inside = False
    watch(positions, torch.cat(found) if found else taken.new_zeros(0, dtype=dtype))
    return total

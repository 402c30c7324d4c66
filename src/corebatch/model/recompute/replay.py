"""The training forward in which no block runs.

Shape suffixes: B rows of a micro-batch, T tokens, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from corebatch.model.recompute.capture import MARK_CHANNELS
from corebatch.model.recompute.function import Recalled, Recompute

if TYPE_CHECKING:
    from corebatch.model.recompute.states import BlockStates

Run = Callable[..., Any]
"""What transformers hands to a checkpointing function: the block's forward with its keyword arguments bound."""

MARK_TOLERANCE = 0.01  # relative; rounding in bfloat16 is 0.002, another position's embedding far more


class Place(NamedTuple):
    row: int
    line: int
    start: int
    end: int


class Forward:
    """One training forward in which no block runs."""

    def __init__(
        self, store: BlockStates, places: Sequence[Place], shape: tuple[int, int], usual: Sequence[Run]
    ) -> None:
        self._store = store
        self._kept = {place.row: store._rows[place.row] for place in places}
        self._places = places
        self._shape = shape
        self._usual = usual
        self._plainly = False

    def run(self, index: int, run: Run, *args: Any) -> Any:
        """In place of the checkpointing function of block `index`."""
        store = self._store
        if index == 0:
            against = self._against(run, args)
            if against is not None:
                self._plainly = store.refused = True
                store.reason = against
        if self._plainly:
            return self._usual[index](run, *args)
        hidden: Tensor = args[0]
        block = store.blocks[index]
        parameters = [parameter for parameter in block.parameters() if parameter.requires_grad]
        gather = partial(self._gather, index, hidden)
        if torch.is_grad_enabled() and (parameters or hidden.requires_grad):
            recompute = Recompute(partial(_hidden, run, args[1:]), parameters, hidden.device, index, store.inspected)
            output = Recalled.apply(hidden, gather, recompute, *parameters)
        else:
            output = gather()
        return output if not store.items else (output, *[None] * (store.items - 1))

    def _gather(self, index: int, hidden: Tensor) -> Tensor:
        """The output [B, T, D] of block `index`, zero where there is padding; frees what it is made of."""
        pieces = [self._kept[place.row].piece(place.row, index + 1) for place in self._places]
        dtype = pieces[0].dtype if pieces else hidden.dtype
        output = torch.zeros(*self._shape, hidden.shape[-1], dtype=dtype, device=hidden.device)
        for place, piece in zip(self._places, pieces, strict=True):
            output[place.line, place.start : place.end].copy_(piece, non_blocking=True)
        for kept in self._kept.values():
            if len(kept.spans) == 1:
                self._store.bytes -= kept.release(index + 1)
        return output

    def _against(self, run: Run, args: tuple[Any, ...]) -> str | None:
        """Why the first block's input is not what it was while scoring, or not all that gradients flow to."""
        if not args or not isinstance(args[0], Tensor) or args[0].shape[:2] != self._shape:
            return "The training forward gives the blocks hidden states of another shape than its inputs."
        if any(tensor.requires_grad for tensor in _tensors((args[1:], getattr(run, "keywords", {})))):
            return "Blocks take another trained input besides hidden states."
        moved = [p for p in self._places if self._kept[p.row].spans[p.row].start != p.start]
        if not moved or self._store.rows_may_move:
            return None
        hidden = args[0].detach()
        now = torch.cat([hidden[p.line, p.start : p.end] for p in moved])
        now = now[:, :: max(1, now.shape[-1] // MARK_CHANNELS)].float()
        before = torch.cat([self._kept[p.row].piece(p.row, 0).to(now.device) for p in moved]).float()
        # The one look at a device's numbers, until it has been seen once.
        self._store.rows_may_move = bool((now - before).norm() <= MARK_TOLERANCE * before.norm())
        if self._store.rows_may_move:
            return None
        return (
            "The embedding of a row depends on its padding (absolute positions without position_ids), so that what "
            "was scored is not what is trained."
        )


def _tensors(value: object) -> Iterator[Tensor]:
    """All tensors in nested arguments of a block."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _hidden(run: Run, rest: tuple[Any, ...], hidden: Tensor) -> Tensor:
    output = run(hidden, *rest)
    return output[0] if isinstance(output, tuple) else output

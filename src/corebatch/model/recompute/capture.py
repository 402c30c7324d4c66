"""What the blocks of a model put out in one scoring forward, taken by hooks.

Shape suffixes: B rows of a micro-batch, T tokens, D hidden, L blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from corebatch.model.rows import row_spans

MARK_CHANNELS = 8
"""Channels of the first block's input that are kept, to see whether a row that moved within its micro-batch still
has the positions that it was scored at."""


class Capture:
    """The hooks of one `keep`.

    Args:
        blocks: the model's, L of them, in order.
        batch: the micro-batch that is scored.
        place: where states are to be: on the model's device, or in host memory.
        has_room: whether so many bytes may be kept.

    Attributes:
        spans: start and end of each row.
        states: see `Kept`; as many as were seen so far.
        items: see `BlockStates`.
        objection: why this forward cannot be kept.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        batch: Mapping[str, Tensor],
        *,
        place: Literal["device", "host"],
        has_room: Callable[[int], bool],
    ) -> None:
        self._blocks = blocks
        self._place = place
        self._has_room = has_room
        self._shape = batch["input_ids"].shape
        self.spans: list[list[int]] = row_spans(batch).tolist()
        self._index: Tensor | None = None
        self._begin()

    @contextmanager
    def open(self) -> Iterator[None]:
        """While open, forwards of the blocks are taken."""
        with ExitStack() as hooks:
            for index, block in enumerate(self._blocks):
                enter, leave = partial(self._enter, index), partial(self._leave, index)
                hooks.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
                # First of all hooks: what a hook of somebody else makes of the output shows at the next block.
                hooks.callback(block.register_forward_hook(leave, with_kwargs=True, prepend=True).remove)
            yield

    def _begin(self) -> None:
        self.states: list[Tensor] = []
        self.items = 0
        self.objection: str | None = None
        self._active = True
        self._entered = -1
        self._last: tuple[Tensor, int] | None = None

    def _refuse(self, objection: str | None) -> None:
        self.objection = objection
        self._active = False
        self._last = None
        self.states = []

    def _enter(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if index == 0:
            self._begin()  # a scorer may trace the model first: the last forward counts
        if not self._active:
            return
        if self._entered + 1 != index or len(self.states) != (index + 1 if index else 0):
            self._refuse("The model does not run all of its blocks in order, each once.")
            return
        self._entered = index
        if not args or not isinstance(args[0], Tensor):
            self._refuse("The model passes hidden states to its blocks by keyword.")
        elif index == 0:
            self._first(args[0])
        elif self._last is None or not _same(args[0], *self._last):
            self._refuse(f"The model changes hidden states between blocks {index - 1} and {index}.")

    def _first(self, hidden: Tensor) -> None:
        if not self._fits(hidden, 0):
            return
        width, tokens = hidden.shape[-1], sum(end - start for start, end in self.spans)
        mark = hidden[..., :: max(1, width // MARK_CHANNELS)]
        need = tokens * (width * len(self._blocks) + mark.shape[-1]) * hidden.element_size()
        if not self._has_room(need):
            self._refuse(None)
            return
        self.states.append(self._take(mark))

    def _leave(self, index: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not self._active:
            return
        if index != self._entered or len(self.states) != index + 1:
            self._refuse("The model does not run all of its blocks in order, each once.")
            return
        hidden = output
        if isinstance(output, tuple):
            # Attention weights that nobody has asked for are not read: GPT-J, Bloom and MPT return them all the same.
            unread = len(output) == 2 and kwargs.get("output_attentions", True) is False
            if len(output) > 1 and not unread and any(item is not None for item in output[1:]):
                self._refuse(f"Blocks return {len(output)} values, not hidden states alone.")
                return
            self.items, hidden = len(output), output[0]
        if isinstance(hidden, Tensor) and self._fits(hidden, index):
            self.states.append(self._take(hidden))
            self._last = hidden.detach(), hidden._version

    def _fits(self, hidden: Tensor, index: int) -> bool:
        if hidden.ndim == 3 and hidden.shape[:2] == self._shape:
            return True
        self._refuse(
            f"The hidden states of block {index} should have shape {[*self._shape, 'D']}. Found {list(hidden.shape)}: "
            "the scorer or the model changes rows or tokens."
        )
        return False

    def _take(self, hidden: Tensor) -> Tensor:
        """[B, T, X] -> [tokens, X] where it is to be kept."""
        if self._index is None or self._index.device != hidden.device:
            width = self._shape[1]
            parts = [torch.arange(b * width + s, b * width + e) for b, (s, e) in enumerate(self.spans)]
            self._index = torch.cat(parts).to(hidden.device)
        with torch.no_grad():
            compact = hidden.detach().flatten(0, 1).index_select(0, self._index)
        if self._place == "device":
            return compact
        if not compact.is_cuda:
            return compact.cpu()
        host = torch.empty(compact.shape, dtype=compact.dtype, pin_memory=True)
        return host.copy_(compact, non_blocking=True)


def _same(one: Tensor, other: Tensor, version: int) -> bool:
    """Whether `one` is `other`'s data, not changed in place since."""
    return (
        one.data_ptr() == other.data_ptr()
        and one.shape == other.shape
        and one.stride() == other.stride()
        and one._version == version
    )

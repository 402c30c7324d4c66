"""What is kept of a pool's scoring forward until the chosen rows are trained.

Shape suffixes: B rows of a micro-batch, T tokens, D hidden, L blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from corebatch.errors import ConfigError, InputError, UnsupportedModelError
from corebatch.model.recompute.capture import Capture
from corebatch.model.recompute.fit import FUNCTION, checkpointed_blocks, structure
from corebatch.model.recompute.replay import Forward, Place


class Span(NamedTuple):
    """Where a row's tokens lie: `first` to `last` in the kept states, from `start` on in the scored micro-batch."""

    first: int
    last: int
    start: int


@dataclass(slots=True)
class Kept:
    """Rows of one scored micro-batch without padding.

    Attributes:
        states: L + 1 tensors [tokens, ...]: some channels of the first block's input, then each block's output
            [tokens, D]; None once it has been handed on.
        spans: the rows that are still wanted.
        version: of the blocks' weights.
        sizes: of the blocks' weights, where they were measured; see `BlockStates.watched`.
    """

    states: list[Tensor | None]
    spans: dict[int, Span]
    version: object
    sizes: Tensor | None = None

    def piece(self, row: int, index: int) -> Tensor:
        state, span = self.states[index], self.spans[row]
        if state is None:
            raise InputError(f"Row {row} of the pool has been recalled already: one recall serves one forward.")
        return state[span.first : span.last]

    def release(self, index: int) -> int:
        """Frees one state; its bytes."""
        state, self.states[index] = self.states[index], None
        return 0 if state is None else state.nbytes


class BlockStates:
    """What the blocks of a model put out for the rows of a pool.

    Of one step: states belong to the weights that they were computed with, and `recall` refuses others.

    Args:
        model: a model that `unfit` has nothing against; wrapped by DDP or not.
        place: where states are kept: on the model's device, or in host memory (pinned for CUDA).
        max_bytes: the most that is kept. The first micro-batch that would exceed it, and all that follow until the
            next `retain`, are not kept. Copying in `retain` adds what one block holds for the retained rows of one
            scored micro-batch, for a moment.

    Attributes:
        bytes: held now; up to the tokens kept x D x L x the size of a number.
        peak_bytes: the most that was held.
        watched: whether somebody's code runs between scoring and training, so that the weights' values are compared
            too.
        changed: whether weights were found to be others than those that the pool was scored with, since the last
            `retain`; nothing is recalled then.
        blocks: the model's, L of them.
        items: how many items a block's tuple has; 0 for a bare tensor.
        refused: whether a training forward could not be recalled: what it found does not change from step to step.
        rows_may_move: whether a row may move within a micro-batch; once it was seen that its embedding stays the same.
        inspected: blocks whose gradients were seen to go to tensors of their own alone.
        reason: why rows could not be kept or recalled although `unfit` found nothing; None if there was no such
            case. Rows that exceed `max_bytes` are none.

    Raises:
        UnsupportedModelError: the model has no blocks that are checkpointed.
        ConfigError: another place, or max_bytes below 0.
    """

    def __init__(
        self, model: nn.Module, *, place: Literal["device", "host"] = "device", max_bytes: int | None = None
    ) -> None:
        if place not in ("device", "host"):
            raise ConfigError(f"place should be 'device' or 'host'. Found {place!r}.")
        if max_bytes is not None and max_bytes < 0:
            raise ConfigError(f"max_bytes should be at least 0. Found {max_bytes}.")
        against = structure(model)
        if against is not None:
            raise UnsupportedModelError(against)
        self.place = place
        self.max_bytes = max_bytes
        self.bytes = 0
        self.peak_bytes = 0
        self.reason: str | None = None
        self.blocks = checkpointed_blocks(model)
        self._rows: dict[int, Kept] = {}
        self.items = 0
        self._full = False
        self.refused = False
        self.rows_may_move = False
        self.inspected: set[int] = set()
        self.watched = False
        self.changed = False

    @contextmanager
    def keep(self, rows: Sequence[int], batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Open around the scoring of one micro-batch. The last complete forward in it is kept, if it went through
        all blocks in order, each taking what the one before put out; else nothing is, and `reason` may say why.

        Args:
            rows: the pool's numbers of the micro-batch's rows, B of them.
            batch: the micro-batch, with `labels`.
        """
        if len(rows) != len(batch["input_ids"]):
            raise InputError(
                f"There should be a number for each of the {len(batch['input_ids'])} rows. Found {len(rows)}."
            )
        if self._full or self.refused:
            yield
            return
        capture = Capture(self.blocks, batch, place=self.place, has_room=self._has_room)
        with capture.open():
            yield
        if capture.objection is not None:
            self.reason = capture.objection
        elif len(capture.states) == len(self.blocks) + 1:
            self._commit(rows, capture)

    def _commit(self, rows: Sequence[int], capture: Capture) -> None:
        self._drop(rows)  # a row that is scored again
        size = sum(state.nbytes for state in capture.states)
        if not self._has_room(size):
            return
        first, spans = 0, {}
        for row, (start, end) in zip(rows, capture.spans, strict=True):
            spans[row] = Span(first, first + end - start, start)
            first += end - start
        self.items = capture.items
        kept = Kept(list(capture.states), spans, self._version(), self._sizes())
        self._rows |= dict.fromkeys(spans, kept)
        self._hold(size)

    def _has_room(self, size: int) -> bool:
        self._full |= self.max_bytes is not None and self.bytes + size > self.max_bytes
        return not self._full

    def has(self, rows: Sequence[int]) -> bool:
        """Whether all of these rows of the pool are kept, and no training forward has shown that they are useless."""
        if self.refused or not all(row in self._rows for row in rows):
            return False
        self.changed |= not self._current({id(kept): kept for row in rows if (kept := self._rows[row])}.values())
        return not self.changed

    def _current(self, kept: Iterable[Kept]) -> bool:
        """Whether these were computed with the weights as they are now."""
        version = self._version()
        if any(each.version != version for each in kept):
            return False
        sizes = self._sizes()
        return sizes is None or all(each.sizes is not None and torch.equal(each.sizes, sizes) for each in kept)

    def retain(self, rows: Iterable[int]) -> None:
        """Drops all other rows and frees their memory; `retain(())` empties the store. Rows that are retained are
        copied apart, block by block, so that each can be freed when it is trained."""
        wanted = set(rows)
        self._drop([row for row in self._rows if row not in wanted])
        self._full = self.changed = False
        if self.place == "host" and any(block.is_cuda for block in self._weights()):
            torch.cuda.current_stream().synchronize()  # copies to the host may still be on their way
        for kept in {id(kept): kept for kept in self._rows.values()}.values():
            self._split(kept)

    def _split(self, kept: Kept) -> None:
        total = kept.states[0]
        assert total is not None
        if len(kept.spans) == 1 and all(span.last - span.first == len(total) for span in kept.spans.values()):
            return
        parts = {
            row: Kept([], {row: Span(0, s.last - s.first, s.start)}, kept.version, kept.sizes)
            for row, s in kept.spans.items()
        }
        for index in range(len(kept.states)):
            for row, part in parts.items():
                copy = _copy(kept.piece(row, index))
                part.states.append(copy)
                self._hold(copy.nbytes)
            self.bytes -= kept.release(index)
        self._rows |= parts

    @contextmanager
    def recall(self, places: Tensor, batch: Mapping[str, Tensor]) -> Iterator[None]:
        """Open around the training forward of one micro-batch. Its blocks do not run; the backward pass, which may
        come after this is closed, recomputes each once. The rows leave the store.

        If the model's first block is not given what it was given while scoring (positions that depend on padding),
        the blocks run with the model's own checkpointing instead, `reason` says so, and nothing more is kept.

        Args:
            places: LongTensor [k, 4], on the CPU for speed: row of the pool, row of the micro-batch, and start and
                end of its tokens there. Rows of the micro-batch may hold several, one after the other (padding-free);
                other positions are padding.
            batch: the micro-batch.

        Raises:
            InputError: a row is not kept, has another length, lies outside, or was scored with other weights.
            UnsupportedModelError: in the backward pass, a block uses a trained tensor that is not its own.
        """
        found = [Place(*place) for place in places.tolist()]
        self._check(found, batch)
        own = [vars(block).get(FUNCTION, _ABSENT) for block in self.blocks]
        usual = [getattr(block, FUNCTION) for block in self.blocks]
        forward = Forward(self, found, (batch["input_ids"].shape[0], batch["input_ids"].shape[1]), usual)
        try:
            for index, block in enumerate(self.blocks):
                setattr(block, FUNCTION, partial(forward.run, index))
            yield
        finally:
            for block, function in zip(self.blocks, own, strict=True):
                if function is _ABSENT:
                    delattr(block, FUNCTION)
                else:
                    setattr(block, FUNCTION, function)
            self._drop({place.row for place in found})

    def _check(self, places: Sequence[Place], batch: Mapping[str, Tensor]) -> None:
        shape, version = batch["input_ids"].shape, self._version()
        for row, line, start, end in places:
            kept = self._rows.get(row)
            if kept is None:
                raise InputError(f"Row {row} of the pool is not kept.")
            if kept.version != version:
                raise InputError(f"The weights have changed since row {row} of the pool was scored.")
            length = kept.spans[row].last - kept.spans[row].first
            if end - start != length or not (0 <= line < shape[0] and start >= 0 and end <= shape[1]):
                raise InputError(
                    f"Row {row} of the pool has {length} tokens; its place should hold as many in a micro-batch of "
                    f"shape {tuple(shape)}. Found row {line}, {start} to {end}."
                )

    def _drop(self, rows: Iterable[int]) -> None:
        for row in rows:
            kept = self._rows.pop(row, None)
            if kept is not None:
                del kept.spans[row]
                if not kept.spans:
                    self.bytes -= sum(kept.release(index) for index in range(len(kept.states)))

    def _hold(self, size: int) -> None:
        self.bytes += size
        self.peak_bytes = max(self.peak_bytes, self.bytes)

    def _weights(self) -> Iterator[nn.Parameter]:
        for block in self.blocks:
            yield from block.parameters()

    def _version(self) -> object:
        """Another one after each change of the blocks' weights in place, as optimizers change them, or for others."""
        weights = list(self._weights())
        return sum(weight._version for weight in weights), hash(tuple(weight.data_ptr() for weight in weights))

    def _sizes(self) -> Tensor | None:
        """Norms of the blocks' weights [one each]: changes through `weight.data` leave no version."""
        weights = [weight.detach() for weight in self._weights() if weight.is_floating_point()]
        return torch.stack(torch._foreach_norm(weights)).float() if self.watched and weights else None


_ABSENT = object()


def _copy(state: Tensor) -> Tensor:
    """A compact copy, in pinned memory if the original is."""
    return torch.empty(state.shape, dtype=state.dtype, device=state.device, pin_memory=state.is_pinned()).copy_(state)

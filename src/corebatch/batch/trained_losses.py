"""The losses of the rows that a step trains, out of the forwards that train them: row by row, and by source.

A source's mean token loss over what was drawn is estimated by its trained rows, with the selector's weights w:

    sum_i w_i L_i / sum_i w_i l_i            L_i: row i's summed token loss, l_i: its trained tokens

A factor that is the same for all rows of a source, as an objective's, does not change it.

Shape suffixes: M rows of the small batch, B rows of a micro-batch, T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.batch.pool import Pool
from corebatch.batch.small_batch import Places
from corebatch.errors import LossMismatchError
from corebatch.model.training_losses import training_losses

logger = logging.getLogger(__name__)

SUM_DIGITS, MEAN_DIGITS = 9, 6
"""Of the numbers that are recorded: of sums over steps' parts, and of single rows."""


@dataclass(frozen=True, slots=True)
class Taught:
    """What training a step's rows taught of them.

    Attributes:
        ids, tokens, lengths: LongTensor [M], example ids, trained tokens, and all tokens.
        losses: float64 [M], mean token losses (nats per token).
        sizes: float64 [M], sqrt(sum_t (1 - p_t)^2), p_t being the probability of label t: the length of the gradient in
            the logits, as if tokens were orthogonal, within a factor of the root of 2.
        factors: float64 [M], by how much each counted in what the step claimed.
    """

    ids: Tensor
    losses: Tensor
    sizes: Tensor
    tokens: Tensor
    lengths: Tensor
    factors: Tensor


class TrainedLosses:
    """Adds up, over the micro-batches of a step, the losses of its rows; what is known is the same on every rank.

    Args:
        first: whether this is the rank that tells the user what cannot be known.
        only_weighted: whether micro-batches say where rows lie only where these have weights: a method of the user's
            own may hand all that it is given to the model.
        sized: whether sizes are wanted.

    Attributes:
        by_source: of the last step that was settled: (sum of w_i L_i, sum of w_i l_i) in nats and tokens, by the
            number of the source, for those with trained tokens; None where it is not known.
        rows: of that step, each chosen row's mean token loss, None for rows without a trained token; None if unknown.
        taught: of that step's rows with trained tokens, or None if unknown; without `sized` their sizes are zeros.
    """

    def __init__(self, *, first: bool = True, only_weighted: bool = False, sized: bool = False) -> None:
        self.first, self.only_weighted, self.sized, self._told = first, only_weighted, sized, False
        self.taught: Taught | None = None
        self.by_source: dict[int, tuple[float, float]] | None = None
        self.rows: list[float | None] | None = None
        self._slots: dict[int, int] = {}
        self._left = 0
        self._sums: Tensor | None = None
        self._sound: Tensor | None = None
        self._sources: list[int] = []
        self._tokens: list[int] = []
        self._weights: list[float] = []
        self._ids = self._lengths = torch.zeros(0, dtype=torch.long)
        self._factors = torch.zeros(0, dtype=torch.float64)

    def begin(self, pool: Pool, chosen: Tensor, selected: Tensor, mine: int) -> None:
        """A step begins.

        Args:
            chosen: LongTensor [M], positions in the pool.
            selected: [M], the selector's weights.
            mine: how many of the rows are trained on this rank.
        """
        self.by_source = self.rows = self.taught = self._sums = self._sound = None
        self._ids, self._lengths = pool.ids[chosen], pool.lengths[chosen]
        self._factors = torch.ones(len(chosen)).double() if pool.factors is None else pool.factors[chosen]
        self._slots = {position: slot for slot, position in enumerate(chosen.tolist())}
        self._sources, self._tokens = pool.sources[chosen].tolist(), pool.tokens[chosen].tolist()
        self._weights, self._left = selected.detach().double().tolist(), mine

    @torch.no_grad()
    def add(self, places: Places, losses: Tensor, sound: Tensor | None = None) -> None:
        """A micro-batch was run.

        Args:
            losses: [B, T], of its labels, 0 where none is trained.
            sound: whether they are right; None: they are.
        """
        spans, last = places.rows, len(self._slots)
        slots = [self._slots.get(position, last) for position in spans[:, 0].tolist()]
        self._left -= sum(slot < last for slot in slots)
        wide = losses.detach().to(_widest(losses.device))
        each = _by_row(wide, spans)
        if self.sized:  # a label that is not trained has no loss, and so a probability of 1
            each = torch.stack([each, _by_row((1 - torch.exp(-wide)).square(), spans)], dim=1)
        if self._sums is None:
            self._sums = each.new_zeros(last + 1, *each.shape[1:])
        self._sums.index_add_(0, torch.tensor(slots, device=self._sums.device), each.to(self._sums.device))
        if sound is not None:
            sound = sound.to(self._sums.device)
            self._sound = sound if self._sound is None else self._sound & sound

    @contextmanager
    def watching(self, model: nn.Module, inputs: Mapping[str, Any], places: Places) -> Iterator[None]:
        """While open, a training forward that the model runs with its own loss is added.

        Args:
            model: without what wraps it.
            inputs: a micro-batch with `labels`.
        """
        labels = inputs["labels"]

        def take(module: nn.Module, args: Any, given: Mapping[str, Any], output: Any) -> None:
            if (found := training_losses(output, labels, given.get("num_items_in_batch"))) is not None:
                self.add(places, *found)

        handle = model.register_forward_hook(take, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def message(self, device: torch.device) -> Tensor:
        """What `settle` wants the sum over ranks of, [M + 1] or with sizes [2 M + 1]: the rows' summed losses, the
        squares of their sizes, and whether one is unknown."""
        count, dtype = len(self._slots), _widest(device)
        sums = torch.zeros(count, 2 if self.sized else 1, dtype=dtype) if self._sums is None else self._sums[:count]
        sums = sums.view(count, -1).T.flatten()
        bad = torch.tensor(float(self._left != 0), dtype=dtype, device=device)
        if self._sound is not None:
            bad = bad + (~self._sound).to(bad)
        return torch.cat([sums.to(device, dtype), bad.reshape(1)])

    def settle(self, numbers: list[float]) -> None:
        """The step has been run on every rank. `numbers`: the sum of all ranks' messages."""
        *sums, bad = numbers
        self.by_source = self.rows = self.taught = None
        if bad:
            return
        sums, squares = sums[: len(self._tokens)], sums[len(self._tokens) :]
        found: dict[int, list[float]] = {}
        for source, weight, tokens, loss in zip(self._sources, self._weights, self._tokens, sums, strict=True):
            if tokens:
                whole = found.setdefault(source, [0.0, 0.0])
                whole[0] += weight * loss
                whole[1] += weight * tokens
        self.by_source = {source: (loss, tokens) for source, (loss, tokens) in sorted(found.items()) if tokens > 0}
        self.taught = self._taught(sums, squares)
        each = zip(self._tokens, sums, strict=True)
        self.rows = [float(f"{loss / tokens:.{MEAN_DIGITS}g}") if tokens else None for tokens, loss in each]

    def _taught(self, sums: list[float], squares: list[float]) -> Taught:
        tokens = torch.tensor(self._tokens, dtype=torch.long)
        there = (tokens > 0).nonzero().flatten()
        losses = torch.tensor(sums, dtype=torch.float64)[there] / tokens[there]
        sizes = torch.tensor(squares, dtype=torch.float64).sqrt()[there] if squares else torch.zeros_like(losses)
        return Taught(self._ids[there], losses, sizes, tokens[there], self._lengths[there], self._factors[there])

    def line(self, names: Any) -> dict[str, Any]:
        """The fields of the record's line: the mean token loss of each source, and the weighted tokens it is over; the
        first time that they are not known the user is told.

        Args:
            names: names[s] is the name of source s.
        """
        if self.by_source is None:
            self._tell()
            return {"loss_by_source": None, "loss_tokens": None}
        known = {names[source]: (loss / tokens, tokens) for source, (loss, tokens) in self.by_source.items()}
        means, tokens = (
            {name: float(f"{pair[which]:.{SUM_DIGITS}g}") for name, pair in known.items()} for which in (0, 1)
        )
        return {"loss_by_source": means, "loss_tokens": tokens}

    def _tell(self) -> None:
        if self.first and not self._told:
            logger.warning(
                "The training loss by source is not known: the forward that trains gives neither logits nor losses of "
                "single labels (a fused or chunked loss), or a method of your own runs it. selection.jsonl has null."
            )
        self._told = True


def unknown(what: str, step: int) -> LossMismatchError:
    """The error for a setting that follows losses of trained rows, where a step has told none."""
    return LossMismatchError(
        f"{what}. At step {step} it is not known: the forward that trains gives neither logits nor losses of single "
        "labels, or is not corebatch's."
    )


def by_source(losses: Tensor, tokens: Tensor, sources: Tensor, names: Mapping[int, str] | Any) -> dict[str, float]:
    """The mean token loss of each source's rows by its name, of their summed losses [N] and trained tokens [N]."""
    kinds, places = torch.unique(sources.cpu(), return_inverse=True)
    sums = [
        torch.zeros(len(kinds), dtype=torch.float64).index_add_(0, places, each.detach().double().cpu()).tolist()
        for each in (losses, tokens)
    ]
    found = zip(kinds.tolist(), *sums, strict=True)
    return {names[kind]: float(f"{loss / count:.{SUM_DIGITS}g}") for kind, loss, count in found if count}


def _widest(device: torch.device) -> torch.dtype:
    """Apple's devices have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _by_row(values: Tensor, spans: Tensor) -> Tensor:
    """The sum over each row's tokens, of [rows, T] or of rows that are packed into one."""
    if len(spans) == len(values):
        return values.sum(dim=1)
    sizes = (spans[:, 3] - spans[:, 2]).to(values.device)
    return torch.segment_reduce(values.flatten()[: int(spans[-1, 3])], "sum", lengths=sizes)

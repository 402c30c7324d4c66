"""What is remembered of examples that were scored or trained: a narrow feature, its size, the loss, and when; or of all
rows of a data set their losses alone.

Shape suffixes: N examples asked for, K examples remembered, W numbers of a narrow feature.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.scoring.sketch import count_sketch
from corebatch.seeds import seeded

WIDTH = 512
"""Numbers kept of a feature: 1 KiB an example in half precision."""

_DRIFT = 0.2  # weight of the newest examples in the running level of norms


@dataclass(frozen=True, slots=True, kw_only=True)
class Recalled:
    """What the memory says of some examples.

    Attributes:
        known: BoolTensor [N].
        features: float32 [N, W], zeros where nothing is known; lengths as they would be now.
        sizes: float64 [N]: lengths of the features, or where nothing is known what their trained tokens suggest.
        losses: float64 [N]: summed loss when last scored, or what their trained tokens suggest.
    """

    known: Tensor
    features: Tensor
    sizes: Tensor
    losses: Tensor


def narrowed(features: Tensor, width: int, seed: int) -> Tensor:
    """[N, P] -> [N, width] of the same lengths, in float32 on the CPU; of features that are as narrow, the same."""
    features = features.float()
    lengths = features.norm(dim=1, keepdim=True)
    short = count_sketch(features, width, seeded(seed, "memory"))
    scale = lengths / short.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return (short * scale).cpu()


class FeatureMemory:
    """Features by example id, on the CPU.

    Directions are kept in half precision, lengths apart, relative to the *level* at the time: the running mean of
    log(length / sqrt(trained tokens)) over the latest examples. While training, lengths of gradients drift together;
    what is remembered is put back to today's level, and an example that is not known gets the level's guess.

    Args:
        seed: of the sketch that makes features narrow.
        width: W.
    """

    def __init__(self, seed: int, width: int = WIDTH) -> None:
        self.seed, self.width = seed, width
        self._slots: dict[int, int] = {}
        self._directions = torch.zeros(0, 0, dtype=torch.float16)
        self._lengths, self._losses = torch.zeros(0), torch.zeros(0)
        self._steps = torch.zeros(0, dtype=torch.long)
        self._level: float | None = None
        self._token_loss: float | None = None

    def __len__(self) -> int:
        return len(self._slots)

    def narrow(self, features: Tensor) -> Tensor:
        """[N, P] -> [N, W] of the same lengths, in float32 on the CPU."""
        return narrowed(features, self.width, self.seed)

    def update(self, ids: Tensor, narrow: Tensor, tokens: Tensor, step: int, losses: Tensor | None = None) -> None:
        """Takes the features of some examples.

        Args:
            ids: LongTensor [N]; of one that comes twice the last counts.
            narrow: float32 [N, W], as `narrow` gives them.
            tokens: LongTensor [N], trained tokens of each.
            step: the optimizer step at which they were computed.
            losses: [N], or None.
        """
        if not len(ids):
            return
        last = {example: row for row, example in enumerate(ids.tolist())}
        if len(last) < len(ids):
            rows = torch.tensor(list(last.values()))
            ids, narrow, tokens = ids[rows], narrow[rows], tokens[rows]
            losses = None if losses is None else losses[rows]
        lengths = narrow.norm(dim=1)
        usable = (lengths > 0) & (tokens > 0)
        if bool(usable.any()):
            level = float((lengths[usable].double() / tokens[usable].double().sqrt()).log().mean())
            self._level = level if self._level is None else (1 - _DRIFT) * self._level + _DRIFT * level
        if losses is not None and int(tokens.sum()) > 0:
            mean = float(losses.double().sum() / tokens.sum())
            self._token_loss = mean if self._token_loss is None else (1 - _DRIFT) * self._token_loss + _DRIFT * mean
        self._grow(ids, narrow.shape[1])
        slots = torch.tensor([self._slots[i] for i in ids.tolist()])
        level = self._level or 0.0
        self._directions[slots] = (narrow / lengths.clamp(min=1e-30).unsqueeze(1)).half()
        self._lengths[slots] = (lengths.double() * math.exp(-level)).float()
        self._steps[slots] = step
        if losses is not None:
            self._losses[slots] = losses.float()

    def recall(self, ids: Tensor, tokens: Tensor, step: int, max_age: int | None) -> Recalled:
        """What is known of the examples `ids` [N] with `tokens` [N] trained tokens, at optimizer step `step`; what is
        older than `max_age` steps is not known any more (None: for ever)."""
        slots = torch.tensor([self._slots.get(i, -1) for i in ids.tolist()], dtype=torch.long)
        known = slots >= 0
        if max_age is not None and bool(known.any()):
            known[known.clone()] = step - self._steps[slots[known]] <= max_age
        level = math.exp(self._level or 0.0)
        features = torch.zeros(len(ids), self._directions.shape[1])
        sizes = level * tokens.double().clamp(min=0).sqrt()
        losses = (self._token_loss or 1.0) * tokens.double()
        there = slots[known]
        lengths = self._lengths[there].double() * level
        features[known] = self._directions[there].float() * lengths.float().unsqueeze(1)
        sizes[known] = lengths
        seen = self._losses[there].double()
        losses[known] = torch.where(torch.isnan(seen), losses[known], seen)
        return Recalled(known=known, features=features, sizes=sizes, losses=losses)

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        count = len(self._slots)
        ids = torch.tensor(list(self._slots), dtype=torch.long)  # in the order of their slots
        levels = [math.nan if value is None else value for value in (self._level, self._token_loss)]
        return {
            "ids": ids,
            "directions": self._directions[:count].clone(),
            "lengths": self._lengths[:count].clone(),
            "losses": self._losses[:count].clone(),
            "steps": self._steps[:count].clone(),
            "levels": torch.tensor(levels, dtype=torch.float64),
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        self._slots = {example: slot for slot, example in enumerate(state["ids"].tolist())}
        self._directions, self._lengths = state["directions"].clone(), state["lengths"].clone()
        self._losses, self._steps = state["losses"].clone(), state["steps"].clone()
        level, token_loss = state["levels"].tolist()
        self._level = None if math.isnan(level) else level
        self._token_loss = None if math.isnan(token_loss) else token_loss

    def _grow(self, ids: Tensor, width: int) -> None:
        for example in ids.tolist():
            self._slots.setdefault(example, len(self._slots))
        capacity = len(self._lengths)
        if len(self._slots) <= capacity:
            return
        more = max(2 * capacity, len(self._slots), 64) - capacity
        self._directions = torch.cat([self._directions.view(capacity, width), torch.zeros(more, width).half()])
        self._lengths = torch.cat([self._lengths, torch.zeros(more)])
        self._losses = torch.cat([self._losses, torch.full((more,), math.nan)])
        self._steps = torch.cat([self._steps, torch.zeros(more, dtype=torch.long)])


class LossMemory:
    """What training taught of each row of a data set, by the row's number; 16 bytes a row.

    Args:
        count: N, rows of the data set.

    Attributes:
        losses: float32 [N], the mean token loss of each row when it was trained last; NaN where it never was.
        before: float32 [N], that of the time before; NaN where it was trained once at most.
        sizes: float32 [N], how long its gradient was then, in a unit of the caller's.
        lengths: float32 [N], its tokens.
    """

    def __init__(self, count: int) -> None:
        self.losses, self.before, self.sizes, self.lengths = (torch.full((count,), math.nan) for _ in range(4))

    def update(self, rows: Tensor, losses: Tensor, sizes: Tensor, lengths: Tensor) -> None:
        """Takes what a step taught.

        Args:
            rows: LongTensor [K]; of one that comes twice the last counts.
            losses, sizes, lengths: [K].
        """
        last = {row: at for at, row in enumerate(rows.tolist())}
        rows, taken = torch.tensor(list(last), dtype=torch.long), torch.tensor(list(last.values()), dtype=torch.long)
        self.before[rows] = self.losses[rows]
        for own, given in ((self.losses, losses), (self.sizes, sizes), (self.lengths, lengths)):
            own[rows] = given[taken].float()

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {key: getattr(self, key).clone() for key in ("losses", "before", "sizes", "lengths")}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        for key in ("losses", "before", "sizes", "lengths"):
            setattr(self, key, state[key].clone())

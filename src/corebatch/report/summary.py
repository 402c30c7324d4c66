"""What a run did, in numbers: the record that the table, the page and the JSON are made from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corebatch.files import plain
from corebatch.report.record import Evaluated, Examples
from corebatch.step_line import Distance


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSummary:
    """Means over the first and over the last tenth of the steps (nats per token); None where unknown."""

    first: float | None
    last: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutSummary:
    """A loss on held-out rows at its first and its last measurement (nats per token).

    Attributes:
        name: of the held-out set; empty for all of them together.
        first_step: 0 where it was measured before training.
    """

    name: str
    first_step: int
    last_step: int
    loss: LossSummary


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSummary:
    """One source over the whole run.

    Attributes:
        ratio: share among the chosen over share among the drawn, above 1 if favoured; None if never drawn.
        weight_share: share in the sum of all weights: what part of the update it is; None if weights are not told.
        kept_steps: steps in which it was kept whole as a small source.
        loss: of its rows that were trained, by tokens over the steps; None if not told.
        examples: its size in the data set, None if unknown.
    """

    name: str
    drawn: int
    chosen: int
    drawn_share: float
    chosen_share: float
    ratio: float | None
    kept_steps: int
    weight_share: float | None = None
    loss: LossSummary | None = None
    examples: int | None = None
    small: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseSummary:
    """One phase of the step: mean and median over the steps that report it; share of all measured time."""

    name: str
    mean_ms: float | None
    median_ms: float | None
    share: float | None
    peak_memory_mb: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientSummary:
    """The exact gradients that were compared on a sample of the steps; means over them.

    Attributes:
        steps: how many.
        chosen, random: of the chosen rows with their weights, and of as many random ones.
        squared_ratio: the chosen rows' mean squared error over the random ones'; None without the latter.
        mean_ms: what a comparison took. share: of the time of all phases.
    """

    steps: int
    chosen: Distance
    random: Distance
    squared_ratio: float | None
    mean_ms: float | None
    share: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CutSummary:
    """Positions of micro-batches, padding included; None where they were not told.

    Attributes:
        trained, plain: over all steps and ranks, as rows were cut, and as they would have been without regrouping.
        largest, largest_plain: of one micro-batch.
    """

    trained: int | None
    plain: int | None
    largest: int | None
    largest_plain: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a run did, in numbers.

    Attributes:
        examples_drawn, examples_trained: rows over all steps and ranks.
        pool_size, chosen_size: smallest and largest large and small batch.
        scored_per_second, trained_per_second: tokens over the time of all phases together.
        scored_per_second_in_phase, trained_per_second_in_phase: tokens over the time of `score`, of `train`.
        padding_scored, padding_trained: share of the positions that were computed and hold no token.
        positions: of what was trained.
        mfu: model FLOPs utilisation over the time of all phases (share); peak_flops: what a device could do
            (FLOP/s), and peak_how it is known.
        reuse_mb: the most that scoring kept for training in a step. bytes_sent: between ranks, over
            all steps, by what for. rows_moved: over all steps. token_imbalance: mean.
        claimed: what the updates are those of, in words.
        scored: what is scored, in words. scoring: number of steps by the way in which the pool was scored.
        phase_seconds: time in all phases. wall_seconds: wall-clock time, evaluation and saving included.
        sources: by falling number drawn.
        loss_window: how many steps a tenth is.
        weight_max: largest weight of the run; effective_sample_size: its mean over steps; None if not told.
        carried: the sum of errors that feedback carries at the end.
        passes: rows that came in each pass over the data, where those that are learnt were left out.
        weighted: whether any weight was other than one.
        kept: sources that were kept whole in any step.
        held_out: losses that were measured twice or more, over all sets first.
        against: what a comparison found against plain training, in sentences; empty without one.
        gradient: None unless it was tracked. examples: None if they were not counted.
    """

    name: str
    model: str | None
    coreset: Mapping[str, Any]
    steps: int
    first_step: int
    last_step: int
    epochs: float | None
    examples_drawn: int
    examples_trained: int
    pool_size: tuple[int, int]
    chosen_size: tuple[int, int]
    dropped_rows: int | None
    tokens_scored: int | None
    tokens_trained: int | None
    labels_scored: int | None
    labels_trained: int | None
    scored_per_second: float | None
    trained_per_second: float | None
    scored_per_second_in_phase: float | None
    trained_per_second_in_phase: float | None
    padding_scored: float | None
    padding_trained: float | None
    positions: CutSummary
    mfu: float | None
    peak_flops: float | None
    peak_how: str | None
    reuse_mb: float | None
    bytes_sent: dict[str, int]
    rows_moved: int | None
    token_imbalance: float | None
    claimed: str | None
    scored: str | None
    scoring: Mapping[str, int]
    phase_seconds: float | None
    wall_seconds: float | None
    phases: tuple[PhaseSummary, ...]
    sources: tuple[SourceSummary, ...]
    loss_window: int
    pool_loss: LossSummary
    chosen_loss: LossSummary
    train_loss: LossSummary
    weighted: bool
    weight_max: float | None
    effective_sample_size: float | None
    carried: float | None
    passes: tuple[int, ...]
    kept: tuple[str, ...]
    held_out: tuple[HeldOutSummary, ...]
    against: tuple[str, ...]
    gradient: GradientSummary | None
    examples: Examples | None
    before: Evaluated | None
    after: Evaluated | None
    notes: tuple[str, ...]

    @property
    def chooses(self) -> bool:
        """Whether steps chose rows; with pool_factor 1 every row is trained."""
        return self.coreset.get("pool_factor") != 1

    @property
    def scores(self) -> bool:
        """Whether rows were scored, as far as is known."""
        return self.chooses and self.tokens_scored != 0

    @property
    def cut(self) -> str:
        """By what rows were cut into micro-batches: a name."""
        told = self.coreset.get("micro_batches", "auto")
        return str(told.get("by", "positions") if isinstance(told, Mapping) else told)

    def to_dict(self) -> dict[str, Any]:
        """Plain values only: what `to_json` writes."""
        found: dict[str, Any] = plain(dataclasses.asdict(self))
        return found

    def to_json(self) -> str:
        """The summary as one JSON object in ASCII; the same run gives the same bytes."""
        return json.dumps(self.to_dict(), allow_nan=False)

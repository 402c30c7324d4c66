"""The record of one optimizer step: what writers of `selection.jsonl` write and its readers read."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """A small batch's gradient against the large batch's: |difference| / |large|, cosine, |small| / |large|; None where
    one is not finite."""

    error: float | None = None
    cosine: float | None = None
    length: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientError(Distance):
    """What one step measured: of the chosen rows with their weights, and of as many random ones.

    Attributes:
        norm: of the large batch's gradient.
    """

    norm: float | None = None
    random: Distance = Distance()

    @property
    def chosen(self) -> Distance:
        """The distance of the chosen rows."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """One optimizer step: one line of `selection.jsonl`, its fields in their order there. What a line leaves out, since
    it was not measured or the run is of an older version, is None or empty.

    Attributes:
        step: optimizer step, counted from 1.
        drawn, chosen: rows by source. weights: the sum of the chosen rows' weights by source.
        shares: of the sources in what the step claims, where an online objective changes them. average_shares: their
            mean over the steps before it, where that is the method's result.
        kept: sources that were kept whole in this step.
        data_pass: the pass over the data that the step's last row is of, from 1, where passes leave rows out that are
            learnt. pass_rows: how many rows come in it.
        pool_examples, chosen_examples: rows drawn, rows trained on, over all ranks.
        examples_scored: rows that a forward scored. scoring: how the pool was scored in this step.
        pool_loss, chosen_loss: token means when the pool was scored, without weights (nats per token).
        drawn_loss_by_source: token means of the sources when the whole pool was scored (nats per token).
        loss_by_source: token means of what was trained, by source: by the selector's weights they estimate those of
            what was drawn (nats per token); None where they are not known. loss_tokens: the weighted tokens that each
            is over.
        tokens_scored, tokens_trained: without padding; positions_scored, positions_trained: with it (those scored are
            estimated by the tokens of all ranks).
        positions_plain: of the same rows in micro-batches as without regrouping: the loader's own where every row is
            trained, else of the rows in the order in which they were drawn.
        largest_micro_batch, largest_plain: positions of the largest of all ranks, and of the largest as without
            regrouping.
        labels_scored, labels_trained: tokens that count in the loss.
        weight_max, effective_sample_size: of the weights of the chosen rows.
        rows_moved: chosen rows that changed ranks.
        token_imbalance: how many more tokens the busiest rank trained than the mean (share of the mean).
        bytes_sent: between ranks, by what for; all ranks together.
        drawn_at_random: whether the step's rows are a random part of the pool, so that they tell the noise, where those
            of other steps are chosen jointly.
        carried: with error feedback, the length of the sum of errors after the step, in mean norms of a row.
        reuse_mb: what scoring kept for training, in megabytes.
        gradient_error: where the step's gradients were compared.
        noise_signal, noise_trace: estimates by this step of the gradient's squared length, and of the variance of one
            row, where they were measured. noise_scale: the rows of which both are equal, by running averages of both;
            None while the signal does not show.
        padding_scored, padding_trained: share of the positions that hold no token.
        train_loss: the loss that was minimised, with weights (nats per token).
        mfu: model FLOPs utilisation: FLOPs that the model needs over what the devices could do in the time (share).
        ms: milliseconds by phase. memory_mb: peak memory by phase, in megabytes.
        seconds: wall-clock time since the start of training, at the end of the step.
    """

    step: int
    epoch: float | None = None
    drawn: Mapping[str, int] = field(default_factory=dict)
    chosen: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    shares: Mapping[str, float] = field(default_factory=dict)
    average_shares: Mapping[str, float] = field(default_factory=dict)
    kept: tuple[str, ...] = ()
    data_pass: int | None = None
    pass_rows: int | None = None
    pool_examples: int
    chosen_examples: int
    examples_scored: int | None = None
    scoring: str | None = None
    pool_loss: float | None = None
    chosen_loss: float | None = None
    drawn_loss_by_source: Mapping[str, float] | None = None
    loss_by_source: Mapping[str, float] | None = None
    loss_tokens: Mapping[str, float] | None = None
    tokens_scored: int | None = None
    tokens_trained: int | None = None
    labels_scored: int | None = None
    labels_trained: int | None = None
    weight_max: float | None = None
    effective_sample_size: float | None = None
    positions_scored: int | None = None
    positions_trained: int | None = None
    positions_plain: int | None = None
    largest_micro_batch: int | None = None
    largest_plain: int | None = None
    rows_moved: int | None = None
    token_imbalance: float | None = None
    bytes_sent: Mapping[str, int] = field(default_factory=dict)
    drawn_at_random: bool | None = None
    carried: float | None = None
    reuse_mb: float | None = None
    gradient_error: GradientError | None = None
    noise_signal: float | None = None
    noise_trace: float | None = None
    noise_scale: float | None = None
    padding_scored: float | None = None
    padding_trained: float | None = None
    train_loss: float | None = None
    mfu: float | None = None
    ms: Mapping[str, float] = field(default_factory=dict)
    memory_mb: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None

    def to_dict(self, names: Container[str]) -> dict[str, Any]:
        """Plain JSON of the fields that are named, in their order."""
        line = {each.name: getattr(self, each.name) for each in fields(self) if each.name in names}
        if "gradient_error" in line:
            line["gradient_error"] = asdict(line["gradient_error"])
        return line

"""Held-out loss as three means: over tokens, over examples, over sources; and as a task."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from corebatch.errors import DataError, InputError, NonFiniteError, UnsupportedModelError
from corebatch.evaluation.generate import progress_bar
from corebatch.evaluation.tasks import RunOptions, Task, limited
from corebatch.model.head import find_head, logits_at
from corebatch.model.modes import evaluating
from corebatch.types import IGNORED

# Shape suffixes: N rows, T tokens, L positions with a label, H hidden size, V vocabulary.


@dataclass(frozen=True, kw_only=True)
class LossMeans:
    """Loss in nats a token over a set of examples; `example_mean` is the mean of the examples' own means."""

    token_mean: float
    example_mean: float
    tokens: int
    examples: int


@dataclass(frozen=True, kw_only=True)
class HeldoutLoss:
    """The loss over all examples and by source; rows without a label are left out and counted in `skipped`."""

    overall: LossMeans
    sources: dict[str, LossMeans]
    skipped: int

    @property
    def token_mean(self) -> float:
        """Every token counts once."""
        return self.overall.token_mean

    @property
    def example_mean(self) -> float:
        """Every example counts once."""
        return self.overall.example_mean

    @property
    def source_mean(self) -> float:
        """Mean of the sources' token means: every source counts once."""
        return sum(means.token_mean for means in self.sources.values()) / len(self.sources)

    def to_dict(self) -> dict[str, Any]:
        return {"source_mean": self.source_mean, **asdict(self)}


def heldout_loss(
    model: nn.Module,
    batches: Iterable[Mapping[str, Any]],
    *,
    source_key: str = "source",
    source_names: Sequence[str] | None = None,
    chunk_tokens: int = 1024,
) -> HeldoutLoss:
    """The model's next-token loss on collated batches, in eval mode, without gradients.

    Args:
        batches: dicts with `input_ids` and `labels` [N, T] (-100 where not scored), usually `attention_mask`, and
            optionally `source_key`: N strings, or N integers, which index `source_names` if given.
        chunk_tokens: at most so many label positions reach the output head at once: logits are [L, V], never
            [N, T, V]. A row with more labels is forwarded once a chunk.

    Raises:
        DataError: no batch has a label, or a batch lacks a key or has a source too few or out of range.
        NonFiniteError: a loss is NaN or infinite.
        UnsupportedModelError: the model has no output head that sees hidden states [N, T, H].
    """
    if chunk_tokens < 1:
        raise InputError(f"`chunk_tokens` should be at least 1. Found {chunk_tokens}.")
    head = evaluated_head(model)
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    skipped = 0
    with evaluating(model), torch.no_grad():
        for number, batch in enumerate(batches):
            sources = _sources(batch, number, source_key, source_names)
            sums_N, counts_N = row_losses(model, head, batch, chunk_tokens)
            for row, (loss, count) in enumerate(zip(sums_N.tolist(), counts_N.tolist(), strict=True)):
                if count == 0:
                    skipped += 1
                elif loss - loss != 0:
                    raise NonFiniteError(
                        f"The held-out loss should be finite. Found {loss} in batch {number}, row {row}."
                    )
                else:
                    found[sources[row]].append((loss, count))
    if not found:
        raise DataError(f"The held-out batches should have a label. Found {skipped} rows without one.")
    overall = _means([pair for pairs in found.values() for pair in pairs])
    return HeldoutLoss(overall=overall, sources={name: _means(found[name]) for name in sorted(found)}, skipped=skipped)


def evaluated_head(model: nn.Module) -> nn.Module:
    """The module that makes logits of hidden states. Raises UnsupportedModelError: there is none."""
    head = find_head(model)
    if head is None:
        raise UnsupportedModelError(f"{type(model).__name__} should have an output head. Found none.")
    return head


def _means(pairs: Sequence[tuple[float, int]]) -> LossMeans:
    tokens = sum(count for _, count in pairs)
    return LossMeans(
        token_mean=sum(loss for loss, _ in pairs) / tokens,
        example_mean=sum(loss / count for loss, count in pairs) / len(pairs),
        tokens=tokens,
        examples=len(pairs),
    )


def _sources(batch: Mapping[str, Any], number: int, key: str, names: Sequence[str] | None) -> list[str]:
    for needed in ("input_ids", "labels"):
        if needed not in batch:
            raise DataError(f"Batch {number} should have `{needed}`. Found the keys {sorted(batch)}.")
    rows = len(batch["labels"])
    given = batch.get(key, ["all"] * rows)
    labels = given.tolist() if isinstance(given, Tensor) else list(given)
    if len(labels) != rows:
        raise DataError(f"Batch {number} should have {rows} values of `{key}`. Found {len(labels)}.")
    if names is None or not all(isinstance(label, int) for label in labels):
        return [str(label) for label in labels]
    if not all(0 <= label < len(names) for label in labels):
        raise DataError(f"`{key}` in batch {number} should be within 0..{len(names) - 1}. Found {labels}.")
    return [names[label] for label in labels]


def row_losses(model: nn.Module, head: nn.Module, batch: Mapping[str, Any], chunk: int) -> tuple[Tensor, Tensor]:
    """Sum of token losses (float64) and number of labels by row, both [N] on the CPU."""
    device = next(model.parameters()).device
    inputs = {k: batch[k].to(device) for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
    targets_NT = batch["labels"].to(device)[:, 1:]
    scored_NT = targets_NT != IGNORED
    counts_N = scored_NT.sum(1)
    sums_N = torch.zeros(len(targets_NT), dtype=torch.float64, device=device)
    for rows, wanted_NT in _chunks(scored_NT, counts_N.tolist(), chunk):
        logits_LV = logits_at(model, head, {k: v[rows] for k, v in inputs.items()}, wanted_NT)
        targets_L = targets_NT[rows][wanted_NT]
        wide = logits_LV.dtype if logits_LV.dtype == torch.float64 else torch.float32
        losses_L = nn.functional.cross_entropy(logits_LV.to(wide), targets_L, reduction="none")
        row_of_L = wanted_NT.nonzero()[:, 0] + rows.start
        sums_N.index_add_(0, row_of_L, losses_L.double())
    return sums_N.cpu(), counts_N.cpu()


def _chunks(scored_NT: Tensor, counts: Sequence[int], chunk: int) -> Iterator[tuple[slice, Tensor]]:
    """Rows with at most `chunk` labels together, and which positions to score; a longer row comes in parts."""
    start = 0
    while start < len(counts):
        stop, total = start + 1, counts[start]
        while stop < len(counts) and total + counts[stop] <= chunk:
            total += counts[stop]
            stop += 1
        rows = slice(start, stop)
        part_NT = scored_NT[rows]
        rank_NT = part_NT.flatten().cumsum(0).view_as(part_NT) - 1
        for first in range(0, total, chunk):
            yield rows, part_NT & (rank_NT >= first) & (rank_NT < first + chunk)
        start = stop


@dataclass(frozen=True, kw_only=True)
class LossResult:
    """A held-out loss with its task's name; `rows` are for a table."""

    columns: ClassVar[tuple[str, ...]] = ("source", "nats a token", "mean of examples", "examples", "tokens")
    task: str
    loss: HeldoutLoss
    settings: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {"task": self.task, **self.loss.to_dict(), "settings": dict(self.settings)}

    def rows(self) -> list[tuple[str, ...]]:
        named = [*self.loss.sources.items(), ("all", self.loss.overall)]
        return [
            *(_cells(name, means) for name, means in named),
            ("mean of sources", f"{self.loss.source_mean:.4f}") + ("",) * 3,
        ]


def _cells(name: str, means: LossMeans) -> tuple[str, ...]:
    return (
        name, f"{means.token_mean:.4f}", f"{means.example_mean:.4f}", f"{means.examples:,}", f"{means.tokens:,}",
    )  # fmt: skip


class HeldoutLossTask(Task[LossResult]):
    """The loss on tokenised rows, by source: `HeldoutLossTask(load_mixture([...], tokenizer).dataset)`."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], *, name: str = "heldout_loss") -> None:
        """Takes rows with `input_ids` and `labels` (equally long lists, -100 where not scored), and optionally
        `source`. Raises DataError: no rows."""
        if not len(rows):
            raise DataError("A held-out loss should have at least one row. Found none.")
        self.name = name
        self._rows = rows

    def run(self, model: Any, tokenizer: Any, options: RunOptions) -> LossResult:
        rows = limited([_row(row, n) for n, row in enumerate(self._rows)], options.limit, lambda row: row["source"])
        rows.sort(key=lambda row: -len(row["input_ids"]))  # little padding, and memory peaks at once
        pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
        with progress_bar(options.progress, options.description, len(rows)) as tick:

            def batches() -> Iterator[dict[str, Any]]:
                for start in range(0, len(rows), options.batch_size):
                    chosen = rows[start : start + options.batch_size]
                    yield _padded(chosen, pad)
                    tick(len(chosen))

            loss = heldout_loss(model, batches())
        settings: dict[str, Any] = {"batch_size": options.batch_size}
        if options.limit is not None:
            settings["limit"] = options.limit
        return LossResult(task=self.name, loss=loss, settings=settings)


def _row(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    missing = [key for key in ("input_ids", "labels") if key not in row]
    if missing or len(row["input_ids"]) != len(row["labels"]):
        raise DataError(f"Row {number} should have `input_ids` and `labels` of one length. Found {sorted(row)}.")
    return {key: list(row[key]) for key in ("input_ids", "labels")} | {"source": str(row.get("source", "all"))}


def _padded(rows: Sequence[Mapping[str, Any]], pad: int) -> dict[str, Any]:
    ids = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(ids, True, pad),
        "attention_mask": pad_sequence([torch.ones_like(each) for each in ids], True),
        "labels": pad_sequence([torch.tensor(row["labels"], dtype=torch.long) for row in rows], True, IGNORED),
        "source": [row["source"] for row in rows],
    }

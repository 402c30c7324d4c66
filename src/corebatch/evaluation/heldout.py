"""Held-out loss by source, as a task."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn.utils.rnn import pad_sequence

from corebatch.errors import DataError
from corebatch.evaluation.generate import progress_bar
from corebatch.evaluation.loss import HeldoutLoss, LossMeans, heldout_loss
from corebatch.evaluation.tasks import RunOptions, Task, limited
from corebatch.types import IGNORED


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

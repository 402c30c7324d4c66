"""What a process needs to train and measure the arms of a comparison."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from corebatch.evaluation import HeldoutLoss, heldout_loss


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out rows as batches on the model's device; `source` [N] indexes `names`."""

    batches: Sequence[Mapping[str, Tensor]]
    names: Sequence[str]

    @classmethod
    def of(
        cls, dataset: Any, rows: Sequence[int], collate: Callable[[Any], Any], size: int, device: str, names: Any
    ) -> HeldOut:
        """Batches of `size` rows, sorted by length."""
        order = sorted(rows, key=lambda i: (len(dataset[i]["input_ids"]), i))
        batches = []
        for start in range(0, len(order), size):
            found = [dataset[i] for i in order[start : start + size]]
            batch = {key: value.to(device) for key, value in collate(found).items()}
            batch["source"] = torch.tensor([names.index(row["source"]) for row in found])
            batches.append(batch)
        return cls(batches=batches, names=names)

    def loss(self, model: Any) -> dict[str, Any]:
        """Nats a token by three means, and by source."""
        return loss_values(heldout_loss(model, self.batches, source_names=list(self.names)))


def loss_values(found: HeldoutLoss) -> dict[str, Any]:
    """As a line has it."""
    sources = {name: means.token_mean for name, means in sorted(found.sources.items())}
    return {"token": found.token_mean, "example": found.example_mean, "source": found.source_mean, "sources": sources}


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a process needs to run jobs: how to make the model, and the data.

    Attributes:
        make_model: a fresh model, on no device; the same for the same seed of the global generator.
        train: tokenised rows with a column `source`.
        tune, curve, final: held-out rows, by what they are for.
        evaluate_tasks: model -> accuracy by name of the task.
    """

    make_model: Callable[[], Any]
    tokenizer: Any
    train: Any
    collate: Callable[[Any], dict[str, Tensor]]
    tune: HeldOut
    curve: HeldOut
    final: HeldOut
    evaluate_tasks: Callable[[Any], dict[str, float]] | None = None

"""A run of the search, as a worker process makes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from corebatch.bench.runs.from_config import RunData
from corebatch.bench.runs.jobs import Workplace
from corebatch.bench.runs.training_run import RunPlan, train_arm
from corebatch.config.building import load_model
from corebatch.config.settings import Settings


@dataclass(frozen=True, kw_only=True)
class TrialJob(RunPlan):
    """Trains with these shares of the rows that are drawn, and measures held-out loss.

    Attributes:
        number: of the run, from 0.
        shares: of the sources that are searched for, by name; the others share what is left.
        model_name_or_path: a smaller model; None: the config's.
        held_out: the rows that it is measured on: "tune", or "final", which the search does not see.
    """

    kind: ClassVar[str] = "trial"
    number: int
    shares: Mapping[str, float]
    model_name_or_path: str | None = None
    held_out: str = "tune"

    @property
    def title(self) -> str:
        return f"run {self.number}"

    def run(self, here: Workplace) -> dict[str, Any]:
        arm, data = here.parts.arms[0], here.data
        coreset = arm.coreset.changed(objective="drawn", sampling={"shares": dict(self.shares)})
        arm = dataclasses.replace(arm, coreset=coreset)
        if self.model_name_or_path is not None:
            data = with_model(data, here.parts.settings, self.model_name_or_path)
        model, counts = train_arm(arm, data, self)
        held = data.tune if self.held_out == "tune" else data.final
        return {"tokens_trained": counts.tokens_trained, "losses": held.loss(model)}


def with_model(data: RunData, settings: Settings, path: str) -> RunData:
    """The same data for another model."""
    other = dataclasses.replace(settings, model=dataclasses.replace(settings.model, model_name_or_path=path))
    return dataclasses.replace(data, make_model=lambda: load_model(other))

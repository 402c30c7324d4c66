"""The `search:` block of a config file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corebatch.bench.runs.comparison import MEANS
from corebatch.config.coerce import block_of
from corebatch.errors import ConfigError
from corebatch.options import check_count, is_number


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How closely a run stands for a whole one.

    Attributes:
        steps: its share of the whole run's steps, in (0, 1].
        model_name_or_path: a smaller model with the same vocabulary; None: the config's own.
        cost: relative to a whole run's; the share of steps where the model is the config's own.
    """

    steps: float
    model_name_or_path: str | None = None
    cost: float


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The keys of the `search:` block.

    Attributes:
        trials: runs of the search, of any fidelity; three whole runs follow that measure what it found.
        steps: optimizer steps of a whole run; None: the config's.
        fidelities: from the cheapest to the whole run: shares of its steps, or blocks of steps, model_name_or_path
            and cost.
        metric: the held-out loss that is made small: "source", "token" or "example", the mean over these, or
            {source: weight}.
        seed: of proposals and of all runs of the search; the runs that measure have the next one.
        sources: whose shares are searched for; None: all. The others share what is left in proportion to their rows.
        processes: runs side by side, which are proposed together.
    """

    trials: int = 32
    steps: int | None = None
    fidelities: tuple[Fidelity, ...] = (Fidelity(steps=0.25, cost=0.25), Fidelity(steps=1.0, cost=1.0))
    metric: str | Mapping[str, float] = "source"
    seed: int = 0
    sources: tuple[str, ...] | None = None
    processes: int = 1

    @classmethod
    def from_dict(cls, block: Any) -> SearchSettings:
        """Raises ConfigError for an unknown key, or a value out of range."""
        values = block_of(block, cls, "search")
        if values.get("fidelities") is not None:
            values["fidelities"] = _fidelities(values["fidelities"])
        if isinstance(values.get("sources"), list):
            values["sources"] = tuple(values["sources"])
        made = cls(**values)
        made._check()
        return made

    def _check(self) -> None:
        for name in ("trials", "processes"):
            check_count(f"search.{name}", getattr(self, name))
        check_count("search.seed", self.seed, least=0)
        if self.steps is not None:
            check_count("search.steps", self.steps, more=", or none")
        names = self.sources
        if names is not None and (
            not isinstance(names, tuple) or not names or len({*names}) < len(names) or any(_no_text(n) for n in names)
        ):
            raise ConfigError(f"search.sources should be a list of different names. Found {names!r}.")
        if isinstance(self.metric, Mapping):
            weights = list(self.metric.values())
            if not all(is_number(weight) and weight >= 0 for weight in weights) or not sum(weights) > 0:
                raise ConfigError(
                    f"search.metric should weigh sources by numbers of at least 0, some above. Found {self.metric!r}."
                )
        elif self.metric not in MEANS:
            raise ConfigError(
                f"search.metric should be {', '.join(MEANS)} or weights by source. Found {self.metric!r}."
            )

    def value(self, losses: Mapping[str, Any]) -> float:
        """What is made small, of held-out losses: nats a token."""
        if isinstance(self.metric, str):
            return float(losses[self.metric])
        weights = {name: weight for name, weight in self.metric.items() if weight}
        return sum(weight * losses["sources"][name] for name, weight in weights.items()) / sum(weights.values())

    def steps_of(self, fidelity: Fidelity, whole: int) -> int:
        """Optimizer steps of a run."""
        return max(1, round(fidelity.steps * whole))


def _fidelities(given: Any) -> tuple[Fidelity, ...]:
    where = "search.fidelities"
    if not isinstance(given, list | tuple) or not given:
        raise ConfigError(f"{where} should be a list of shares of a whole run's steps, or of blocks. Found {given!r}.")
    made = tuple(_fidelity(each, where) for each in given)
    costs = [each.cost for each in made]
    if costs != sorted(set(costs)) or made[-1] != Fidelity(steps=1.0, cost=1.0):
        raise ConfigError(
            f"{where} should become dearer one by one and end with the whole run, 1.0. Found costs of "
            f"{', '.join(f'{cost:g}' for cost in costs)}."
        )
    return made


def _fidelity(given: Any, where: str) -> Fidelity:
    values = block_of(given if isinstance(given, Mapping) else {"steps": given}, Fidelity, where)
    if not values.get("model_name_or_path"):
        if "cost" in values:
            raise ConfigError(f"{where}: cost is of a smaller model; else it is the share of steps. Found {given!r}.")
        values["cost"] = values.get("steps")
    for key in ("steps", "cost"):
        if not is_number(values.get(key)) or not 0 < values[key] <= 1:
            raise ConfigError(f"{where}: {key} should be a share of a whole run, in (0, 1]. Found {given!r}.")
    return Fidelity(**{**values, "steps": float(values["steps"]), "cost": float(values["cost"])})


def _no_text(value: Any) -> bool:
    return not isinstance(value, str) or not value

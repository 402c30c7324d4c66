"""Which means of the held-out loss an objective is about, beside the three that every comparison has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from corebatch.bench.runs.comparison import MEANS
from corebatch.errors import ConfigError
from corebatch.objective import Objective
from corebatch.options import hint

Shares = Mapping[str, Mapping[str, float]]
"""Of sources, by the name of the mean, one of BY_SHARES."""

_OF = {"tokens": "token", "drawn": "token", "examples": "example", "sources": "source", "online": "source"}


def at_the_end(objective: Objective) -> Objective:
    """What a schedule ends with; the objective itself where it is none."""
    return objective if objective.schedule is None else at_the_end(objective.schedule.at(1.0)[1])


def mean_of(objective: Objective) -> str:
    """The mean that an objective is about, a schedule by its end: one of MEANS, or "claimed" for shares of its own."""
    return _OF.get(at_the_end(objective).kind, "claimed")


def shares_of(
    objective: Objective, trained: Mapping[str, float], held_out: Iterable[str]
) -> dict[str, dict[str, float]]:
    """The shares of the sources in means that have shares of their own.

    Args:
        trained: trained tokens of each source of the train set, or numbers in proportion to them.
        held_out: the sources of the held-out rows.

    Raises:
        ConfigError: a share of a source that is not there, or no held-out source has one.
    """
    if mean_of(objective) in MEANS:
        return {}
    found = at_the_end(objective).of_sources({name: count for name, count in trained.items() if count}) or {}
    there = sorted(set(held_out))
    shares = {name: share for name, share in found.items() if share > 0 and name in there}
    if not shares:
        raise ConfigError(
            f"eval_datasets should have rows of sources that the objective counts: {', '.join(found)}. Found "
            f"{', '.join(there)}."
        )
    whole = sum(shares.values())
    return {"claimed": {name: share / whole for name, share in shares.items()}}


def kept_and_target(kept: Sequence[str], held_out: Iterable[str]) -> dict[str, dict[str, float]]:
    """Means over the sources that are to be kept and over all others, each source alike; none where none is named.

    Raises:
        ConfigError: a source without held-out rows, or none is left to train for.
    """
    there = sorted(set(held_out))
    for name in kept:
        if name not in there:
            raise ConfigError(
                f"compare.kept should name sources of eval_datasets: {', '.join(there)}. Found {name!r}."
                f"{hint(str(name), there)}"
            )
    others = [name for name in there if name not in kept]
    if kept and not others:
        raise ConfigError(f"compare.kept should leave a source to train for. Found all of them: {', '.join(there)}.")
    named = {"kept": list(dict.fromkeys(kept)), "target": others} if kept else {}
    return {mean: dict.fromkeys(names, 1 / len(names)) for mean, names in named.items()}

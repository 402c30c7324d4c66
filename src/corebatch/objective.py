"""What a step claims: by how much the loss of each row counts in the update.

    the update that a step claims    sum_i u_i L_i / (trained tokens of the large batch)

L_i is row i's summed token loss, and u_i the objective's weight:

    tokens          u_i = 1, the Trainer's own: a source counts by its trained tokens
    examples        u_i = (trained tokens a row of the large batch) / (those of row i): the mean of examples' own means
    sources         u_i = (1 / S) / (share of i's source among all trained tokens of the data set)
    {source: w}     u_i = w_s / that share
    temperature T   w_s in proportion to (trained tokens of s)^T: 1 is tokens, 0 is sources
    online method   u_i = w_s / that share, with w_s that change as the run goes on (`corebatch.sampling.online`)
    drawn           u_i = 1, and rows count as often as they are drawn, whatever `sampling` made of the data

Shares are counted over the data set, so that u_i does not depend on who else is in a batch. Rows that are drawn more
often than they are in the data are corrected for (a_i), but for `drawn`. A data set's `weight_column` multiplies u_i.
`corebatch.batch.weights` has the whole law.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from corebatch.errors import ConfigError
from corebatch.options import hint, is_number
from corebatch.sampling.online import ONLINE, make_online
from corebatch.sampling.schedule import Schedule, parse_schedule
from corebatch.sources import complete_shares

WORDS = {
    "tokens": "the mean over trained tokens",
    "examples": "the mean over examples of each one's mean",
    "sources": "the mean over {sources}, each by the mean over its tokens",
    "drawn": "the mean over trained tokens of what is drawn",
}
"""Objectives that need no number, and what they are the mean over."""


@dataclass(frozen=True)
class Objective:
    """What the large batch's update should be.

    Attributes:
        kind: a key of WORDS, "shares", "temperature", "online" or "schedule".
        shares: by source name, for "shares".
        temperature: for "temperature".
        online, options: for "online": the method's name and options.
        schedule: of other objectives, for "schedule".
    """

    kind: str
    shares: Mapping[str, float] = field(default_factory=dict, hash=False)
    temperature: float = 1.0
    online: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    schedule: Schedule[Objective] | None = None

    @property
    def parts(self) -> list[Objective]:
        """Those that a schedule goes through, or itself."""
        return [self] if self.schedule is None else [part.value for part in self.schedule.parts]

    @property
    def by_source(self) -> bool:
        """Whether trained tokens have to be counted by source."""
        if self.schedule is not None:
            return any(part.by_source for part in self.parts)
        return self.kind in ("sources", "shares", "temperature", "online")

    @property
    def by_example(self) -> bool:
        """Whether the unit of losses and gradients is an example's mean."""
        return self.kind == "examples"

    @property
    def corrects(self) -> bool:
        """Whether it counts rows as often as they are in the data, however often they are drawn."""
        return self.kind != "drawn"

    @property
    def plainly_tokens(self) -> bool:
        """Whether it is the Trainer's own."""
        return self.kind in ("tokens", "drawn")

    def of_sources(self, tokens: Mapping[str, float]) -> dict[str, float] | None:
        """The share w_s of each source, summing to 1; None where sources count by what rows say, or shares change.

        Args:
            tokens: trained tokens of each source in the data set, above 0.

        Raises:
            ConfigError: a share of a source that is not there.
        """
        if self.kind == "sources":
            return dict.fromkeys(tokens, 1 / len(tokens))
        if self.kind == "shares":
            return complete_shares(self.shares, tokens, "coreset.objective")
        if self.kind == "temperature":
            largest = max(tokens.values())
            powers = {name: (count / largest) ** self.temperature for name, count in tokens.items()}
            return {name: power / sum(powers.values()) for name, power in powers.items()}
        return None

    def in_words(self, sources: int | None = None) -> str:
        """What it is, for logs, reports and model cards: "the mean over 9 sources, ..."."""
        if self.schedule is not None:
            return self.schedule.words(lambda part: part.in_words(sources))
        if self.kind == "shares":
            named = ", ".join(f"{name} {share:g}" for name, share in self.shares.items())
            return f"a mean over sources with the shares {named}"
        many = "sources" if sources is None else f"{sources} source{'s' * (sources != 1)}"
        if self.kind == "temperature":
            return f"a mean over {many} with shares in proportion to (trained tokens)^{self.temperature:g}"
        if self.kind == "online":
            return f"a mean over {many} with shares that {self.online} changes"
        return WORDS[self.kind].format(sources=many)

    def sources_counted(self) -> str:
        """How sources count, however often they are drawn: "as in the data", or for what else."""
        return f"for {self.in_words()}" if self.by_source else "as in the data"

    def plain(self) -> Any:
        """As a config file has it."""
        if self.schedule is not None:
            return self.schedule.plain()
        if self.kind == "shares":
            return dict(self.shares)
        if self.kind == "online":
            return {"online": self.online, **self.options}
        return {"temperature": self.temperature} if self.kind == "temperature" else self.kind


def make_objective(value: Any) -> Objective:
    """From what a config or a caller says.

    Args:
        value: a key of WORDS, {source: share}, {"temperature": T}, {"online": name, **options}, a list of parts (a
            schedule), or an Objective.

    Raises:
        ConfigError: an unknown word, a share or temperature out of range, or a schedule with a gap or an overlap.
    """
    if isinstance(value, Objective):
        return value
    if isinstance(value, str):
        if value not in WORDS:
            online = f" Did you mean {{online: {value}}}?" if value in ONLINE else hint(value, WORDS)
            raise ConfigError(f"{_EXPECTED} Found {value!r}.{online}")
        return Objective(value)
    if isinstance(value, Mapping):
        return _of_mapping(value)
    if isinstance(value, Sequence):
        return Objective("schedule", schedule=parse_schedule(value, _part, "coreset.objective"))
    raise ConfigError(f"{_EXPECTED} Found {value!r}.")


_EXPECTED = (
    f"coreset.objective should be {', '.join(WORDS)}, a mapping of sources to shares, {{temperature: T}}, "
    "{online: name}, or a list of parts."
)

LOSSES = {"token_mean": "tokens", "example_mean": "examples"}
"""`coreset.loss` by the objective that it stands for."""


def one_objective(objective: Any, loss: Any) -> Objective:
    """Of `coreset.objective` and `coreset.loss`, of which one says it, and "auto" nothing; by default "tokens".

    Raises:
        ConfigError: an unknown loss, or two that say different things.
    """
    silent = isinstance(objective, str) and objective == "auto"
    if loss == "auto":
        return make_objective("tokens" if silent else objective)
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ConfigError(f"coreset.loss should be token_mean or example_mean. Found {loss!r}.")
    made = make_objective(LOSSES[loss] if silent else objective)
    if made.by_example != (loss == "example_mean"):
        raise ConfigError(
            f"coreset.loss {loss!r} stands for the objective {LOSSES[loss]!r}. Found coreset.objective {objective!r} "
            "beside it: leave loss out."
        )
    return made


def check_counting(objective: Objective, weight_column: object, source_tokens: object) -> None:
    """Raises ConfigError for a column that is none, or for counts of tokens that are none or that nobody asks for."""
    if weight_column is not None and (not isinstance(weight_column, str) or not weight_column):
        raise ConfigError(f"coreset.weight_column should be the name of a column, or none. Found {weight_column!r}.")
    if source_tokens is None:
        return
    if not isinstance(source_tokens, Mapping) or not source_tokens:
        raise ConfigError(f"coreset.source_tokens should map sources to trained tokens. Found {source_tokens!r}.")
    for name, count in source_tokens.items():
        if not is_number(count) or count <= 0:
            raise ConfigError(f"coreset.source_tokens of {name!r} should be a number above 0. Found {count!r}.")
    if not objective.by_source:
        raise ConfigError(
            f"coreset.source_tokens goes with an objective by source. Found coreset.objective {objective.plain()!r}."
        )


def _part(value: Any) -> Objective:
    made = make_objective(value)
    if made.kind in ("schedule", "drawn", "online"):
        raise ConfigError(f"coreset.objective: a part of a schedule should not be {made.kind!r} itself.")
    return made


def _of_mapping(value: Mapping[Any, Any]) -> Objective:
    if "online" in value and not is_number(value["online"]):  # a source may have that name
        name, options = value["online"], {key: each for key, each in value.items() if key != "online"}
        if not isinstance(name, str):
            raise ConfigError(f"coreset.objective.online should be one of {', '.join(ONLINE)}. Found {name!r}.")
        make_online(name, options)
        return Objective("online", online=name, options=options)
    if set(value) == {"temperature"}:
        temperature = value["temperature"]
        if not is_number(temperature) or temperature < 0:
            raise ConfigError(f"coreset.objective.temperature should be a number of at least 0. Found {temperature!r}.")
        return Objective("temperature", temperature=float(temperature))
    if not value:
        raise ConfigError("coreset.objective should name sources and their shares. Found an empty mapping.")
    for name, share in value.items():
        if not is_number(share) or share < 0:
            raise ConfigError(
                f"coreset.objective: the share of {name!r} should be a number of at least 0. Found {share!r}."
            )
    shares = {str(name): float(share) for name, share in value.items()}
    if sum(shares.values()) == 0:
        raise ConfigError(f"coreset.objective: shares should sum to more than 0. Found {shares}.")
    return Objective("shares", shares=shares)

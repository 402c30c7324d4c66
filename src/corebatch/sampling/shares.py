"""How often the rows of each source come, apart from how much they count: checked settings, and what they make of a
data set.

    p_s     the share of source s among the rows that are drawn: as given, or in proportion to (rows of s)^T
    a_s     (rows of s / all rows) / p_s: by what a row that is drawn counts, so that sources count as in the data

Shape suffixes: S sources, in the order of their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from corebatch.errors import ConfigError
from corebatch.options import hint, is_number
from corebatch.sampling.learnt import LearntRows, make_learnt
from corebatch.sampling.schedule import Schedule, Stretch, parse_schedule
from corebatch.sources import complete_shares

Epochs = Literal["new_draw", "fixed"]
Until = Literal["all_seen", "shortest"]
KEYS = ("shares", "temperature", "epochs", "until", "learnt")
WHAT = "coreset.sampling"
MOST_ROWS = 2**30
"""Of an epoch: its order is held in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How often rows come.

    Attributes:
        shares: of the rows that are drawn, by source name, or a schedule of such. Where all sources are named the
            numbers count relative to each other; else they sum to at most 1, and sources that are not named share what
            is left in proportion to their rows.
        temperature: T, at least 0: shares in proportion to (rows of a source)^T. 1 is the data, 0 draws all sources
            equally often.
        epochs: "new_draw": an epoch goes on in each source where the last one ended, so that all its rows come before
            one comes again; "fixed": each epoch has the same rows. The order is a new one in both.
        until: what an epoch is: "all_seen": all rows of each source that is drawn have come; "shortest": those of the
            source have that is through first; None: as many rows as the data set has.
        learnt: which rows come in a pass, by what training has taught of them; sources have no shares then.
    """

    shares: Mapping[str, float] | Schedule[Mapping[str, float]] | None = None
    temperature: float | None = None
    epochs: Epochs = "new_draw"
    until: Until | None = None
    learnt: LearntRows | None = None

    @property
    def changes(self) -> bool:
        """Whether shares go by a schedule."""
        return isinstance(self.shares, Schedule)

    def in_words(self) -> str:
        """What it is, in half a sentence."""
        if self.learnt is not None:
            return self.learnt.in_words()
        if isinstance(self.shares, Schedule):
            return "sources drawn by a schedule of shares"
        if self.shares is None:
            return f"sources drawn in proportion to (rows)^{self.temperature:g}"
        return f"sources drawn with the shares {', '.join(f'{name} {share:g}' for name, share in self.shares.items())}"

    def plain(self) -> dict[str, Any]:
        """As a config file has it, in its shortest form."""
        if self.learnt is not None:
            return {"learnt": self.learnt.plain()}
        shares: Any = self.shares.plain() if isinstance(self.shares, Schedule) else self.shares
        epochs = None if self.epochs == "new_draw" else self.epochs
        given = {"shares": shares, "temperature": self.temperature, "epochs": epochs, "until": self.until}
        return {key: value for key, value in given.items() if value is not None}


def make_sampling(value: Any) -> Sampling | None:
    """From the block `coreset.sampling`; None or {}: rows come as the Trainer draws them.

    Raises:
        ConfigError: an unknown key or word, shares or a temperature out of range, shares beside a temperature, a key
            that would do nothing, or one that a schedule leaves no meaning.
    """
    if value is None or isinstance(value, Sampling):
        return value
    if not isinstance(value, Mapping):
        raise ConfigError(f"{WHAT} should be a mapping of {', '.join(KEYS)}. Found {value!r}.")
    for key in value:
        if key not in KEYS:
            raise ConfigError(f"{WHAT} has the keys {', '.join(KEYS)}. Found {key!r}.{hint(str(key), KEYS)}")
    given = {key: one for key, one in value.items() if one is not None}
    if not given:
        return None
    if "learnt" in given:
        if len(given) > 1:
            other = next(key for key in given if key != "learnt")
            raise ConfigError(
                f"{WHAT}.learnt decides by itself which rows come, and how often. Found {other} beside it."
            )
        return Sampling(learnt=make_learnt(given["learnt"]))
    if ("shares" in given) == ("temperature" in given):
        found = "both" if "shares" in given else ", ".join(given)
        raise ConfigError(f"{WHAT} needs shares, a temperature or learnt, one of them. Found {found}.")
    shares: Any = given.get("shares")
    if isinstance(shares, list | tuple):
        shares = parse_schedule(shares, lambda part: _shares(part, scheduled=True), f"{WHAT}.shares")
    elif shares is not None:
        shares = _shares(shares)
    temperature = given.get("temperature")
    if temperature is not None and not (is_number(temperature) and temperature >= 0):
        raise ConfigError(f"{WHAT}.temperature should be a number of at least 0. Found {temperature!r}.")
    for key, words in (("epochs", get_args(Epochs)), ("until", get_args(Until))):
        if key in given and given[key] not in words:
            raise ConfigError(f"{WHAT}.{key} should be {' or '.join(words)}. Found {given[key]!r}.")
    if isinstance(shares, Schedule):
        if "until" in given:
            raise ConfigError(
                f"{WHAT}.until says how long an epoch is by shares, which a schedule changes from step to step. Found "
                f"{given['until']!r} beside a schedule: leave it out, and an epoch has as many rows as the data set."
            )
        if given.get("epochs") == "fixed":
            raise ConfigError(
                f"{WHAT}.epochs fixed draws the same rows in each epoch, and a schedule of shares other ones. Found "
                "both."
            )
    return Sampling(**{**given, "shares": shares})


def _shares(value: Any, *, scheduled: bool = False) -> dict[str, float]:
    """Checked shares; those of a part of a schedule may be none (as in the data) or 0 (not now)."""
    what = f"{WHAT}.shares"
    if not isinstance(value, Mapping) or not (value or scheduled):
        raise ConfigError(f"{what} should map sources to their shares of the rows that are drawn. Found {value!r}.")
    for name, share in value.items():
        if not is_number(share) or share < 0:
            raise ConfigError(f"{what}: the share of {name!r} should be a number of at least 0. Found {share!r}.")
    made = {str(name): float(share) for name, share in value.items()}
    if not scheduled and sum(made.values()) == 0:
        raise ConfigError(
            f"{what} should sum to more than 0. Found {made}. A source that is never to be drawn can be left out of "
            "the data."
        )
    return made


class DrawPlan:
    """How often the sources of a data set come.

    Args:
        sampling: the settings.
        names: of the sources, by number.
        counts: rows of each source, by number, above 0.
        steps: gives the number of optimizer steps of the run, by which a schedule goes.

    Attributes:
        sources: their numbers, ascending.
        rows: float64 [S], of each in the data.

    Raises:
        ConfigError: a share of a source that is not there, or an epoch of more than MOST_ROWS rows.
    """

    def __init__(
        self,
        sampling: Sampling,
        names: Mapping[int, str],
        counts: Mapping[int, int],
        steps: Callable[[], int] = lambda: 0,
    ) -> None:
        self.sampling, self.names, self.steps = sampling, names, steps
        self.sources = sorted(counts)
        self.rows = torch.tensor([counts[source] for source in self.sources], dtype=torch.float64)
        given: Any = sampling.shares
        if not isinstance(given, Schedule):
            given = Schedule((Stretch(value=given, given=None, until=1.0, ramp=False),))
        parts = [Stretch(value=self._completed(p.value), given=None, until=p.until, ramp=p.ramp) for p in given.parts]
        self._schedule = Schedule(tuple(parts))
        self._most = torch.stack([part.value for part in parts]).amax(dim=0)
        if (rows := self.rows_of_epoch()) > MOST_ROWS:
            rarest = int((self._most / self.rows).where(self._most > 0, torch.inf).argmin())
            raise ConfigError(
                f"{WHAT}.until {sampling.until} makes an epoch of {rows:,} rows, since "
                f"{names[self.sources[rarest]]!r} comes so rarely. It should be at most {MOST_ROWS:,}."
            )

    def shares(self, step: int) -> Tensor:
        """p: float64 [S] of the rows that optimizer step `step`, from 0, draws; they sum to 1."""
        before, after, share = self._schedule.at(step / max(self.steps(), 1))
        return after if share == 1 else (1 - share) * before + share * after

    def corrections(self, step: int) -> dict[int, float]:
        """a_s by the number of a source, at optimizer step `step`; none of a source that is not drawn then."""
        wanted, shares = self.rows / self.rows.sum(), self.shares(step)
        found = zip(self.sources, wanted.tolist(), shares.tolist(), strict=True)
        return {source: there / drawn for source, there, drawn in found if drawn > 0}

    def rows_of_epoch(self) -> int:
        """As `until` says, before they are rounded up to whole optimizer steps."""
        if self.sampling.until is None:
            return int(self.rows.sum())
        drawn = self._most > 0
        through = (self.rows[drawn] / self._most[drawn]).round(decimals=6).ceil()
        return int(through.max() if self.sampling.until == "all_seen" else through.min())

    def never_drawn(self) -> list[str]:
        """The names of sources of which no row comes in the whole run."""
        return [self.names[self.sources[i]] for i in (self._most == 0).nonzero().flatten().tolist()]

    def come_again(self, rows: float) -> bool:
        """Whether some rows come twice among `rows` that are drawn; with a schedule, whether they may."""
        return bool((self._most * rows > self.rows * (1 + 1e-9)).any())

    def _completed(self, shares: Mapping[str, float] | None) -> Tensor:
        """float64 [S]: of all sources, of shares that may leave some out."""
        if shares is None:
            assert self.sampling.temperature is not None
            made = (self.rows / self.rows.max()) ** self.sampling.temperature
        else:
            sizes = {self.names[s]: rows for s, rows in zip(self.sources, self.rows.tolist(), strict=True)}
            whole = complete_shares(shares, sizes, f"{WHAT}.shares")
            made = torch.tensor([whole[self.names[source]] for source in self.sources], dtype=torch.float64)
        return made / made.sum()

    def in_words(self, corrects: bool, counted: str = "as in the data", most: int = 8) -> str:
        """Which sources come how often, in sentences; of many, the first.

        Args:
            corrects: whether the objective undoes it by weights.
            counted: how it has them count then, in words.
        """
        in_data = (self.rows / self.rows.sum()).tolist()
        first, last = self.shares(0).tolist(), self._schedule.parts[-1].value.tolist()
        told = []
        for source, there, one, other in list(zip(self.sources, in_data, first, last, strict=True))[:most]:
            drawn = f"{one:.3g}" + (f" to {other:.3g}" if self.sampling.changes else "")
            told.append(f"{self.names[source]} {drawn} (in the data {there:.3g})")
        more = f" and {len(self.sources) - most} more sources" if len(self.sources) > most else ""
        never = self.never_drawn()
        absent = f" Never drawn: {', '.join(never[:most])}{' and more' * (len(never) > most)}." if never else ""
        undone = f"The objective has them count {counted}, by weights; objective drawn trains what is drawn."
        trained = undone if corrects else "That is what is trained."
        return f"Shares of the rows that are drawn: {', '.join(told)}{more}. {trained}{absent}"


def plan_by_name(sampling: Sampling | None, rows: Mapping[str, int], steps: int = 0) -> DrawPlan:
    """A plan of counts by name, before there is a data set; without settings as rows are in the data. `steps`: of the
    run. Raises ConfigError: as DrawPlan."""
    if sampling is None or sampling.learnt is not None:  # sources have no shares of their own
        sampling = Sampling(temperature=1.0)
    names = dict(enumerate(sorted(rows)))
    counts = {number: rows[name] for number, name in names.items()}
    return DrawPlan(sampling, names, counts, lambda: steps)

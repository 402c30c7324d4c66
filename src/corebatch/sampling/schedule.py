"""A value that changes with the share of the run that is done: in parts, with sudden or linear changes between them.

    [{until: 0.8, is: X}, {until: 0.9, is: Y, ramp: true}, {is: Z}]

is X for the first 80 % of the optimizer steps, moves linearly from X to Y over the next 10 %, and is Z in the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from corebatch.errors import ConfigError
from corebatch.options import hint

T = TypeVar("T")
KEYS = ("until", "is", "ramp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch(Generic[T]):
    """A stretch of the run.

    Attributes:
        value: in it, or at its end where it is a ramp.
        given: what `value` was made of.
        until: the share of the run's optimizer steps at which it ends, in (0, 1].
        ramp: whether the value moves linearly from the part before to its own.
    """

    value: T
    given: Any
    until: float
    ramp: bool


@dataclass(frozen=True, slots=True)
class Schedule(Generic[T]):
    """Parts one after the other, the last of which ends at 1; `parse_schedule` makes it."""

    parts: tuple[Stretch[T], ...]

    def at(self, progress: float) -> tuple[T, T, float]:
        """The value as (before, after, share), meaning (1 - share) before + share after; outside of a ramp both are the
        same, and the share is 1.

        Args:
            progress: optimizer steps that were made over those of the run. One below `until` is before a part's end;
                beyond 1 it is that of the end.
        """
        number = next((n for n, part in enumerate(self.parts) if progress < part.until), None)
        if number is None:
            return self.parts[-1].value, self.parts[-1].value, 1.0
        part = self.parts[number]
        if not part.ramp:
            return part.value, part.value, 1.0
        before = self.parts[number - 1]
        return before.value, part.value, (progress - before.until) / (part.until - before.until)

    def plain(self) -> list[dict[str, Any]]:
        """What it was made of, every `until` and `ramp` in full but the last `until`, for a record in JSON."""
        last = len(self.parts) - 1
        return [
            {**({} if n == last else {"until": part.until}), "is": part.given, **({"ramp": True} if part.ramp else {})}
            for n, part in enumerate(self.parts)
        ]

    def words(self, say: Callable[[T], str] = str) -> str:
        """As in "tokens until 80 % of the steps, then sources"; `say` names a value."""
        said = []
        for part in self.parts:
            end = "the end" if part.until == 1 else f"{100 * part.until:g} % of the steps"
            moves = f"linearly to {say(part.value)}" if part.ramp else say(part.value)
            said.append(moves if part.until == 1 and not part.ramp else f"{moves} until {end}")
        return ", then ".join(said)


def parse_schedule(value: Sequence[Any], make: Callable[[Any], T], what: str = "schedule") -> Schedule[T]:
    """A schedule of a list of parts.

    Args:
        value: mappings of `is`, of `until` (the share of the run's optimizer steps at which the part ends; the last
            part has none, or 1) and of `ramp` (whether the part moves from the one before to its own value).
        make: makes a part's value of what stands at `is`.
        what: the schedule is called in errors.

    Raises:
        ConfigError: parts that overlap, go backwards or leave the end of the run out, a ramp with nothing before it,
            an unknown key, a value out of range, or one that `make` refuses.
    """
    if isinstance(value, str | Mapping) or not isinstance(value, Sequence) or not value:
        raise ConfigError(f"{what} should be a list of parts, {{until: 0.8, is: ...}}. Found {value!r}.")
    parts: list[Stretch[T]] = []
    for number, given in enumerate(value, start=1):
        name, last = f"{what}, part {number}", number == len(value)
        _check_keys(given, name)
        until = _until(given.get("until"), name, last=last, start=parts[-1].until if parts else 0.0)
        ramp = given.get("ramp", False)
        if not isinstance(ramp, bool):
            raise ConfigError(f"{name}: ramp should be true or false. Found {ramp!r}.")
        if ramp and not parts:
            raise ConfigError(f"{name}: ramp moves from the part before. Found it in the first part.")
        if isinstance(given["is"], list | tuple):
            raise ConfigError(f"{name}: `is` should be a value. Found a schedule within the schedule: {given['is']!r}.")
        try:
            made = make(given["is"])
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
        parts.append(Stretch(value=made, given=given["is"], until=until, ramp=ramp))
    return Schedule(tuple(parts))


def _check_keys(part: Any, name: str) -> None:
    if not isinstance(part, Mapping):
        raise ConfigError(f"{name} should be a mapping of {', '.join(KEYS)}. Found {part!r}.")
    for key in part:
        if key not in KEYS:
            raise ConfigError(f"{name} has the keys {', '.join(KEYS)}. Found {key!r}.{hint(key, KEYS)}")
    if "is" not in part:
        raise ConfigError(f"{name} needs `is`, its value. Found {', '.join(map(str, part)) or 'no key'}.")


def _until(value: Any, name: str, *, last: bool, start: float) -> float:
    """Where a part ends that begins at `start`."""
    if value is None:
        if last:
            return 1.0
        raise ConfigError(f"{name} needs `until`, since another part comes after it. Found none.")
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value <= 1:
        raise ConfigError(
            f"{name}: until should be a share of the run's steps, above 0 and at most 1. Found {value!r}."
        )
    if value <= start:
        how = "the two overlap" if value < start else "the part is empty"
        raise ConfigError(
            f"{name}: until should be above {start:g}, where the part before it ends. Found {value:g}: {how}."
        )
    if value == 1 and not last:
        raise ConfigError(f"{name}: until should be below 1, since another part comes after it. Found {value:g}.")
    if value < 1 and last:
        raise ConfigError(
            f"{name} is the last and should have no `until`. Found {value:g}: what the rest of the run has is missing."
        )
    return float(value)

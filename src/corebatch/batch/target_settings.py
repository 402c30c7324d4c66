"""The settings of a target: `coreset.target`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from corebatch.errors import ConfigError
from corebatch.options import check_count, hint


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """How the mean gradient of the target's rows is kept up to date.

    Attributes:
        every: optimizer steps from one look at the target to the next.
        rows: of the target that one look scores, in turn, so that all of them have theirs; all if there are no more.
    """

    every: int = 10
    rows: int = 32

    def __post_init__(self) -> None:
        check_count("coreset.target.every", self.every)
        check_count("coreset.target.rows", self.rows)

    def plain(self) -> dict[str, Any]:
        """As `make_target` reads it."""
        return asdict(self)


def make_target(given: object) -> TargetSettings | None:
    """From a mapping, settings, or none. Raises ConfigError: an unknown key, or a value out of range."""
    if given is None or given == "none" or isinstance(given, TargetSettings):
        return None if given == "none" else given  # type: ignore[return-value]
    keys = list(TargetSettings().plain())
    if not isinstance(given, Mapping):
        raise ConfigError(f"coreset.target should be a block of {', '.join(keys)}. Found {given!r}.")
    for key in given:
        if key not in keys:
            raise ConfigError(f"coreset.target has the keys {', '.join(keys)}. Found {key!r}.{hint(str(key), keys)}")
    return TargetSettings(**given)

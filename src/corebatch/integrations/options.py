"""A host's options that selection does not go with: refused by the host's own keys, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from corebatch.errors import ConfigError

ROWS = "it chooses among rows, and gives the Trainer padded batches of those"
NUMBERS = "rows are told apart by their numbers"
LOSS = "what is trained is another loss than the cross-entropy of trained tokens"
SHARED = "ranks of one group would share the features of a row"
RAY = "its workers read the settings anew, without those of selection"


def is_set(value: Any) -> bool:
    """Whether an option is on: given, and neither false, "none" nor empty."""
    return bool(value) and value not in ("none", "no")


def is_shared(value: Any) -> bool:
    """Whether ranks of one group would share a row."""
    return isinstance(value, int) and value > 1


@dataclass(frozen=True, slots=True)
class HostOption:
    """One option of a host.

    Attributes:
        key: as the host calls it.
        why: what of selection it does not go with, as the end of "... does not go with it: ".
        use: what to write instead.
        refused: which of its values are meant.
    """

    key: str
    why: str
    use: str
    refused: Callable[[Any], bool] = is_set


def check_options(host: str, values: Mapping[str, Any], options: tuple[HostOption, ...]) -> None:
    """Raises ConfigError for the first option that has a refused value.

    Args:
        host: its name.
        values: the host's settings by its own keys; those that are not there have the host's default.
    """
    for option in options:
        found = values.get(option.key)
        if option.refused(found):
            raise ConfigError(
                f"{option.key} of {host} does not go with selection: {option.why}. Found {option.key}: {found!r}. "
                f"Use {option.use}."
            )

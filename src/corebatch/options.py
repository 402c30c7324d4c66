"""Names to instances, the same way for scorers, transforms and selectors; and numbers among their options."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

from corebatch.errors import ConfigError

T = TypeVar("T")


def build(kind: str, what: Any, options: Mapping[str, Any] | None, known: Mapping[str, type[T]], base: Any) -> T:
    """An instance of one of `known` by its name, or `what` itself if it is an instance already. Raises ConfigError: an
    unknown name or option, or options beside an instance."""
    options = dict(options or {})
    # `base` is abstract, which type[T] would not allow.
    if isinstance(what, base):
        if options:
            raise ConfigError(f"{kind}_options go with a name. Found them beside the instance {what!r}.")
        return what
    if not isinstance(what, str):
        raise ConfigError(f"{kind} should be one of {', '.join(known)}, or an instance. Found {what!r}.")
    if what not in known:
        raise ConfigError(f"{kind} should be one of {', '.join(known)}. Found {what!r}.{hint(what, known)}")
    accepted = [name for name in inspect.signature(known[what]).parameters if name not in ("args", "kwargs")]
    for key in options:
        if key not in accepted:
            raise ConfigError(
                f"{kind} {what!r} takes {', '.join(accepted) or 'no options'}. Found {key!r}.{hint(key, accepted)}"
            )
    return known[what](**options)


def hint(word: str, known: Iterable[str]) -> str:
    """' Did you mean ...?' if something known is close, else nothing."""
    close = difflib.get_close_matches(str(word), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def near(word: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' within a sentence, if something known is close, else nothing."""
    close = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether it is an integer or a float, and neither True, NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_count(what: str, value: object, *, least: int = 1, more: str = "") -> None:
    """Raise ConfigError unless `value` is an integer of at least `least`; `more` says what else would do."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{what} should be an integer of at least {least}{more}. Found {value!r}.")

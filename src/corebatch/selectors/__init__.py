"""Stage 5 of the step, select: features and a budget in, a `Selection` out.

A new selector is one file with a subclass of `Selector`, and one line in `SELECTORS`; the contract tests find
it there.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

from corebatch.errors import ConfigError
from corebatch.selectors.balanced import Balanced
from corebatch.selectors.base import Choice, Selector
from corebatch.selectors.calibrated import Calibrated
from corebatch.selectors.craig import Craig
from corebatch.selectors.facility_location import FacilityLocation, select_from_similarities
from corebatch.selectors.hard import Hard
from corebatch.selectors.herding import Herding
from corebatch.selectors.importance import Importance
from corebatch.selectors.k_medoids import KMedoids
from corebatch.selectors.pivotal import Pivotal
from corebatch.selectors.random import Random
from corebatch.selectors.stratified import Stratified

SELECTORS: dict[str, type[Selector]] = {
    selector.name: selector
    for selector in (
        FacilityLocation,
        Craig,
        KMedoids,
        Herding,
        Importance,
        Pivotal,
        Balanced,
        Calibrated,
        Random,
        Stratified,
        Hard,
    )
}

__all__ = ["SELECTORS", "Choice", "Selector", "make_selector", "select_from_similarities"]


def make_selector(selector: str | Selector, options: Mapping[str, Any] | None = None) -> Selector:
    """Return a selector, given its name and options, or an instance as it is.

    Raises:
        ConfigError: the name or an option is unknown, an option's value is out of range, or options come with
            an instance.
    """
    options = dict(options or {})
    if isinstance(selector, Selector):
        if options:
            raise ConfigError(
                f"Options go with a selector's name; an instance has its own. "
                f"Found {selector!r} with options {', '.join(map(str, options))}."
            )
        return selector
    if not isinstance(selector, str) or selector not in SELECTORS:
        raise ConfigError(
            f"The selector should be one of {', '.join(sorted(SELECTORS))}, or an instance of Selector. "
            f"Found {selector!r}.{_suggestion(selector, SELECTORS)}"
        )
    kind = SELECTORS[selector]
    known = list(inspect.signature(kind).parameters)
    expected = f"the options {', '.join(known)}" if known else "no options"
    for option in options:
        if option not in known:
            raise ConfigError(f"Selector `{selector}` has {expected}. Found {option!r}.{_suggestion(option, known)}")
    return kind(**options)


def _suggestion(found: object, known: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(str(found), list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""

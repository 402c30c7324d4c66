"""Stage 5 of the step, select: features and a budget in, a `Selection` out.

A new selector is one file with a subclass of `Selector`, and one line in `SELECTORS`; the contract tests find
it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corebatch.options import build
from corebatch.selectors.balanced import Balanced
from corebatch.selectors.base import Choice, Problem, Selector
from corebatch.selectors.calibrated import Calibrated
from corebatch.selectors.craig import Craig
from corebatch.selectors.cube import Cube
from corebatch.selectors.facility_location import FacilityLocation, select_from_similarities
from corebatch.selectors.gradient_matching import GradientMatching
from corebatch.selectors.gram_schmidt_walk import GramSchmidtWalk
from corebatch.selectors.greats import Greats
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
        Cube,
        GramSchmidtWalk,
        Balanced,
        Calibrated,
        GradientMatching,
        Greats,
        Random,
        Stratified,
        Hard,
    )
}

__all__ = ["SELECTORS", "Choice", "Problem", "Selector", "make_selector", "select_from_similarities"]


def make_selector(selector: str | Selector, options: Mapping[str, Any] | None = None) -> Selector:
    """Return a selector, given its name and options, or an instance as it is.

    Raises:
        ConfigError: the name or an option is unknown, an option's value is out of range, or options come with
            an instance.
    """
    return build("selector", selector, options, SELECTORS, Selector)

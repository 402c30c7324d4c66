"""The methods by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corebatch.options import build
from corebatch.subset.autocoreset import AutoCoresetSubset
from corebatch.subset.balanced import BalancedSubset
from corebatch.subset.base import SubsetMethod
from corebatch.subset.ccs import CCS
from corebatch.subset.difficulty import Difficulty
from corebatch.subset.facility_location import FacilityLocationSubset
from corebatch.subset.goracs import GoracsSubset
from corebatch.subset.near_duplicates import NearDuplicatesSubset
from corebatch.subset.random import RandomSubset
from corebatch.subset.relevance import RelevanceSubset
from corebatch.subset.simcore import SimCoreSubset
from corebatch.subset.stratified import StratifiedSubset

SUBSETS: dict[str, type[SubsetMethod]] = {
    method.name: method
    for method in (
        RandomSubset,
        StratifiedSubset,
        CCS,
        Difficulty,
        FacilityLocationSubset,
        BalancedSubset,
        SimCoreSubset,
        GoracsSubset,
        AutoCoresetSubset,
        NearDuplicatesSubset,
        RelevanceSubset,
    )
}


def make_subset(method: str | SubsetMethod, options: Mapping[str, Any] | None = None) -> SubsetMethod:
    """A method, given its name and options, or an instance as it is.

    Raises:
        ConfigError: the name or an option is unknown, or an option's value is out of range.
    """
    return build("subset", method, options, SUBSETS, SubsetMethod)

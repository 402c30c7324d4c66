"""Making selectors from names and options."""

from __future__ import annotations

import pytest

from corebatch.errors import ConfigError
from corebatch.selectors import SELECTORS, Selector, make_selector


def test_a_name_and_options_make_an_instance() -> None:
    selector = make_selector("facility_location", {"metric": "l2"})
    assert repr(selector) == "FacilityLocation(metric='l2', weights='uniform', stochastic=None, joint=False)"
    assert repr(make_selector("random")) == "Random()"
    cube = "Cube(floor=0.2, dimensions=32, calibrate=False, cost_power=None)"
    assert repr(make_selector("cube", {"floor": 0.2})) == cube


def test_an_instance_is_returned_as_it_is() -> None:
    selector = SELECTORS["random"]()
    assert make_selector(selector) is selector
    assert make_selector(selector, {}) is selector
    with pytest.raises(
        ConfigError, match=r"selector_options go with a name. Found them beside the instance Random\(\)"
    ):
        make_selector(selector, {"metric": "l1"})


def test_an_unknown_name_lists_the_known_and_suggests_one() -> None:
    with pytest.raises(ConfigError, match=r"facility_location, .*Found 'pivotl'. Did you mean 'pivotal'\?"):
        make_selector("pivotl")
    with pytest.raises(ConfigError, match="Found 3"):
        make_selector(3)  # type: ignore[arg-type]


def test_an_unknown_option_lists_the_known_and_suggests_one() -> None:
    with pytest.raises(ConfigError, match=r"takes metric, .*Found 'metrik'. Did you mean 'metric'\?"):
        make_selector("facility_location", {"metrik": "l1"})
    with pytest.raises(ConfigError, match=r"takes no options. Found 'floor'"):
        make_selector("random", {"floor": 0.1})


@pytest.mark.parametrize(
    "name, options, found",
    [
        ("facility_location", {"metric": "l3"}, "one of l1, l2, cosine. Found 'l3'"),
        ("facility_location", {"weights": None}, "Found None"),
        ("facility_location", {"stochastic": 0}, "between 0.001 and 0.9. Found 0"),
        ("facility_location", {"joint": "yes"}, "true or false. Found 'yes'"),
        ("facility_location", {"joint": True, "stochastic": 0.1}, "stochastic 0.1"),
        ("facility_location", {"joint": True, "weights": "cluster_size"}, "weights 'cluster_size'"),
        ("importance", {"floor": 0}, "Found 0"),
        ("importance", {"calibrate": 0}, "of at least 1e-06. Found 0"),
        ("pivotal", {"calibrate": "yes"}, "Found 'yes'"),
        ("pivotal", {"calibrate": float("inf")}, "Found inf"),
        ("balanced", {"calibrate": None}, "Found None"),
        ("cube", {"dimensions": 0}, "integer of at least 1. Found 0"),
        ("cube", {"calibrate": -1.0}, "Found -1.0"),
        ("gram_schmidt_walk", {"robustness": 0}, "of at least 0.0001. Found 0"),
        ("gradient_matching", {"ridge": 0.0}, "of at least 0.0001. Found 0.0"),
        ("gradient_matching", {"scale": "mean"}, "one of sum, average. Found 'mean'"),
        ("greats", {"interaction": -1}, "of at least 0.0. Found -1"),
        ("greats", {"learning_rate": 0}, "of at least 1e-30. Found 0"),
        ("greats", {"learning_rate": 0.1, "interaction": 0.5}, "two ways to say one number. Found 0.1 and 0.5"),
        ("importance", {"floor": 1.5}, "between 0.001 and 1.0. Found 1.5"),
        ("pivotal", {"floor": float("nan")}, "Found nan"),
        ("pivotal", {"floor": "0.1"}, "Found '0.1'"),
        ("balanced", {"floor": True}, "Found True"),
        ("balanced", {"max_swaps": -1}, "integer of at least 0. Found -1"),
        ("balanced", {"max_swaps": 1.0}, "Found 1.0"),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_selector(name, options)
    assert found in str(caught.value)


def test_a_selector_of_ones_own_needs_only_a_choice() -> None:
    import torch

    from corebatch.selectors import Choice

    class First(Selector):
        name = "first"
        requires = frozenset()

        def _choose(self, problem):  # type: ignore[no-untyped-def]
            return Choice(rows=torch.arange(problem.budget))

    assert First().select(torch.zeros(4, 1), 2).indices.tolist() == [0, 1]
    assert not First().weighted
    assert make_selector(First()).name == "first"

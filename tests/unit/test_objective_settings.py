"""What a step claims, as settings: words, shares of sources, and what is refused."""

import pytest

from corebatch.errors import ConfigError
from corebatch.objective import make_objective
from corebatch.sources import complete_shares
from corebatch.trainer import CoresetConfig

TOKENS = {"algebra": 600, "geometry": 300, "rare": 100}


@pytest.mark.parametrize(
    "value, shares",
    [
        ("sources", {"algebra": 1 / 3, "geometry": 1 / 3, "rare": 1 / 3}),
        ({"temperature": 1.0}, {"algebra": 0.6, "geometry": 0.3, "rare": 0.1}),
        ({"temperature": 0}, {"algebra": 1 / 3, "geometry": 1 / 3, "rare": 1 / 3}),
        ({"temperature": 2}, {"algebra": 36 / 46, "geometry": 9 / 46, "rare": 1 / 46}),
        ({"algebra": 0.5, "geometry": 0.25, "rare": 0.25}, {"algebra": 0.5, "geometry": 0.25, "rare": 0.25}),
        ({"algebra": 2, "geometry": 1, "rare": 1}, {"algebra": 0.5, "geometry": 0.25, "rare": 0.25}),
        ({"algebra": 0.5, "rare": 0.5}, {"algebra": 0.5, "geometry": 0.0, "rare": 0.5}),
        ({"rare": 0.1}, {"algebra": 0.6, "geometry": 0.3, "rare": 0.1}),
        ({"rare": 0.0}, None),
        ("tokens", None),
        ("examples", None),
        ("drawn", None),
        ({"online": "odm", "alpha": 0.5}, None),
    ],
    ids=str,
)
def test_shares_of_sources(value, shares):
    if value == {"rare": 0.0}:
        with pytest.raises(ConfigError, match="sum to more than 0"):
            make_objective(value)
        return
    found = make_objective(value).of_sources(TOKENS)
    assert found == (None if shares is None else pytest.approx(shares))
    assert make_objective(make_objective(value).plain()) == make_objective(value)


def test_a_source_may_be_called_online():
    made = make_objective({"online": 1, "algebra": 3})
    assert made.of_sources({"online": 5, "algebra": 5}) == {"online": 0.25, "algebra": 0.75}


@pytest.mark.parametrize(
    "value, told",
    [
        ("source", "'sources'"),
        (3, "Found 3"),
        (None, "Found None"),
        ({}, "empty mapping"),
        ({"temperature": -0.5}, "at least 0. Found -0.5"),
        ({"temperature": float("nan")}, "nan"),
        ({"temperature": "hot"}, "'hot'"),
        ({"algebra": -1}, "share of 'algebra'"),
        ({"algebra": True}, "share of 'algebra'"),
        ({"algebra": float("inf")}, "share of 'algebra'"),
        ({"algebra": 0, "rare": 0}, "sum to more than 0"),
        ([], "list of parts"),
        ([{"until": 0.8, "is": "tokens"}, {"until": 0.5, "is": "sources"}], "overlap"),
        ([{"until": 0.8, "is": "tokens"}], "the rest of the run"),
        ([{"until": 0.8, "is": "tokens"}, {"is": "drawn"}], "drawn"),
        ([{"until": 0.8, "is": "tokens"}, {"is": {"temperature": -1}}], "at least 0"),
    ],
    ids=str,
)
def test_what_is_no_objective_is_named(value, told):
    with pytest.raises(ConfigError, match=r"coreset\.objective") as caught:
        CoresetConfig(objective=value)
    assert told in str(caught.value)


def test_shares_of_sources_that_are_not_there_or_are_too_large():
    with pytest.raises(ConfigError, match=r"Found 'rar'\. Did you mean 'rare'"):
        make_objective({"rar": 0.5}).of_sources(TOKENS)
    with pytest.raises(ConfigError, match=r"\(geometry\) share what is left. Found a sum of 1.4"):
        complete_shares({"algebra": 1.0, "rare": 0.4}, TOKENS, "coreset.objective")
    thirds = complete_shares({"algebra": 0.333, "geometry": 0.333, "rare": 0.333}, TOKENS, "coreset.objective")
    assert thirds == pytest.approx(dict.fromkeys(TOKENS, 1 / 3))


def test_words():
    assert make_objective("sources").in_words(9) == "the mean over 9 sources, each by the mean over its tokens"
    assert make_objective("tokens").in_words(9) == "the mean over trained tokens"
    schedule = make_objective([{"until": 0.8, "is": "tokens"}, {"is": {"rare": 1.0}}])
    assert schedule.in_words(3) == (
        "the mean over trained tokens until 80 % of the steps, then a mean over sources with the shares rare 1"
    )


def test_loss_is_another_name():
    assert CoresetConfig().objective == "tokens"
    assert CoresetConfig(loss="example_mean").objective == "examples"
    assert CoresetConfig(objective="examples").loss == "example_mean"
    assert CoresetConfig(objective="sources", loss="token_mean").objective == "sources"
    assert CoresetConfig.colm().objective == "examples"
    assert CoresetConfig.colm(loss="token_mean").objective == "tokens"
    assert CoresetConfig.colm(objective="sources").loss == "token_mean"
    assert CoresetConfig(loss="example_mean").changed(objective="sources").objective == "sources"
    assert CoresetConfig(objective="sources").changed(loss="example_mean").objective == "examples"
    with pytest.raises(ConfigError, match="beside it"):
        CoresetConfig(objective="sources", loss="example_mean")


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"weight_column": 3}, "weight_column"),
        ({"weight_column": ""}, "weight_column"),
        ({"source_tokens": {"a": 3}}, "goes with an objective by source"),
        ({"source_tokens": {"a": 0}, "objective": "sources"}, "'a' should be a number above 0"),
        ({"source_tokens": [3], "objective": "sources"}, "map sources"),
    ],
)
def test_counts_and_weights_that_are_none(settings, told):
    with pytest.raises(ConfigError, match=told):
        CoresetConfig(**settings)

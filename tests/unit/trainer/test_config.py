"""The settings: every mistake is named where it is made, and the record of a run can be read again."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from corebatch.errors import ConfigError, CorebatchError
from corebatch.scoring import SCORERS, LastLayer, ZerothOrder
from corebatch.selectors import SELECTORS
from corebatch.selectors.facility_location import FacilityLocation
from corebatch.trainer import RECIPES, CoresetConfig
from corebatch.transforms import NORMALISERS, SPARSIFIERS, AdamHistory, TopK

WRONG: list[tuple[str, Any]] = [
    *[("pool_factor", value) for value in (0, -1, 1.5, 2.0, "2", None, True)],
    *[("seed", value) for value in (-1, 0.5, "0", None, False)],
    *[("loss", value) for value in ("mean", None, 1, ["token_mean"])],
    *[("scoring", value) for value in ("half", None, 2)],
    *[("source_column", value) for value in ("", None, 3, ["source"])],
    *[("small_sources", value) for value in ("rare", 3, True, 0.5)],
    *[("small_sources_cap", value) for value in (0, -1, 1.5, True, "half", [0.5])],
    *[("leftovers", value) for value in ("largest", None, 3, ["random"])],
    *[("scorer", value) for value in ("last_layr", None, 3, LastLayer, ["last_layer"])],
    *[("selector", value) for value in ("pivotl", None, 3, FacilityLocation, ["pivotal"])],
    *[("normalise", value) for value in ("adm", 3, AdamHistory, ["adam"])],
    *[("sparsify", value) for value in ("top", 0, -5, 2.5, True, TopK, ["topk"])],
    *[("scorer_options", value) for value in (None, 3, "a", ["num_blocks"])],
    *[("selector_options", value) for value in (None, 3, "a", ["floor"])],
]


@pytest.mark.parametrize("key, value", WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_value_names_its_key_and_what_was_found(key: str, value: Any) -> None:
    for make in (lambda: CoresetConfig(**{key: value}), lambda: CoresetConfig.from_dict({key: value})):
        with pytest.raises(ConfigError) as caught:
            make()
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, CorebatchError)
        message = str(caught.value)
        assert key in message
        assert repr(value) in message


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"scorer_options": {"num_block": 1}}, ["'last_layer'", "'num_block'", "Did you mean 'num_blocks'?"]),
        ({"scorer_options": {"num_blocks": 0}}, ["last_layer's num_blocks", "Found 0"]),
        ({"scorer": "zeroth_order", "scorer_options": {"epsilon": "1e-3"}}, ["zeroth_order's epsilon", "'1e-3'"]),
        ({"scorer": "loss", "scorer_options": {"a": 1}}, ["'loss'", "no options", "'a'"]),
        ({"scorer_options": {3: 1}}, ["3"]),
        ({"selector_options": {"flor": 1}}, ["balanced", "'flor'", "Did you mean 'floor'?"]),
        ({"selector_options": {"floor": -1}}, ["floor", "-1"]),
        ({"selector": "facility_location", "selector_options": {"metric": "l3"}}, ["metric", "'l3'"]),
        ({"scorer": LastLayer(), "scorer_options": {"num_blocks": 1}}, ["scorer_options", "LastLayer"]),
        ({"normalise": "adam"}, ["normalise 'adam'", "'cube'"]),
        ({"sparsify": "topk"}, ["sparsify 'topk'", "'cube'"]),
        ({"sparsify": 100}, ["sparsify 'topk'", "'cube'"]),
    ],
    ids=str,
)
def test_options_and_what_does_not_go_together(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        CoresetConfig(**settings)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "block, parts",
    [
        ({"pool_facter": 2}, ["'pool_facter'", "Did you mean 'pool_factor'?", "small_sources"]),
        ({"recipe": "clm"}, ["coreset.recipe", "recommended, colm", "'clm'"]),
        ({"recipe": None}, ["coreset.recipe", "None"]),
        ({"recipe": ["colm"]}, ["coreset.recipe", "['colm']"]),
        ({1: 2}, ["Found 1"]),
        ([], ["block of keys and values", "[]"]),
        ("colm", ["block of keys and values", "'colm'"]),
        (0, ["block of keys and values", "Found 0"]),
        (["pool_factor"], ["block of keys and values"]),
    ],
    ids=str,
)
def test_a_wrong_block(block: Any, parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        CoresetConfig.from_dict(block)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("block", [None, {}, {"recipe": "recommended"}])
def test_an_empty_block_is_the_recommended_setting(block: Any) -> None:
    assert CoresetConfig.from_dict(block) == CoresetConfig()


def test_the_recommended_setting() -> None:
    config = CoresetConfig()
    assert (config.pool_factor, config.scorer, config.selector) == (2, "label_counts", "balanced")
    assert config.feedback == 0.99
    assert (config.normalise, config.sparsify, config.small_sources) == (None, None, None)
    assert config.loss == "token_mean"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[misc]


def test_the_faithful_recipe() -> None:
    config = CoresetConfig.colm(pool_factor=2)
    step = config.build()
    assert isinstance(step.scorer, ZerothOrder)
    assert (step.scorer.num_directions, step.scorer.epsilon) == (1, 1e-3)
    assert isinstance(step.normalise, AdamHistory)
    assert isinstance(step.sparsify, TopK)
    assert step.sparsify.h == 2560
    assert step.selector == FacilityLocation(metric="l1", weights="uniform")
    assert step.selector.per_source
    assert (config.small_sources, config.loss) == ("auto", "example_mean")
    assert (config.small_sources_cap, config.leftovers) == (None, "smallest")
    assert (step.small_sources_cap, step.leftovers) == (None, "smallest")
    capped = CoresetConfig.colm(small_sources_cap=0.5, leftovers="random").build()
    assert (capped.small_sources_cap, capped.leftovers) == (0.5, "random")
    assert CoresetConfig.from_dict({"recipe": "colm"}) == CoresetConfig.colm()
    changed = CoresetConfig.from_dict({"recipe": "colm", "pool_factor": 4, "sparsify": 128})
    assert changed == CoresetConfig.colm(pool_factor=4, sparsify=128)
    assert RECIPES["colm"].get("pool_factor") is None, "recipes are not changed by what is made of them"


def test_each_build_has_a_state_of_its_own() -> None:
    config = CoresetConfig.colm()
    one, other = config.build(), config.build()
    assert one.scorer is not other.scorer
    assert one.normalise is not other.normalise


@pytest.mark.parametrize("word", ["none", None])
def test_none_may_be_written_out(word: Any) -> None:
    config = CoresetConfig(normalise=word, sparsify=word, small_sources=word, small_sources_cap=word)
    step = config.build()
    assert step.normalise is None
    assert step.sparsify is None
    assert config.small_sources is None
    assert config.small_sources_cap is None


@pytest.mark.parametrize("name", SCORERS)
def test_every_scorer_by_name(name: str) -> None:
    assert isinstance(CoresetConfig(scorer=name).build().scorer, SCORERS[name])


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_by_name(name: str) -> None:
    if "validation" in SELECTORS[name].requires:
        with pytest.raises(ConfigError, match=f"'{name}' needs validation gradients"):
            CoresetConfig(selector=name)
        return
    assert isinstance(CoresetConfig(selector=name).build().selector, SELECTORS[name])


@pytest.mark.parametrize("name", NORMALISERS)
def test_every_normaliser_by_name(name: str) -> None:
    config = CoresetConfig(selector="facility_location", normalise=name)
    assert isinstance(config.build().normalise, NORMALISERS[name])


@pytest.mark.parametrize("name", SPARSIFIERS)
def test_every_sparsifier_by_name(name: str) -> None:
    config = CoresetConfig(selector="facility_location", sparsify=name)
    assert isinstance(config.build().sparsify, SPARSIFIERS[name])


@pytest.mark.parametrize(
    "config",
    [
        CoresetConfig(),
        CoresetConfig.colm(),
        CoresetConfig(small_sources=["a", "b"], scorer_options={"num_blocks": 1}, selector_options={"floor": 0.2}),
        CoresetConfig(small_sources=("a",), selector="facility_location", sparsify=64),
    ],
    ids=["recommended", "colm", "options", "tuple"],
)
def test_the_record_of_a_config_can_be_read_again(config: CoresetConfig) -> None:
    record = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert set(record) == {field.name for field in dataclasses.fields(CoresetConfig)}
    again = CoresetConfig.from_dict(record)
    assert again.to_dict() == config.to_dict()


def test_instances_are_recorded_by_their_repr() -> None:
    config = CoresetConfig(
        scorer=LastLayer(num_blocks=2), selector=FacilityLocation(metric="l2"), normalise=AdamHistory(), sparsify=TopK()
    )
    record = json.loads(json.dumps(config.to_dict()))
    assert record["scorer"] == "LastLayer(num_blocks=2, projection_dim=64, max_dim=16384)"
    assert "FacilityLocation" in record["selector"]
    assert "l2" in record["selector"]
    assert record["normalise"] == "AdamHistory(beta1=0.9, beta2=0.999, eps=1e-08)"
    assert record["sparsify"] == "TopK(h=2560)"
    assert config.build().scorer is config.scorer


@pytest.mark.parametrize("field", ["normalise", "sparsify"])
def test_the_record_of_an_instance_does_not_change_from_run_to_run(field: str) -> None:
    """A repr with an address in it would make every resumed run look like one with other settings."""
    make = {"normalise": AdamHistory, "sparsify": TopK}[field]
    one, other = (CoresetConfig(selector="facility_location", **{field: make()}) for _ in range(2))
    assert one.to_dict() == other.to_dict()

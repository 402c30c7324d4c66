"""The `scoring:` key: every mistake is named where it is made, and no option is taken that would do nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from corebatch.batch.scoring import scored_rows
from corebatch.batch.strategies import OPTIONS, STRATEGIES, Strategy
from corebatch.batch.strategies.options import option_names
from corebatch.config.settings import load_settings
from corebatch.errors import ConfigError
from corebatch.scoring.last_layer import LastLayer
from corebatch.selectors.cube import Cube
from corebatch.trainer import CoresetConfig, ScoringConfig

OWN_OPTIONS = {way: [name for name in option_names(kind) if name != "rows"] for way, kind in STRATEGIES.items()}
HOME = {option: way for way, options in OWN_OPTIONS.items() for option in options}
"""A way that takes each option."""


def another(option: str) -> Any:
    """A value of an option that is not its default."""
    field = OPTIONS[option]
    values = (0.5, 3, 5, True, False, *field.metadata["words"].split(" or "))
    return next(value for value in values if value != field.default and field.metadata["allowed"](value))


OTHER_VALUES: dict[str, Any] = {name: another(name) for name in OPTIONS} | {
    "tokens": 32, "blocks": 1, "steps": 2, "max_age": 5, "unknown": "score", "learn": False, "share": 0.75,
    "proxy": "norm", "rows": 3, "reuse": False, "reuse_place": "host", "reuse_gb": 0.5,
}  # fmt: skip
"""For each option a value that is not its default."""

WRONG: list[tuple[str, Any]] = [
    *[("tokens", value) for value in (1, 0, -3, 2.5, "64", None, True)],
    *[("blocks", value) for value in (0, -1, 1.0, "2", None, True)],
    *[("steps", value) for value in (0, -1, 1.5, "4", None, True)],
    *[("max_age", value) for value in (0, -1, 1.5, "4", True, False)],
    *[("rows", value) for value in (0, -1, 1.5, "all", None, True)],
    *[("share", value) for value in (0, -0.5, 1.01, float("nan"), "0.5", True)],
    *[("reuse_gb", value) for value in (-1, float("nan"), float("inf"), "4", True)],
    *[("unknown", value) for value in ("guessed", None, True, 1)],
    *[("proxy", value) for value in ("token", None, True)],
    *[("learn", value) for value in ("yes", None, 1, 0)],
    *[("reuse", value) for value in ("yes", None, 1, 0)],
    *[("reuse_place", value) for value in ("cuda", None, True)],
]


def home(option: str) -> str:
    return HOME.get(option, "full")


@pytest.mark.parametrize("option, value", WRONG, ids=str)
def test_a_wrong_value_names_its_key_and_what_was_found(option: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        CoresetConfig(scoring={"way": home(option), option: value})
    assert f"coreset.scoring.{option} should be" in str(caught.value)
    assert f"Found {value!r}" in str(caught.value)


@pytest.mark.parametrize(
    "option, value",
    [
        ("tokens", 2), ("blocks", 1), ("steps", 1), ("max_age", 1), ("max_age", None), ("rows", 1), ("rows", "auto"),
        ("share", 1), ("share", 1.0), ("share", 0.51), ("reuse_gb", 0), ("reuse_gb", None), ("reuse", True),
    ],
)  # fmt: skip
def test_the_bounds_belong_to_the_range(option: str, value: Any) -> None:
    assert getattr(CoresetConfig(scoring={"way": home(option), option: value}).scoring_settings, option) == value


@pytest.mark.parametrize("way", ["half", "", None, 2, ["full"], {"way": "half"}, {"way": None}, {"way": ["full"]}])
def test_an_unknown_way_is_told_the_ways(way: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        CoresetConfig(scoring=way)
    assert all(name in str(caught.value) for name in OWN_OPTIONS)


def test_slips_of_the_pen_are_recognised() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'remembered'\?"):
        CoresetConfig(scoring="remembred")
    with pytest.raises(ConfigError, match=r"Found 'max_ages'.*Did you mean 'max_age'\?"):
        CoresetConfig(scoring={"way": "remembered", "max_ages": 3})


@pytest.mark.parametrize("way", OWN_OPTIONS)
def test_an_option_of_another_way_is_refused(way: str) -> None:
    assert set(OTHER_VALUES) == set(OPTIONS)
    for option, value in OTHER_VALUES.items():
        if option in (*OWN_OPTIONS[way], "rows"):
            continue
        with pytest.raises(ConfigError, match=f"{way}.*Found {option}, which would do nothing"):
            ScoringConfig(way=way, **{option: value})  # type: ignore[arg-type]


def test_an_option_without_its_way_is_one_of_another_way() -> None:
    with pytest.raises(ConfigError, match=r"'auto' takes .*Found max_age"):
        CoresetConfig(scoring={"max_age": 5})


@pytest.mark.parametrize("way", OWN_OPTIONS)
def test_a_name_a_mapping_and_an_instance_are_one(way: str) -> None:
    expected = ScoringConfig(way=way)  # type: ignore[arg-type]
    written = (way, {"way": way}, expected)
    assert [CoresetConfig(scoring=value).scoring_settings for value in written] == [expected] * 3
    records = [CoresetConfig(scoring=value).to_dict() for value in written]
    assert records[0] == records[1] == records[2], "or a run could not be resumed with the settings written otherwise"
    assert records[0]["scoring"] == way


@pytest.mark.parametrize("way", OWN_OPTIONS)
@pytest.mark.parametrize("form", [dict, ScoringConfig])
def test_the_record_can_be_read_again(way: str, form: Any) -> None:
    options = {option: OTHER_VALUES[option] for option in (*OWN_OPTIONS[way], "rows")}
    config = CoresetConfig(scoring=form(way=way, **options))
    record = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    again = CoresetConfig.from_dict(record)
    assert again.scoring_settings == config.scoring_settings
    assert again.to_dict() == config.to_dict()
    assert record["scoring"] == {"way": way, **options}


@pytest.mark.parametrize(
    "settings, parts",
    [
        ({"scoring": "remembered", "selector": "random"}, ["'remembered'", "a selector that looks at it", "'random'"]),
        ({"scoring": "remembered", "selector": "facility_location"}, ["a weighted selector", "'facility_location'"]),
        ({"scoring": "two_phase", "selector": "herding"}, ["a weighted selector", "'herding'"]),
        ({"scoring": "window", "scorer": "tokens"}, ["'window'", "a scorer with a forward", "'tokens'"]),
        ({"scoring": "none", "scorer": "tokens"}, ["'none'", "a scorer with a forward", "'tokens'"]),
        ({"scoring": "remembered", "normalise": "optimizer"}, ["normalise none", "'optimizer'"]),
        ({"scoring": "every", "normalise": "optimizer"}, ["normalise none", "'optimizer'"]),
        ({"scoring": "remembered", "sparsify": "projection"}, ["sparsify none", "'projection'"]),
        ({"scoring": "two_phase", "small_sources": "auto"}, ["small_sources none", "'auto'"]),
        ({"scoring": "remembered", "small_sources": ["a"]}, ["small_sources none", "['a']"]),
        ({"scoring": {"way": "two_phase", "share": 0.5}}, ["needs a share above 1 / pool_factor = 0.5", "0.5"]),
        ({"scoring": {"way": "two_phase", "share": 0.2}, "pool_factor": 4}, ["0.25", "Found 0.2"]),
        ({"scoring": "remembered", "scorer": "loss"}, ["unknown 'score'", "last_layer", "'loss'"]),
        ({"scoring": {"way": "remembered", "learn": False}}, ["learn true or unknown 'score'"]),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_go_together(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        CoresetConfig(**settings)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "settings",
    [
        {"scoring": "window", "selector": "facility_location"},
        {"scoring": "first_blocks", "selector": "herding", "small_sources": "auto"},
        {"scoring": "window", "normalise": "optimizer", "sparsify": "projection"},
        {"scoring": "two_phase", "normalise": "optimizer"},
        {"scoring": {"way": "two_phase", "share": 0.5}, "pool_factor": 4},
        {"scoring": {"way": "two_phase", "share": 0.5}, "pool_factor": 1},
        {"scoring": {"way": "remembered", "unknown": "score", "learn": False}},
        {"scoring": {"way": "remembered", "unknown": "score"}, "scorer": "loss"},
        {"scoring": "every", "scorer": "representation"},
        {"scoring": "remembered", "scorer": "gradient_norm", "selector": "importance"},
        {"scoring": {"way": "full", "reuse": True}, "scorer": "tokens", "selector": "importance"},
    ],
    ids=str,
)
def test_what_goes_together(settings: dict[str, Any]) -> None:
    CoresetConfig(**settings)


# ---- the command line ------------------------------------------------------------------------------------------------


def loaded(folder: Path, scoring: Any, *overrides: str) -> Strategy:
    """Settings of a file whose `coreset:` block has `scoring` (None: no such block)."""
    values = {"model_name_or_path": "m", "datasets": [{"path": "d.jsonl"}], "output_dir": "o"}
    if scoring is not None:
        values["coreset"] = {"scoring": scoring}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return load_settings(folder / "config.yaml", overrides).coreset.scoring_settings


REMEMBERED_5 = ScoringConfig(way="remembered", max_age=5)


@pytest.mark.parametrize(
    "scoring, overrides",
    [
        (None, ("--coreset.scoring.way", "remembered", "--coreset.scoring.max_age", "5")),
        (None, ("--coreset.scoring", "{way: remembered, max_age: 5}")),
        (None, ("--coreset.scoring=remembered", "--coreset.scoring.max-age=5")),
        ("remembered", ("--coreset.scoring.max_age", "5")),
        ("every", ("--coreset.scoring.way", "remembered", "--coreset.scoring.max_age", "5")),
        ({"way": "remembered"}, ("--coreset.scoring.max_age", "5")),
        ({"way": "remembered", "max_age": 3}, ("--coreset.scoring.max_age", "5")),
        ({"way": "window", "tokens": 9}, ("--coreset.scoring", "{way: remembered, max_age: 5}")),
    ],
    ids=str,
)
def test_ways_and_options_on_the_command_line(tmp_path: Path, scoring: Any, overrides: tuple[str, ...]) -> None:
    assert loaded(tmp_path, scoring, *overrides) == REMEMBERED_5


def test_a_way_on_the_command_line_replaces_the_block(tmp_path: Path) -> None:
    found = loaded(tmp_path, {"way": "remembered", "max_age": 3}, "--coreset.scoring", "none")
    assert found == ScoringConfig(way="none")


def test_options_that_are_left_from_another_way_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'every' takes .*Found tokens"):
        loaded(tmp_path, {"way": "window", "tokens": 9}, "--coreset.scoring.way", "every")
    with pytest.raises(ConfigError, match="Found max_age"):
        loaded(tmp_path, None, "--coreset.scoring.max_age", "5")
    with pytest.raises(ConfigError, match=r"'scoring' is no block of keys\. Found 3"):
        loaded(tmp_path, 3, "--coreset.scoring.max_age", "5")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"selector_options": {"cost_power": 0.25}},
        {"loss": "example_mean"},
        {"track_error": 3},
        {"small_sources": "auto"},
        {"pool_factor": 9},
    ],
    ids=str,
)
def test_the_default_scores_nothing(settings: dict[str, Any]) -> None:
    config = CoresetConfig(**settings)
    assert (config.scorer, config.selector, config.feedback) == ("label_counts", "balanced", 0.99)
    assert config.scoring_settings.way == "auto"
    for again, taught in ((False, True), (True, True), (True, False)):
        assert config.resolve_scoring(again, taught=taught) == ScoringConfig(way="full")
        said = scored_rows(config.resolve_scoring(again, taught=taught), config.build())
        assert said == "nothing: label_counts is known without a forward"


def test_the_recipe_following_is_the_default_in_other_words() -> None:
    ours, theirs = CoresetConfig.following().to_dict(), CoresetConfig().to_dict()
    assert ours.pop("selector_options") == {"start": "cube"}
    assert theirs.pop("selector_options") == {}
    assert ours == theirs


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({"feedback": "none"}, ("label_counts", "cube", None)),
        ({"feedback": 0.5}, ("label_counts", "balanced", 0.5)),
        ({"scorer": "label_counts"}, ("label_counts", "balanced", 0.99)),
        ({"selector_options": {"calibrate": True}}, ("label_counts", "balanced", None)),
        ({"scorer": "tokens"}, ("tokens", "cube", None)),
        ({"scoring": "none"}, ("last_layer", "cube", None)),
        ({"scoring": "full"}, ("last_layer", "cube", None)),
        ({"scoring": "full", "feedback": 0.9}, ("last_layer", "balanced", 0.9)),
        ({"scoring": "two_phase"}, ("last_layer", "cube", None)),
        ({"scoring": {"way": "auto", "rows": 4}}, ("last_layer", "cube", None)),
        ({"selector": "balanced"}, ("last_layer", "balanced", None)),
        ({"selector": "facility_location"}, ("last_layer", "facility_location", None)),
        ({"normalise": "optimizer"}, ("last_layer", "cube", None)),
        ({"scorer_options": {"num_blocks": 2}}, ("last_layer", "cube", None)),
    ],
    ids=str,
)
def test_what_auto_stands_for_beside_what_is_named(settings: dict[str, Any], expected: tuple[Any, ...]) -> None:
    config = CoresetConfig(**settings)
    assert (config.scorer, config.selector, config.feedback) == expected
    again = CoresetConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()


def test_what_was_auto_is_found_anew_where_settings_change() -> None:
    config = CoresetConfig()
    assert config.changed(selector="cube").scorer == "last_layer"
    assert config.changed(scoring="full").selector == "cube"
    assert config.changed(feedback=None).selector == "cube"
    assert config.changed(pool_factor=8).to_dict() == {**config.to_dict(), "pool_factor": 8}
    assert CoresetConfig(scorer="tokens").changed(selector="importance").scorer == "tokens"


NAMED: list[dict[str, Any]] = [
    {"selector": "balanced"},
    {"selector": "balanced", "feedback": 0.99},
    {"selector": "importance"},
    {"scorer": "last_layer"},
    {"scorer": LastLayer()},
    {"selector": Cube()},
    {"selector": "cube", "selector_options": {"dimensions": 8}},
    {"selector": "cube", "selector_options": {"calibrate": True}},
    {"scorer_options": {"num_blocks": 2}},
    {"scorer": "gradient_norm", "selector": "importance"},
]
"""What memory honours, and nothing in a single pass does without a forward."""


@pytest.mark.parametrize("settings", NAMED, ids=str)
def test_what_is_named_is_honoured_from_memory_or_by_scoring(settings: dict[str, Any]) -> None:
    config = CoresetConfig(**settings)
    assert config.resolve_scoring(True) == ScoringConfig(way="remembered", unknown="guess")
    assert config.resolve_scoring(False) == ScoringConfig(way="full")
    assert config.resolve_scoring(True, taught=False) == ScoringConfig(way="remembered", unknown="score")


@pytest.mark.parametrize(
    "settings",
    [
        *({"scorer": scorer} for scorer in ("zeroth_order", "loss", "logits", "representation")),
        {"selector": "craig"},
        {"selector": "gradient_matching"},
    ],
    ids=str,
)
def test_what_training_cannot_teach_is_scored_once_and_remembered(settings: dict[str, Any]) -> None:
    config = CoresetConfig(**settings)
    assert config.resolve_scoring(False) == ScoringConfig(way="full")
    assert config.resolve_scoring(True) == ScoringConfig(way="remembered", unknown="score")


@pytest.mark.parametrize(
    "settings",
    [
        {"selector": "facility_location"},
        {"selector": "gradient_matching", "normalise": "optimizer"},
        {"scorer": "loss", "selector": "hard"},
        {"normalise": "optimizer"},
        {"sparsify": "projection"},
        {"small_sources": "auto"},
        {"scorer": "tokens", "selector": "importance"},
        {"scorer": "label_counts"},
        {"selector": "random"},
    ],
    ids=str,
)
def test_auto_is_full_where_the_other_settings_leave_no_room(settings: dict[str, Any]) -> None:
    for again in (False, True):
        assert CoresetConfig(**settings).resolve_scoring(again).way == "full"
        assert CoresetConfig.colm().resolve_scoring(again).way == "full"
        assert CoresetConfig.following().resolve_scoring(again).way == "full"


@pytest.mark.parametrize("option, value", [("rows", 3), ("reuse", True), ("reuse", False), ("reuse_gb", 0.5)])
def test_an_option_of_forwards_asks_for_them(option: str, value: Any) -> None:
    config = CoresetConfig(scoring={"way": "auto", option: value})
    assert config.resolve_scoring(False) == ScoringConfig(way="full", **{option: value})
    assert config.resolve_scoring(True) == ScoringConfig(way="remembered", unknown="score", **{option: value})


@pytest.mark.parametrize(
    "settings, again, expected",
    [
        ({"scoring": "none"}, False, "nothing: rows are drawn by the square root of their trained tokens"),
        ({"scoring": "none", "loss": "example_mean"}, False, "nothing: rows are drawn equally often"),
        ({"selector": "cube"}, True, "nothing: rows are chosen by what training taught of them, and those not known "
                                     "are drawn by the square root of their trained tokens"),
        ({"selector": "balanced"}, False, "every row that is drawn"),
        ({"scorer": "loss"}, True, "rows that are not remembered"),
        ({"scoring": {"way": "window", "tokens": 9}}, False, "9 tokens of every row that is drawn"),
        ({"scoring": {"way": "first_blocks", "blocks": 3}}, False, "every row that is drawn, by the first 3 blocks"),
        ({"scoring": {"way": "every", "steps": 5}}, True, "every row that is drawn, at every 5-th step"),
        ({"scoring": "two_phase"}, True, "a part of the rows that are drawn"),
        ({"selector": "random"}, False, "nothing: random looks at no scores"),
        ({"scorer": "label_counts"}, True, "nothing: label_counts is known without a forward"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_scored_is_told_in_words(settings: dict[str, Any], again: bool, expected: str) -> None:
    config = CoresetConfig(**settings)
    assert scored_rows(config.resolve_scoring(again), config.build()) == expected

from __future__ import annotations

from typing import Any

import pytest

from corebatch.errors import ConfigError
from corebatch.mixture import DatasetSpec, parse_spec, parse_specs


def test_a_mapping_a_path_and_a_spec() -> None:
    spec = DatasetSpec("a.jsonl", weight=2, source="algebra")
    assert parse_specs([{"path": "a.jsonl", "weight": 2, "source": "algebra"}, "a.jsonl", spec]) == [
        spec,
        DatasetSpec("a.jsonl"),
        spec,
    ]


def test_unknown_key_names_entry_known_keys_and_the_likely_one() -> None:
    with pytest.raises(ConfigError, match=r"datasets\[1\].*'wieght'.*'weight'.*path, name, split, source"):
        parse_specs(["a.jsonl", {"path": "b.jsonl", "wieght": 2}])


def test_missing_path() -> None:
    with pytest.raises(ConfigError, match="'path' is missing"):
        parse_spec({"split": "train"})


@pytest.mark.parametrize("entries", [[], "a.jsonl", {"path": "a.jsonl"}, None])
def test_not_a_list_of_entries(entries: Any) -> None:
    with pytest.raises(ConfigError, match="should"):
        parse_specs(entries)


@pytest.mark.parametrize(
    "key, value",
    [
        ("path", ""),
        ("path", 3),
        ("name", 3),
        ("split", " "),
        ("source", ""),
        ("weight", 0),
        ("weight", -1.0),
        ("weight", float("nan")),
        ("weight", float("inf")),
        ("weight", True),
        ("weight", "2"),
    ],
)
def test_bad_value_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{key}`"):
        parse_spec({"path": "a.jsonl", key: value})


def test_an_entry_of_another_type() -> None:
    with pytest.raises(ConfigError, match=r"datasets\[0\] should be a mapping"):
        parse_specs([3])  # type: ignore[list-item]

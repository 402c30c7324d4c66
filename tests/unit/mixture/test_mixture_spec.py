from __future__ import annotations

from typing import Any

import pytest

from corebatch.errors import ConfigError
from corebatch.mixture import DatasetSpec, load_mixture, parse_spec, parse_specs, preview_mixture
from corebatch.mixture.spec import take_shares


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
        ("repeat", 0),
        ("repeat", 1.5),
        ("repeat", True),
        ("share", 0),
        ("share", 1.01),
        ("share", -0.1),
        ("share", float("nan")),
        ("share", "half"),
        ("replay", 0),
        ("replay", "some"),
    ],
)
def test_bad_value_names_the_key(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"`{key}`"):
        parse_spec({"path": "a.jsonl", key: value})


def test_an_entry_of_another_type() -> None:
    with pytest.raises(ConfigError, match=r"datasets\[0\] should be a mapping"):
        parse_specs([3])  # type: ignore[list-item]


def test_repeat_is_a_whole_weight() -> None:
    assert (DatasetSpec("a", repeat=3).times, DatasetSpec("a", weight=0.5).times, DatasetSpec("a").times) == (3, 0.5, 1)
    with pytest.raises(ConfigError, match=r"repeat 2 and weight 0.5"):
        DatasetSpec("a", repeat=2, weight=0.5)


def test_a_share_is_that_of_a_source_which_one_entry_has() -> None:
    with pytest.raises(ConfigError, match=r"`share` of 'a' is that of its source.*give `source`"):
        DatasetSpec("a", share=0.5)
    specs = parse_specs([{"path": "a", "source": "x", "share": 0.25, "repeat": 2}, "b", {"path": "c", "source": "y"}])
    rest, shares = take_shares(specs)
    assert shares == {"x": 0.25}
    assert rest == (DatasetSpec("a", source="x", repeat=2), *specs[1:])
    with pytest.raises(ConfigError, match=r"share.*source 'x'. Found another entry"):
        take_shares([*specs, DatasetSpec("d", source="x")])
    rest, replayed = take_shares(parse_specs([{"path": "a", "source": "x", "replay": 0.05}, "b"]), key="replay")
    assert replayed == {"x": 0.05}
    assert all(spec.replay is None for spec in rest)


def test_where_rows_are_only_read_a_share_is_refused() -> None:
    for read in (load_mixture, preview_mixture):
        with pytest.raises(ConfigError, match=r"Found it in a.jsonl, where rows are only read"):
            read([{"path": "a.jsonl", "source": "x", "share": 0.5}], None)

"""The keys of a config file, changed by `--key value` pairs, and where each comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from corebatch.config.yaml_file import read_lines, read_value
from corebatch.errors import ConfigError


class Origin(str):
    """What a config is called in errors; knows where each of its keys was given."""

    def __new__(cls, name: str, lines: Mapping[str, int] | None = None, given: Iterable[str] = ()) -> Origin:
        made = super().__new__(cls, name)
        made.lines, made.given = dict(lines or {}), frozenset(given)
        return made

    lines: dict[str, int]
    given: frozenset[str]


def place(where: str, key: str) -> str:
    """Where a key was given: the command line, or the file and line."""
    if not isinstance(where, Origin):
        return where
    if key in where.given:
        return "the command line"
    return f"{where}, line {where.lines[key]}" if key in where.lines else where


def read_values(config: Path | None, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Origin]:
    """The keys of a YAML file, changed by `--key value` pairs, and where they come from, for errors."""
    values, lines = read_lines(config) if config is not None else ({}, {})
    given = []
    for key, value in parse_overrides(overrides):
        _expand(values, key)
        _set(values, key.split("."), value, key)
        given.append(key.split(".")[0])
    return values, Origin(str(config) if config is not None else "the command line", lines, given)


def with_keys(values: Mapping[str, Any], keys: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config with keys set that are written flat, as in {"coreset.micro_batches": "positions"}. Raises
    ConfigError: a part of a key is no block in the config."""
    made = deepcopy(dict(values))
    for key, value in keys.items():
        _expand(made, key)
        _set(made, key.split("."), deepcopy(value), key)
    return made


def parse_overrides(arguments: Sequence[str]) -> Iterable[tuple[str, Any]]:
    """`--key value`, `--key=value` and `--flag` as pairs; values are read as YAML."""
    position = 0
    while position < len(arguments):
        word = arguments[position]
        position += 1
        if not word.startswith("--") or len(word) < 3:
            raise ConfigError(f"Expected `--key value` after the config file. Found {word!r}.")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if position < len(arguments) and not arguments[position].startswith("--"):
                text = arguments[position]
                position += 1
            else:
                text = "true"
        key = key.replace("-", "_")
        yield key, _override(key, text)


TEXTS = ("model_name_or_path", "output_dir", "run_name", "eos_token", "pad_token", "chat_template", "separator")
"""Keys whose values are text on the command line also where YAML would read something else, as in `[PAD]`."""


def _override(key: str, text: str) -> Any:
    try:
        value = read_value(text)
    except ConfigError as error:
        if key in TEXTS:
            return text
        raise ConfigError(f"--{key}: {text[:40]!r}: {error}") from None
    return text if key in TEXTS and not isinstance(value, str) and text not in ("null", "~") else value


def _expand(values: dict[str, Any], key: str) -> None:
    """Where a key of `coreset.scoring` is given, a plain way that stands there becomes a block with the key `way`."""
    block = values.get("coreset")
    if key.startswith("coreset.scoring.") and isinstance(block, dict) and isinstance(block.get("scoring"), str):
        block["scoring"] = {"way": block["scoring"]}


def _set(values: dict[str, Any], path: Sequence[str], value: Any, key: str) -> None:
    for part in path[:-1]:
        inner = values.setdefault(part, {})
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--{key}: {part!r} is no block of keys. Found {inner!r}.")
        values = inner
    values[path[-1]] = value

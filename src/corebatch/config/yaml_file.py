"""A config file as keys and values, and the line of each key.

PyYAML takes the last of two equal keys, and aliases that multiply without end; here both are errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from corebatch.errors import ConfigError

MOST_BYTES = 4 * 2**20
MOST_VALUES = 100_000
"""Of a file, aliases written out."""
DEEPEST = 50


def read_lines(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The keys and values of a YAML file, and the line of each key, from 1. Raises ConfigError: missing, not YAML, a
    key given twice, too large (each with the line), or no block of keys."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise ConfigError(f"There is no config file {path}.") from None
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{path} should be a config file of at most {MOST_BYTES // 2**20} MB. Found more.")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            found = "nothing" if node is None else type(node).__name__.removesuffix("Node").lower()
            raise ConfigError(f"{path} should hold keys and values. Found {found}.")
        _Measure(str(path)).size(node)
        lines = {str(key.value): key.start_mark.line + 1 for key, _ in node.value}
        loader.flatten_mapping(node)
        return {
            str(loader.construct_object(key, deep=True)): _value(loader, path, key, value) for key, value in node.value
        }, lines
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line(error)}: not YAML: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise ConfigError(f"{path} should be nested at most {DEEPEST} deep. Found more.") from None


def read_value(text: str) -> Any:
    """A YAML value as on the command line. Raises ConfigError: not YAML, or too large or deep."""
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _Measure("").size(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"not a YAML value: {getattr(error, 'problem', None) or error}") from error
    except RecursionError:
        raise ConfigError(f"a value should be nested at most {DEEPEST} deep. Found more.") from None
    except ValueError as error:  # a number of thousands of digits, a 13th month
        raise ConfigError(f"not a value: {error}") from None


def _value(loader: yaml.SafeLoader, path: Path, key: yaml.Node, value: yaml.Node) -> Any:
    try:
        return loader.construct_object(value, deep=True)
    except ValueError as error:
        line = key.start_mark.line + 1
        raise ConfigError(
            f"{path}, line {line}: {key.value} should be a value. Found one that is none: {error}"
        ) from None


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f", line {mark.line + 1}" if mark is not None else ""


class _Measure:
    """Counts the values of a file, aliases written out, and looks for keys that stand twice in a block."""

    def __init__(self, name: str) -> None:
        self._name, self._known = name, dict[int, int]()

    def size(self, node: yaml.Node, depth: int = 0) -> int:
        """How many values the node stands for. Raises ConfigError: too many, too deep (an alias within itself is), or a
        key twice."""
        if id(node) in self._known:
            return self._known[id(node)]
        if depth > DEEPEST:
            raise self._error(node, f"a value should be nested at most {DEEPEST} deep. Found more.")
        inner = list(node.value) if isinstance(node, yaml.SequenceNode) else []
        if isinstance(node, yaml.MappingNode):
            self._check_keys(node)
            inner = [part for pair in node.value for part in pair]
        total = 1 + sum(self.size(part, depth + 1) for part in inner)
        if total > MOST_VALUES:
            raise self._error(
                node, f"a file should hold at most {MOST_VALUES:,} values, aliases written out. Found more."
            )
        self._known[id(node)] = total
        return total

    def _check_keys(self, node: yaml.MappingNode) -> None:
        seen: dict[Any, int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise self._error(key, f"the key {key.value!r} is given twice, first in line {seen[key.value]}.")
            seen[key.value] = key.start_mark.line + 1

    def _error(self, node: yaml.Node, what: str) -> ConfigError:
        where = f"{self._name}, line {node.start_mark.line + 1}: " if self._name else ""
        return ConfigError(f"{where}{what}")

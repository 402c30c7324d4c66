"""What `corebatch train --help` says of the config's keys: made from the classes that hold them."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

from rich.console import Console

from corebatch.batch.strategies import OPTIONS, STRATEGIES, Auto
from corebatch.config.settings import TRAINING_DEFAULTS, DataSettings, ModelSettings
from corebatch.mixture import DatasetSpec
from corebatch.rendering.sheet import table
from corebatch.text import say
from corebatch.trainer import CoresetConfig

PAGE = "docs/running/cli.md"


def print_keys(console: Console) -> None:
    """The own keys by group, with type and default."""
    groups = [
        ("Model", ModelSettings, ""),
        ("Data", DataSettings, ""),
        ("Each entry of datasets and eval_datasets", DatasetSpec, ""),
        ("How small batches are chosen", CoresetConfig, "coreset."),
    ]
    say(console, f"Keys of CONFIG, as in a YAML file or as --key value; {PAGE} says what each does.\n")
    for title, kind, prefix in groups:
        console.print(table(title, key_rows(kind, prefix)))
        console.print()
    console.print(table("How pools are scored", _scoring_rows("coreset.scoring.")))
    console.print()
    changed = ", ".join(f"{key} {_value(value)}" for key, value in TRAINING_DEFAULTS.items())
    say(
        console,
        "Training: all arguments of transformers.TrainingArguments, such as output_dir, learning_rate, max_steps,\n"
        f"per_device_train_batch_size and resume_from_checkpoint. Other defaults than there: {changed}.\n"
        "overwrite (false): begin a run anew in output_dir that has no complete checkpoint.",
    )


def key_rows(kind: Any, prefix: str = "") -> list[dict[str, str]]:
    """Key, type and default of each field of a dataclass."""
    hints = typing.get_type_hints(kind)
    return [
        {"key": f"{prefix}{field.name}", "type": type_name(hints[field.name]), "default": _default(field)}
        for field in dataclasses.fields(kind)
        if field.init
    ]


def _scoring_rows(prefix: str) -> list[dict[str, str]]:
    """The key `way`, and the options of all ways."""
    rows = {row["key"]: row for kind in STRATEGIES.values() for row in key_rows(kind, prefix)}
    way = {"key": f"{prefix}way", "type": " | ".join(STRATEGIES), "default": Auto.way}
    return [way, *(rows[f"{prefix}{name}"] for name in OPTIONS)]


def type_name(annotation: Any) -> str:
    """A type in words: `str or none`, `float32 | bfloat16`, `list`; classes of our own can be given in Python alone."""
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return " | ".join(map(str, typing.get_args(annotation)))
    if origin in (typing.Union, types.UnionType):
        names = [type_name(part) for part in typing.get_args(annotation)]
        return " or ".join(dict.fromkeys(name for name in names if name))
    kind = origin or annotation
    if kind is type(None):
        return "none"
    if kind is Any:
        return "any"
    if isinstance(kind, type) and issubclass(kind, Mapping):
        return "block"
    if (isinstance(kind, type) and kind.__module__ == "collections.abc") or kind in (tuple, list):
        return "list"
    return str(kind.__name__) if kind in (str, int, float, bool) else ""


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        return _value(field.default)
    return "needed" if field.default_factory is dataclasses.MISSING else _value(field.default_factory())


def _value(value: Any) -> str:
    if value is None or value == () or value == {}:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, str) and not value.isidentifier() else str(value)

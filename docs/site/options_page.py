"""Writes docs/options.md: every key of a config file with its type, default, an example and what its class says of it.

    python docs/site/options_page.py

The words are those of the docstrings. tests/docs/test_options_page.py holds the page to the code, and reads each
example.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "benchmarks")]

from corebatch.batch.budget import BUDGETS  # noqa: E402
from corebatch.batch.cuts import Cut  # noqa: E402
from corebatch.batch.feedback import EXAMPLES as OWN_COLUMNS  # noqa: E402
from corebatch.batch.feedback import RHO, ErrorFeedback  # noqa: E402
from corebatch.batch.strategies import STRATEGIES  # noqa: E402
from corebatch.batch.target_settings import TargetSettings  # noqa: E402
from corebatch.bench.runs.settings import CompareSettings, TuneSettings  # noqa: E402
from corebatch.bench.search.settings import Fidelity, SearchSettings  # noqa: E402
from corebatch.cli.key_help import type_name  # noqa: E402
from corebatch.config.settings import TRAINING_DEFAULTS, DataSettings, ModelSettings  # noqa: E402
from corebatch.launch.subset_settings import FeatureSettings, SubsetSettings  # noqa: E402
from corebatch.mixture import DatasetSpec  # noqa: E402
from corebatch.sampling.by_length import ByLength  # noqa: E402
from corebatch.sampling.learnt import LEARNT  # noqa: E402
from corebatch.sampling.online import ONLINE  # noqa: E402
from corebatch.sampling.shares import Sampling  # noqa: E402
from corebatch.scoring import SCORERS  # noqa: E402
from corebatch.selectors import SELECTORS  # noqa: E402
from corebatch.subset import SUBSETS  # noqa: E402
from corebatch.trainer import CoresetConfig  # noqa: E402
from corebatch.transforms import NORMALISERS, SPARSIFIERS  # noqa: E402
from pages import table, write_between  # noqa: E402

PAGE = ROOT / "docs" / "options.md"
EXAMPLES: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "examples.yaml").read_text())
"""A block of the page -> its keys, each with a value that stands in a config file as it is shown."""
BLOCKS: dict[str, tuple[Any, str]] = {
    "model": (ModelSettings, "The model, and what of it is trained"),
    "data": (DataSettings, "Data"),
    "datasets": (DatasetSpec, "Each entry of `datasets`, `eval_datasets` and `target_datasets`"),
    "coreset": (CoresetConfig, "`coreset`: what comes, what is trained, and with what weight"),
    "coreset.scoring": (STRATEGIES, "`coreset.scoring`: how a pool gets its features"),
    "coreset.micro_batches": (Cut, "`coreset.micro_batches`"),
    "coreset.feedback": (ErrorFeedback, "`coreset.feedback`"),
    "coreset.sampling": (Sampling, "`coreset.sampling`: how often rows come"),
    "coreset.by_length": (ByLength, "`coreset.by_length`"),
    "coreset.target": (TargetSettings, "`coreset.target`"),
    "subset": (SubsetSettings, "`subset`: which rows are kept, once"),
    "subset.features": (FeatureSettings, "`subset.features`"),
    "compare": (CompareSettings, "`compare`: a config against others"),
    "compare.tune": (TuneSettings, "`compare.tune`"),
    "search": (SearchSettings, "`search`: which shares sources should have"),
    "search.fidelities": (Fidelity, "Each entry of `search.fidelities`"),
}
METHODS: dict[str, tuple[Mapping[str, Any], str]] = {
    "coreset.selector": (SELECTORS, "`coreset.selector`, with `coreset.selector_options`"),
    "coreset.scorer": (SCORERS, "`coreset.scorer`, with `coreset.scorer_options`"),
    "coreset.normalise": (NORMALISERS, "`coreset.normalise`"),
    "coreset.sparsify": (SPARSIFIERS, "`coreset.sparsify`"),
    "coreset.budget": (BUDGETS, "`coreset.budget`: a batch that grows"),
    "coreset.objective": (ONLINE, "`coreset.objective: {online: ...}`: shares that follow the run"),
    "coreset.sampling.learnt": (LEARNT, "`coreset.sampling.learnt`: rows that are learnt come less often"),
    "subset.method": (SUBSETS, "`subset.method`, with `subset.options`"),
}


def options() -> str:
    """The page between its markers, Markdown."""
    parts = [f"## {title}\n\n{block_table(block, kind)}" for block, (kind, title) in BLOCKS.items()]
    parts.insert(3, training())
    parts += [f"## {title}\n\n{method_table(block, known)}" for block, (known, title) in METHODS.items()]
    return "\n\n".join(parts)


def training() -> str:
    """What is said of the keys that are transformers' own."""
    rows = [(code(key), code(shown(value))) for key, value in TRAINING_DEFAULTS.items() if isinstance(value, str | int)]
    rows = [row for row in rows if "pin_memory" not in row[0]]  # by the machine
    said = (
        "All arguments of `transformers.TrainingArguments` are keys of the same name. Other defaults than there, and "
        "one key more (`overwrite: true` begins a run anew that has no complete checkpoint):"
    )
    rows.append(("`dataloader_pin_memory`", "where there is a GPU"))
    return f"## Training\n\n{said}\n\n{table(('key', 'default here'), rows)}"


def block_table(block: str, kind: Any) -> str:
    """A row for each key of a block."""
    lines = []
    for key, (kinds, value_of, text) in keys_of(kind).items():
        value = EXAMPLES[block][key]
        lines.append((f"{code(key)}<br>{kinds}<br>{value_of}", code(f"{key}: {shown(value)}"), cell(text)))
    return table(("key, type, default", "example", "what it is"), lines)


def keys_of(kind: Any) -> dict[str, tuple[str, str, str]]:
    """The keys of a block: type, default and what is said of it. Of several classes each key once."""
    if isinstance(kind, Mapping):
        found: dict[str, tuple[str, str, str]] = {"way": ("text", "default: `auto`", ", ".join(map(code, kind)))}
        for each in kind.values():
            found |= {key: row for key, row in keys_of(each).items() if key not in found}
        return found
    said = documented(kind)
    if not dataclasses.is_dataclass(kind):  # arguments of which a config file sets some
        return {
            key: ("number", f"default: `{value:g}`", said[key])
            for key, value in (("rho", RHO), ("examples", OWN_COLUMNS))
        }
    hints = typing.get_type_hints(kind)
    fields = [field for field in dataclasses.fields(kind) if field.init]
    return {each.name: (types(type_name(hints[each.name])), default(each), said[each.name]) for each in fields}


def default(field: dataclasses.Field[Any]) -> str:
    """A field's default as a config file would have it."""
    made = field.default_factory
    value = made() if made is not dataclasses.MISSING else field.default
    if value is dataclasses.MISSING:
        return "**needed**"
    if dataclasses.is_dataclass(value):
        return "default: those of its keys"
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return "default: " + code(
            shown([{key: one for key, one in vars(each).items() if one is not None} for each in value])
        )
    return "default: " + ("none" if value is None or value in ((), {}) else code(shown(value)))


def types(name: str) -> str:
    """The type of a key in words."""
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "": "text"}
    names = [word for part in name.replace(" or none", "").split(" or ") for word in part.split(" | ")]
    return " or ".join(dict.fromkeys(words.get(each, each) for each in names))


def method_table(block: str, known: Mapping[str, Any]) -> str:
    """A row for each method by name, with its options and their defaults."""
    lines = []
    for name, kind in known.items():
        given = inspect.signature(kind).parameters.values()
        taken = [each for each in given if each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)]
        lines.append((code(name), "<br>".join(map(option, taken)) or "none", cell(first_sentence(kind))))
    example = yaml.safe_dump(nested(block, EXAMPLES[block]), sort_keys=False, default_flow_style=None).strip()
    return f"{table(('name', 'options and defaults', 'what it is'), lines)}\n\n```text\n{example}\n```"


def nested(block: str, value: Any) -> Any:
    """`value` as a config file has it: what stands beside the block's own key is in the same mapping."""
    for part in reversed(block.split(".")[:-1]):
        value = {part: value}
    return value


def option(parameter: inspect.Parameter) -> str:
    """An option of a method, with its default."""
    default = "needed" if parameter.default is parameter.empty else shown(parameter.default)
    return code(f"{parameter.name}: {default}")


def documented(kind: Any) -> dict[str, str]:
    """What a class and those that it comes from say of their attributes and arguments, by name."""
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__[:-1]):
        text = inspect.cleandoc(each.__dict__.get("__doc__") or "")
        own = {name: " ".join(said.split()) for name, said in re.findall(r"`(\w+)`: ([^`]+?\.)(?=\s|$)", text)}
        for section in re.findall(r"^(?:Attributes|Args):\n((?:    .*\n?|\n)+)", text, re.M):
            for names, said in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", section, re.M):
                words = " ".join(said.split())
                if not words.startswith("see `"):
                    own = dict.fromkeys(names.split(", "), words) | own
        found |= own
    return found


def first_sentence(kind: Any) -> str:
    """Of a class's docstring; of its module's where that goes over into a formula."""
    for text in (kind.__dict__.get("__doc__"), sys.modules[kind.__module__].__doc__):
        paragraph = " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())
        sentence = re.split(r"(?<=\.) (?=[A-Z`])", paragraph)[0]
        if sentence.endswith(".") and not sentence.endswith(" ."):
            return sentence
    return paragraph


def shown(value: Any) -> str:
    """A value as YAML has it within a line."""
    value = list(value) if isinstance(value, tuple) else value
    if isinstance(value, str) and "\n" in value:
        return json.dumps(value)
    return yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False).strip().removesuffix("\n...")


def code(text: str) -> str:
    return f"`{text}`"


def cell(text: str) -> str:
    """Text for a cell, which ends with a stop."""
    text = text.replace("|", "&#124;").rstrip()
    return text if text.endswith((".", ":")) else f"{text}."


if __name__ == "__main__":
    write_between(PAGE, "options", options())

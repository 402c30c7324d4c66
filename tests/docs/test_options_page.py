"""docs/options.md has every key, as the code has it, and its examples are read."""

import dataclasses
import runpy
from functools import cache
from pathlib import Path

import pytest

from corebatch.batch.strategies import OPTIONS, STRATEGIES
from corebatch.batch.strategies.options import option_names
from corebatch.bench.runs.settings import CompareSettings
from corebatch.bench.search.settings import SearchSettings
from corebatch.config.settings import KEYS, TRAINING_DEFAULTS, DataSettings, ModelSettings, settings_from
from corebatch.errors import ConfigError
from corebatch.launch.subset_settings import SubsetSettings
from corebatch.mixture import DatasetSpec
from corebatch.trainer import CoresetConfig

SITE = Path(__file__).parents[2] / "docs" / "site"
BASE = {"model_name_or_path": "model", "datasets": ["data.jsonl"], "output_dir": "runs/mine"}
BESIDE = {
    "bnb_4bit_quant_type": {"load_in_4bit": True, "use_peft": True},
    "bnb_4bit_compute_dtype": {"load_in_4bit": True, "use_peft": True},
    "use_bnb_nested_quant": {"load_in_4bit": True, "use_peft": True},
    "load_in_4bit": {"use_peft": True},
    "source_tokens": {"objective": "sources"},
    "target": {"selector": "greats"},
    "selector_options": {"selector": "cube"},
    "small_sources_cap": {"small_sources": "auto"},
    "sparsify": {"selector": "facility_location"},
    "epochs": {"shares": {"algebra": 0.5}},
    "until": {"shares": {"algebra": 0.5}},
}
"""What a key asks for beside it."""
BESIDE_LEARN = {"remembered": {"unknown": "score"}, "two_phase": {"proxy": "norm"}}
OF_SUBSETS = {
    "score": {"method": "ccs"},
    "scores": {"method": "ccs"},
    "reference": {"method": "ccs", "score": "excess_loss"},
    "states": {"method": "ccs", "score": "forgetting"},
    "features": {"method": "facility_location"},
    "target": {"method": "simcore"},
}


@cache
def script():
    return runpy.run_path(str(SITE / "options_page.py"))


def examples():
    return script()["EXAMPLES"]


def test_the_page_is_what_the_code_says():
    assert script()["options"]() in script()["PAGE"].read_text(), "run: python docs/site/options_page.py"


def test_every_key_is_on_the_page_with_an_example():
    page = script()["PAGE"].read_text()
    kinds = (ModelSettings, DataSettings, DatasetSpec, CoresetConfig, SubsetSettings, CompareSettings, SearchSettings)
    names = [field.name for kind in kinds for field in dataclasses.fields(kind)]
    for name in [*names, *OPTIONS, *TRAINING_DEFAULTS]:
        assert f"| `{name}`" in page, name
    for block, (kind, _) in script()["BLOCKS"].items():
        assert set(script()["keys_of"](kind)) == set(examples()[block]), block
    for known, _ in script()["METHODS"].values():
        assert all(f"| `{name}` |" in page for name in known)
    own = set(KEYS) - {field.name for field in dataclasses.fields(ModelSettings)}
    assert {"coreset", "overwrite"} <= own


def read(given):
    return settings_from({**BASE, **given}, "the example")


def test_examples_of_the_config_are_read_and_say_what_is_not_so_anyway():
    plain = read({})
    for block in ("model", "data"):
        for key, value in examples()[block].items():
            assert getattr(read({key: value, **BESIDE.get(key, {})}), block) != getattr(plain, block), key
    for key, value in examples()["datasets"].items():
        made = read({"datasets": [{"path": "x", "source": "s", key: value}]})
        assert made != read({"datasets": [{"path": "x", "source": "s"}]}) or key == "source", key
    for key, value in examples()["coreset"].items():
        made = read({"coreset": {key: value, **BESIDE.get(key, {})}})
        assert made.coreset != plain.coreset, key


def test_examples_of_scoring_are_read_by_the_ways_that_take_them():
    for key, value in examples()["coreset.scoring"].items():
        ways = ["auto"] if key == "way" else [way for way, kind in STRATEGIES.items() if key in option_names(kind)]
        assert ways, key
        for way in ways:
            beside = BESIDE_LEARN.get(way, {}) if key == "learn" else {}
            block = {"way": way, **beside, key: value}
            assert CoresetConfig.from_dict({"scoring": block}) != CoresetConfig(), key


@pytest.mark.parametrize("block", ["micro_batches", "feedback", "by_length", "target"])
def test_examples_of_a_block_are_read_together(block):
    given = {block: examples()[f"coreset.{block}"], **BESIDE.get(block, {})}
    assert getattr(CoresetConfig.from_dict(given), block) != getattr(CoresetConfig(), block)
    with pytest.raises(ConfigError, match=block):
        CoresetConfig.from_dict({**given, block: {**given[block], "another": 1}})


def test_examples_of_sampling_are_read():
    for key, value in examples()["coreset.sampling"].items():
        assert CoresetConfig.from_dict({"sampling": {key: value, **BESIDE.get(key, {})}}).sampling is not None


def test_examples_of_methods_are_read():
    for block in script()["METHODS"]:
        value = examples()[block]
        for part in reversed(block.split(".")[:-1]):
            value = {part: value}
        if "subset" in value:
            assert SubsetSettings.from_dict(value["subset"]).keep == 0.1
        else:
            beside = {"selector": "facility_location"} if block == "coreset.sparsify" else {}
            assert CoresetConfig.from_dict({**value["coreset"], **beside}) != CoresetConfig.from_dict(beside)


def test_examples_of_the_commands_blocks_are_read():
    for key, value in examples()["subset"].items():
        block = {"method": "random", "keep": 0.5, **OF_SUBSETS.get(key, {}), key: value}
        if key == "options":
            block["method"] = "ccs"
        assert getattr(SubsetSettings.from_dict(block), key) != SubsetSettings.__dataclass_fields__[key].default
    features = {"method": "facility_location", "keep": 0.5, "features": examples()["subset.features"]}
    assert SubsetSettings.from_dict(features).features.width == 512
    for key, value in examples()["compare"].items():
        assert CompareSettings.from_dict({key: value}) != CompareSettings()
    for key, value in examples()["compare.tune"].items():
        assert CompareSettings.from_dict({"tune": {key: value}}) != CompareSettings()
    for key, value in examples()["search"].items():
        assert SearchSettings.from_dict({key: value}) != SearchSettings() or key == "fidelities"
    whole = [examples()["search.fidelities"], 1.0]
    assert SearchSettings.from_dict({"fidelities": whole}).fidelities[0].cost == 0.1

"""The demo's mixture: the same bytes for the same seed, nothing shared with the held-out items, imbalanced."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from corebatch.demo import DEMO_SOURCES, DemoSettings, DemoSource, make_mixture
from corebatch.errors import ConfigError, DataError
from corebatch.evaluation import ReasoningGymTask

pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: pip install 'corebatch[demo]'")

TWO = (
    DemoSource(generator="chain_sum", examples=30, options={"max_terms": 2}),
    DemoSource(generator="lcm", examples=10, options={"max_value": 30}),
)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    settings = DemoSettings()
    return make_mixture(tmp_path_factory.mktemp("mixture"), heldout_per_source=settings.heldout_per_source)


def test_counts_and_imbalance(files: Any) -> None:
    train = rows(files.train)
    counts = {source.generator: 0 for source in DEMO_SOURCES}
    for row in train:
        counts[row["source"]] += 1
    assert counts == dict(files.train_counts) == {source.generator: source.examples for source in DEMO_SOURCES}
    assert len(counts) >= 8
    assert len(files.small_sources) >= 4
    assert all(counts[name] / len(train) < 1 / len(counts) for name in files.small_sources)
    assert min(counts.values()) * 4 <= max(counts.values())


def test_one_epoch_is_more_than_the_demo_needs(files: Any) -> None:
    settings = DemoSettings()
    assert settings.steps * settings.train_batch_size * settings.pool_factor <= len(rows(files.train))


def test_training_and_heldout_prompts_are_disjoint(files: Any) -> None:
    train = [row["prompt"] for row in rows(files.train)]
    heldout = [row["prompt"] for row in rows(files.heldout)]
    assert len(set(train + heldout)) == len(train) + len(heldout)
    assert len(heldout) == len(DEMO_SOURCES) * files.heldout_per_source


def test_rows_are_short_single_lines(files: Any) -> None:
    for row in rows(files.train):
        assert row["prompt"].startswith("Question: ")
        assert row["prompt"].endswith("\nAnswer:")
        assert row["completion"] == " " + row["answer"]
        assert "\n" not in row["completion"]
        assert len(row["prompt"]) < 300


def test_heldout_answers_pass_their_verifiers(files: Any) -> None:
    task = ReasoningGymTask.from_jsonl(files.heldout)
    assert all(task.is_correct(item, " " + item.answer) for item in task.items())
    assert not any(task.is_correct(item, "I do not know.") for item in task.items())


def test_the_same_seed_gives_the_same_bytes_in_another_process(tmp_path: Path) -> None:
    make_mixture(tmp_path / "here", seed=3, heldout_per_source=4)
    there = str(tmp_path / "there")
    code = f"from corebatch.demo import make_mixture; make_mixture({there!r}, seed=3, heldout_per_source=4)"
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, timeout=120)
    for name in ("train.jsonl", "heldout.jsonl"):
        assert (tmp_path / "here" / name).read_bytes() == (tmp_path / "there" / name).read_bytes()


def test_another_seed_gives_other_questions(tmp_path: Path) -> None:
    one = make_mixture(tmp_path / "1", seed=1, sources=TWO, heldout_per_source=5)
    two = make_mixture(tmp_path / "2", seed=2, sources=TWO, heldout_per_source=5)
    assert rows(one.heldout) != rows(two.heldout)
    assert one.train.read_bytes() != two.train.read_bytes()


def test_existing_files_are_replaced_whole(tmp_path: Path) -> None:
    make_mixture(tmp_path, seed=1, sources=TWO)
    files = make_mixture(tmp_path, seed=1, sources=TWO[:1], heldout_per_source=5)
    assert (len(rows(files.train)), len(rows(files.heldout))) == (30, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heldout.jsonl", "train.jsonl"]


@pytest.mark.parametrize(
    "options, error, found",
    [
        ({"sources": ()}, ConfigError, "at least one"),
        ({"sources": (TWO[0], TWO[0])}, ConfigError, "different generators"),
        ({"sources": TWO, "heldout_per_source": 0}, ConfigError, "Found 0"),
        ({"sources": (DemoSource(generator="no_such", examples=1),)}, ConfigError, "no_such"),
        (
            {"sources": (DemoSource(generator="lcm", examples=30, options={"min_value": 2, "max_value": 3}),)},
            DataError,
            "'lcm' should have 50 different questions. Found 4",
        ),
    ],
)
def test_bad_sources(tmp_path: Path, options: dict[str, Any], error: type[Exception], found: str) -> None:
    with pytest.raises(error, match=found):
        make_mixture(tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_settings_and_sources_are_checked() -> None:
    with pytest.raises(ConfigError, match="examples"):
        DemoSource(generator="lcm", examples=0)
    with pytest.raises(ConfigError, match="pool_factor"):
        DemoSettings(pool_factor=0)


def test_both_files_load_as_data_sets(files: Any, tmp_path: Path) -> None:
    from datasets import load_dataset

    paths = {"train": str(files.train), "test": str(files.heldout)}
    for split, path in paths.items():
        table = load_dataset("json", data_files={split: path}, split=split, cache_dir=str(tmp_path))
        assert len(table) == len(rows(Path(path)))
        assert {"prompt", "completion", "answer", "source"} <= set(table.column_names)


def test_a_demo_replaces_a_demo_and_nothing_else(tmp_path: Path) -> None:
    from corebatch.demo.training import MARKER, prepare
    from corebatch.errors import ConfigError
    from corebatch.record.folder_lock import LOCK, owned

    (tmp_path / "demo" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(ConfigError, match="no demo made"):
        prepare(tmp_path / "demo")
    (tmp_path / "demo" / MARKER).touch()
    with owned(tmp_path / "demo"):
        prepare(tmp_path / "demo")
        assert (tmp_path / "demo" / LOCK).is_file()  # it is still this process's
    assert [path.name for path in (tmp_path / "demo").iterdir()] == [MARKER]

"""`corebatch mixture search` on a tiny model: what it trains, what it leaves, and that a killed one goes on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from transformers import AutoTokenizer

from corebatch.bench.search import from_config
from corebatch.bench.search import job as search_job
from corebatch.cli import mixture_search as command
from corebatch.errors import ConfigError
from folders import save_tiny_model
from in_process import InProcess

pytest.importorskip("botorch", reason="needs pip install 'corebatch[search]'")
pytestmark = pytest.mark.usefixtures("one_thread")
QUESTIONS = {"sums": 30, "names": 24, "rare": 6}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.fixture
def values(model_folder: Path, tmp_path: Path) -> dict[str, Any]:
    data = tmp_path / "train.jsonl"
    rows = [
        {"prompt": f"{source} {n}?", "completion": f"{n * 7 % 13}", "source": source}
        for source, count in QUESTIONS.items()
        for n in range(count)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(model_folder),
        "datasets": [{"path": str(data)}],
        "eval_datasets": [{"path": str(data)}],
        "output_dir": str(tmp_path / "search"),
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "use_cpu": True,
        "compare": {"threads": 1},
        "coreset": {"pool_factor": 1},
        "search": {"trials": 7, "steps": 4, "fidelities": [0.5, 1.0], "seed": 1, "sources": ["rare"], "processes": 2},
    }


class Here(InProcess):
    """Runs the jobs in this process; `most` of them before it is killed."""

    most = 10**6

    def __init__(self, parts: Any) -> None:
        super().__init__(parts)
        self.made = 0

    def outcome(self, job: Any) -> Any:
        if self.made == self.most:
            raise KeyboardInterrupt
        self.made += 1
        return super().outcome(job)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[Here]:
    monkeypatch.setattr(from_config, "Processes", Here)
    return Here


def search(values: dict[str, Any]) -> list[dict[str, Any]]:
    folder = command.run(values, "config.yaml", Console(quiet=True))
    return [json.loads(line) for line in (folder / "trials.jsonl").read_text().splitlines()]


def settled(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run what does not depend on the clock."""
    kept = ("kind", "number", "shares", "cost", "steps", "seed", "value", "losses", "tokens_trained", "status")
    return sorted(({key: line[key] for key in kept} for line in lines), key=lambda line: line["number"])


def test_a_search_and_one_that_was_killed_come_to_the_same(
    values: dict[str, Any], here: type[Here], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = search(values)
    folder = Path(values["output_dir"])
    assert [line["number"] for line in lines] == list(range(10))
    trials, measured = lines[:7], lines[7:]
    assert [line["cost"] for line in trials[:6]] == [0.5] * 4 + [1.0] * 2
    assert trials[0]["shares"] == {"rare": pytest.approx(0.1)}
    assert trials[1]["shares"] == {"rare": pytest.approx(0.5)}
    assert all(line["steps"] == 4 * line["cost"] and line["seed"] == 1 for line in trials)
    assert all(line["value"] == line["losses"]["source"] for line in lines)
    assert [(line["name"], line["seed"], line["steps"]) for line in measured] == [
        (name, 2, 4) for name in ("own", "equal", "found")
    ]
    # the shares are trained: more of the rare source makes its loss another one
    assert trials[4]["losses"]["sources"]["rare"] != trials[5]["losses"]["sources"]["rare"]

    made = json.loads((folder / "search.json").read_text())
    assert made["shares"]["found"] == measured[2]["shares"]
    losses = {line["name"]: line["value"] for line in measured}
    for name in ("own", "equal"):
        assert made["gains"][name]["measured"] == pytest.approx(losses[name] - losses["found"])
        assert made["gains"][name]["standard_deviation"] >= 0
    assert made["cost"] == sum(line["cost"] for line in trials)
    text = (folder / "search.md").read_text()
    assert "rare" in text
    assert f"{losses['found']:.4f}" in text
    config = yaml.safe_load((folder / "found.yaml").read_text())
    assert config["coreset"] == {
        "pool_factor": 1, "sampling": {"shares": made["shares"]["found"]}, "objective": "drawn",
    }  # fmt: skip
    assert not {"search", "compare"} & set(config)
    assert from_config.settings_from(config, "found.yaml").coreset.sampling is not None

    killed = {**values, "output_dir": str(tmp_path / "killed")}
    monkeypatch.setattr(here, "most", 5)
    with pytest.raises(KeyboardInterrupt):
        search(killed)
    with open(tmp_path / "killed" / "trials.jsonl", "a") as file:
        file.write('{"kind": "trial", "num')  # a line that it did not finish
    monkeypatch.setattr(here, "most", 10**6)
    assert settled(search(killed)) == settled(lines)
    again = search(killed)  # nothing is left to do
    assert settled(again) == settled(lines)
    assert json.loads((tmp_path / "killed" / "search.json").read_text())["gains"] == made["gains"]


def test_a_smaller_model_is_a_cheaper_run_and_failures_are_told(
    values: dict[str, Any], here: type[Here], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model_folder: Path
) -> None:
    small = tmp_path / "small"
    save_tiny_model(small)
    values["search"] |= {
        "trials": 4, "steps": 2, "metric": {"rare": 1.0, "sums": 0.0},
        "fidelities": [{"steps": 0.5, "model_name_or_path": str(small), "cost": 0.1}, 1.0],
    }  # fmt: skip
    loaded, honest, train = [], search_job.load_model, search_job.train_arm
    monkeypatch.setattr(search_job, "load_model", lambda s: loaded.append(s.model.model_name_or_path) or honest(s))

    def breaks(arm: Any, data: Any, job: Any) -> Any:
        if job.number == 1:
            raise MemoryError("no memory left")
        return train(arm, data, job)

    with monkeypatch.context() as patch:
        patch.setattr(search_job, "train_arm", breaks)
        lines = search(values)
    assert loaded == [str(small)] * 3  # the fourth has failed before
    assert [line["status"] for line in lines].count("failed") == 1
    assert all(line["value"] == line["losses"]["sources"]["rare"] for line in lines if line["status"] == "ok")
    text = (Path(values["output_dir"]) / "search.md").read_text()
    assert "1 of them came to no loss" in text
    with pytest.raises(ConfigError, match="holds a search for shares with other settings"):
        search({**values, "learning_rate": 1e-3})


def test_bad_settings_are_errors_before_anything_runs(values: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other"
    save_tiny_model(other)
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["a word"])
    tokenizer.save_pretrained(other)

    def changed(**search: Any) -> dict[str, Any]:
        return {**values, "search": {**values["search"], **search}}

    cases = [
        (changed(trial=3), "Found 'trial'"),
        (changed(trials=0), "search.trials"),
        (changed(steps=0), "search.steps"),
        (changed(fidelities=[1.0, 0.5]), "dearer one by one"),
        (changed(fidelities=[0.5]), "end with the whole run"),
        (changed(fidelities=[0.0, 1.0]), r"\(0, 1\]"),
        (changed(fidelities=[{"steps": 0.5, "cost": 0.1}, 1.0]), "of a smaller model"),
        (changed(fidelities=[{"steps": 0.5, "model_name_or_path": "small"}, 1.0]), "cost should be"),
        (changed(fidelities=[{"steps": 0.5, "model_name_or_path": str(other), "cost": 0.1}, 1.0]), "the vocabulary of"),
        (changed(metric="accuracy"), "token, example, source"),
        (changed(metric={"rare": -1}), "weigh sources"),
        (changed(metric={"nobody": 1}), "held-out rows of nobody"),
        (changed(sources=["sum"]), "Did you mean"),
        (changed(sources=["rare", "rare"]), "different names"),
        ({**values, "coreset": {"sampling": {"shares": {"rare": 0.5}}}}, "coreset.sampling is what a search"),
        ({**values, "coreset": {"objective": "sources"}}, "coreset.objective"),
        ({key: value for key, value in values.items() if key != "eval_datasets"}, "eval_datasets"),
    ]
    for given, message in cases:
        with pytest.raises(ConfigError, match=message):
            command.run(given, "config.yaml", Console(quiet=True))
    assert not Path(values["output_dir"]).exists()


def test_without_botorch_the_error_says_what_to_install(
    values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "corebatch.bench.search.surrogate", None)
    with pytest.raises(ImportError, match=r"pip install 'corebatch\[search\]'"):
        command.run(values, "config.yaml", Console(quiet=True))

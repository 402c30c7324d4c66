"""Held-out data and tasks in `corebatch train`: losses by source, the best model, and answers before and after."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback

from corebatch.cli.main import main
from corebatch.launch.held_out import TrainerBySource
from corebatch.report import read_run
from corebatch.trainer import CoresetConfig
from training import Collator, arguments, mixture, tiny_model, trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def corebatch(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    """Exit code of `corebatch words...`."""
    monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return 0 if stop.code is None else int(stop.code)
    return 0


def write(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def held_out(tmp_path: Path) -> Path:
    counts = {"sums": 9, "names": 4, "rare": 2}
    rows = [
        {"prompt": f"{source} {n}?", "completion": f"{n % 7}", "source": source}
        for source, count in counts.items()
        for n in range(count)
    ]
    return write(tmp_path / "held.jsonl", rows)


def test_losses_by_source_and_their_mean(
    monkeypatch: pytest.MonkeyPatch, config: Path, settings: dict[str, Any], held_out: Path, capsys: Any
) -> None:
    words = ["--eval_datasets", f"[{{path: {held_out}}}]", "--eval_strategy", "steps", "--eval_steps", 2]
    assert corebatch(monkeypatch, "train", config, *words) == 0
    run = settings["output_dir"]
    curves = read_run(run).eval_losses
    assert set(curves) == {"eval_loss", "eval_sums_loss", "eval_names_loss", "eval_rare_loss"}
    assert [step for step, _ in curves["eval_loss"]] == [2, 4]
    for at, overall in curves["eval_loss"]:
        by_source = {name: dict(curve)[at] for name, curve in curves.items()}
        weighted = sum(by_source[f"eval_{s}_loss"] * n for s, n in (("sums", 9), ("names", 4), ("rare", 2))) / 15
        assert overall == pytest.approx(weighted, abs=1e-6)
    results = json.loads((Path(run) / "eval_results.json").read_text())
    assert results["eval_loss"] == pytest.approx(curves["eval_loss"][-1][1], abs=1e-6)
    assert results["eval_rare_loss"] > 0
    assert "eval loss" in capsys.readouterr().out


def test_every_row_is_evaluated_once(
    monkeypatch: pytest.MonkeyPatch, config: Path, settings: dict[str, Any], held_out: Path
) -> None:
    rows = []
    original = TrainerBySource.prediction_step

    def counting(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        rows.append(len(inputs["input_ids"]))
        return original(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(TrainerBySource, "prediction_step", counting)
    words = ["--eval_datasets", f"[{{path: {held_out}}}]"]
    assert corebatch(monkeypatch, "train", config, *words) == 0
    assert sum(rows) == 15


def test_together_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, config: Path, settings: dict[str, Any], held_out: Path
) -> None:
    words = ["--eval_datasets", f"[{{path: {held_out}}}]", "--eval_by_source", "false"]
    assert corebatch(monkeypatch, "train", config, *words) == 0
    results = json.loads((Path(settings["output_dir"]) / "eval_results.json").read_text())
    assert {key for key in results if key.endswith("_loss")} == {"eval_loss"}


@pytest.mark.parametrize("metric", [None, "eval_rare_loss"])
def test_the_best_model_by_all_or_by_one_source(
    monkeypatch: pytest.MonkeyPatch, config: Path, settings: dict[str, Any], held_out: Path, metric: str | None
) -> None:
    words = ["--eval_datasets", f"[{{path: {held_out}}}]", "--eval_strategy", "steps", "--eval_steps", 2]
    words += ["--load_best_model_at_end", "true", "--learning_rate", "0.5"]  # so large that the last is not the best
    words += ["--metric_for_best_model", metric] if metric else []
    assert corebatch(monkeypatch, "train", config, *words) == 0
    run = Path(settings["output_dir"])
    state = json.loads((run / "trainer_state.json").read_text())
    curve = dict(read_run(run).eval_losses[metric or "eval_loss"])
    best = min((2, 4), key=lambda step: curve[step])
    assert state["best_metric"] == pytest.approx(curve[best])
    assert Path(state["best_model_checkpoint"]).name == f"checkpoint-{best}"
    saved, kept = (load_file(f / "adapter_model.safetensors") for f in (run, run / f"checkpoint-{best}"))
    assert all(torch.equal(saved[key], kept[key]) for key in saved)


class TestDictionaries:
    """`eval_dataset={...}` in Python."""

    def sets(self) -> dict[str, Any]:
        return {"one": mixture(6, seed=4), "two": mixture(10, seed=5, source=False)}

    def test_of_a_coreset_trainer(self, tmp_path: Path) -> None:
        made = trainer(
            tmp_path, extra={"eval_dataset": self.sets()}, eval_strategy="steps", eval_steps=3, save_strategy="steps",
            save_steps=3, load_best_model_at_end=True, metric_for_best_model="eval_two_loss",
        )  # fmt: skip
        made.train()
        logged = [entry for entry in made.state.log_history if "eval_two_loss" in entry]
        assert [entry["step"] for entry in logged] == [3, 6]
        assert made.state.best_metric == min(entry["eval_two_loss"] for entry in logged)
        assert set(made.evaluate()) >= {"eval_one_loss", "eval_two_loss"}
        alone = {name: made.evaluate(rows)["eval_loss"] for name, rows in self.sets().items()}
        found = made.evaluate()
        for name, loss in alone.items():
            assert found[f"eval_{name}_loss"] == pytest.approx(loss, abs=1e-6)

    def test_choices_are_those_of_a_run_without_evaluation(self, tmp_path: Path) -> None:
        plain = trainer(tmp_path / "a")
        plain.train()
        made = trainer(tmp_path / "b", extra={"eval_dataset": self.sets()}, eval_strategy="steps", eval_steps=2)
        made.train()
        lines = [
            [
                (line["step"], line["chosen"], line["train_loss"])
                for line in map(json.loads, path.read_text().splitlines())
            ]
            for path in (tmp_path / "a" / "selection.jsonl", tmp_path / "b" / "selection.jsonl")
        ]
        assert lines[0] == lines[1]

    def test_overall_loss_and_early_stopping(self, tmp_path: Path) -> None:
        made = TrainerBySource(
            model=tiny_model(),
            args=arguments(
                tmp_path, max_steps=12, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
                load_best_model_at_end=True, learning_rate=1.0, metric_for_best_model="eval_loss",
            ),
            train_dataset=mixture(),
            eval_dataset=self.sets(),
            data_collator=Collator(),
            callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
            coreset=CoresetConfig(scoring="full"),
        )  # fmt: skip
        made.train()
        losses = [entry["eval_loss"] for entry in made.state.log_history if "eval_loss" in entry]
        assert made.state.best_metric == min(losses)
        best = losses.index(min(losses))
        assert len(losses) == made.state.global_step == best + 3 < 12
        given = made.evaluate({"one": self.sets()["one"]})
        assert given["eval_loss"] == given["eval_one_loss"]
        assert "test_loss" in made.evaluate(self.sets(), metric_key_prefix="test")


@pytest.fixture
def tasks(tmp_path: Path) -> list[Any]:
    numbers = write(
        tmp_path / "numbers.jsonl",
        [{"prompt": f"sums {n}?\n", "answer": n * 7 % 13, "source": "sums" if n % 2 else "names"} for n in range(6)],
    )
    review = write(tmp_path / "sst.jsonl", [{"sentence": f"film {n}", "label": n % 2} for n in range(4)])
    return [f"numeric:{numbers},max_new_tokens=3", {"task": "sst2", "path": str(review), "limit": 3}]


def test_tasks_before_and_after_training(
    monkeypatch: pytest.MonkeyPatch,
    config: Path,
    settings: dict[str, Any],
    tasks: list[Any],
    tmp_path: Path,
    capsys: Any,
) -> None:
    words = ["--eval_tasks", json.dumps(tasks)]
    assert corebatch(monkeypatch, "validate", config, *words) == 0
    assert corebatch(monkeypatch, "train", config, *words) == 0
    run = Path(settings["output_dir"])
    record = json.loads((run / "evaluation.json").read_text())
    for when in ("before", "after"):
        totals = {name: count["total"] for name, count in record[when]["per_source"].items()}
        assert totals == {"numbers: sums": 3, "numbers: names": 3, "sst2": 3}
        assert record[when]["overall"]["total"] == 9
    for name in ("numbers", "sst2"):
        before, after = (
            json.loads((run / "evaluation" / f"{name}{part}.json").read_text()) for part in (".before", "")
        )
        assert [row["prompt"] for row in before["answers"]] == [row["prompt"] for row in after["answers"]]
        assert before["overall"]["total"] == after["overall"]["total"]
    scores = [
        json.loads((run / "evaluation" / f"sst2{part}.json").read_text())["answers"][0]["scores"]
        for part in (".before", "")
    ]
    assert scores[0] != scores[1]
    assert "numbers: sums" in (run / "report.html").read_text()
    shown = capsys.readouterr().out
    assert "numbers, before training" in shown
    # what the trained model scores is what `corebatch evaluate` finds
    words = ["--task", f"sst2:{tasks[1]['path']}", "--limit", 3, "--output", tmp_path / "again"]
    assert corebatch(monkeypatch, "evaluate", run, *words) == 0
    again = json.loads((tmp_path / "again" / "sst2.json").read_text())
    assert again["answers"][0]["scores"] == pytest.approx(scores[1], abs=1e-5)


def test_tasks_change_nothing_in_training_and_are_not_repeated_on_resume(
    monkeypatch: pytest.MonkeyPatch, config: Path, settings: dict[str, Any], tasks: list[Any], tmp_path: Path
) -> None:
    assert corebatch(monkeypatch, "train", config) == 0
    other = ["--output_dir", tmp_path / "other", "--eval_tasks", json.dumps(tasks)]
    assert corebatch(monkeypatch, "train", config, *other) == 0
    one, two = (load_file(Path(f) / "adapter_model.safetensors") for f in (settings["output_dir"], tmp_path / "other"))
    assert all(torch.equal(one[key], two[key]) for key in one)
    # killed after step 2, and resumed: `before` is what it was
    run = tmp_path / "other"
    (run / "checkpoint-4" / "corebatch_state.json").unlink()
    record = json.loads((run / "evaluation.json").read_text())
    record["before"]["overall"]["correct"] = 1  # to be told apart
    (run / "evaluation.json").write_text(json.dumps({"before": record["before"]}))
    assert corebatch(monkeypatch, "train", config, *other, "--resume_from_checkpoint", "true") == 0
    resumed = json.loads((run / "evaluation.json").read_text())
    assert resumed == record


def test_a_held_out_loss_as_a_task_has_files_and_no_counts(
    monkeypatch: pytest.MonkeyPatch, config: Path, settings: dict[str, Any], held_out: Path
) -> None:
    assert corebatch(monkeypatch, "train", config, "--eval_tasks", f"[heldout_loss:{held_out}]") == 0
    run = Path(settings["output_dir"])
    assert not (run / "evaluation.json").exists()
    losses = [
        json.loads((run / "evaluation" / f"heldout_loss{part}.json").read_text())["source_mean"]
        for part in (".before", "")
    ]
    assert fmean(losses) > 0
    assert losses[0] != losses[1]


@pytest.mark.parametrize(
    "value, message",
    [
        ("3", "eval_tasks should be a list"),
        ("[3]", "eval_tasks should be a list"),
        ("['nummeric:x']", "Did you mean 'numeric'"),
        ("['numeric:nowhere.jsonl']", "nowhere.jsonl"),
    ],
)
def test_bad_tasks_are_one_message(
    monkeypatch: pytest.MonkeyPatch, config: Path, settings: dict[str, Any], value: str, message: str, capfd: Any
) -> None:
    for command in ("train", "validate"):
        assert corebatch(monkeypatch, command, config, "--eval_tasks", value) == 2
        assert message in capfd.readouterr().err
    assert not Path(settings["output_dir"]).exists()


def test_tasks_on_several_ranks_are_refused(
    monkeypatch: pytest.MonkeyPatch, config: Path, tasks: list[Any], capfd: Any
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert corebatch(monkeypatch, "train", config, "--eval_tasks", json.dumps(tasks)) == 2
    assert "one process" in capfd.readouterr().err

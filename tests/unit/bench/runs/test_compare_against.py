"""What a run's report tells of a comparison with plain training, and comparisons that are not of the run."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from compare_runs import change, make_lines, make_plan, write_comparison
from rich.console import Console

from corebatch.bench.runs import read_comparison
from corebatch.bench.runs.against import against_plain
from corebatch.cli.report import report
from corebatch.errors import ConfigError, DataError
from corebatch.report import Summary, read_run, summarise


def write(folder: Path, pool: int = 64, chosen: int = 32, **coreset: Any) -> Path:
    """A run of two steps with the selection of the made-up comparison."""
    folder.mkdir(parents=True)
    lines = [{"step": step, "pool_examples": pool, "chosen_examples": chosen, "train_loss": 2.0} for step in (1, 2)]
    (folder / "selection.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    info = {"coreset": {"pool_factor": 2, "seed": 7, "selector": "balanced", **coreset}, "model": "small-llama"}
    (folder / "corebatch.json").write_text(json.dumps(info))
    return folder


def summary(folder: Path, **changes: Any) -> Summary:
    return summarise(read_run(write(folder, **changes)))


def test_each_plain_baseline_has_a_sentence(tmp_path: Path) -> None:
    found = against_plain(read_comparison(write_comparison(tmp_path / "compared")), summary(tmp_path / "run"))
    assert [sentence.split(", 5 seeds")[0] for sentence in found] == [
        "plain, large batch, at equal wall-clock",
        "plain, small batch, at equal wall-clock",
        "plain, small batch, at equal steps",
        "plain, small batch, at equal FLOPs",
    ]
    assert found[0].startswith(
        "plain, large batch, at equal wall-clock, 5 seeds: held-out loss with the selection less without: "
        "-0.1031 nats per token by the token mean ("
    )
    assert ", better; better on sums; its last loss was reached in 67 % of its time." in found[0]


def test_what_shows_no_difference_or_has_one_seed_is_told_as_such(tmp_path: Path) -> None:
    plan = make_plan(["coreset@wall_clock", "plain_small@wall_clock"], seeds=(1, 2))
    lines = change(make_lines(plan), "coreset@wall_clock", 1, lambda line: line["final"].update(token=3.5))
    folder = write_comparison(tmp_path / "compared", plan, lines)
    (sentence,) = against_plain(read_comparison(folder), summary(tmp_path / "run"))
    assert "2 seeds: held-out loss with the selection less without: +" in sentence
    assert "no difference shown" in sentence
    folder = write_comparison(tmp_path / "once", plan, [line for line in lines if line["seed"] == 2])
    (sentence,) = against_plain(read_comparison(folder), summary(tmp_path / "again"))
    assert "one seed: held-out loss with the selection less without: -" in sentence
    assert "no test: one common seed" in sentence


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pool": 60}, "rows drawn at a step: 60 here, 64 there"),
        ({"chosen": 16}, "rows trained at a step: 16 here, 32 there"),
        ({"pool_factor": 4}, "coreset.pool_factor: 4 here, 2 there"),
        ({"noise_scale": 4}, "coreset.noise_scale: 4 here, None there"),
    ],
)
def test_a_comparison_of_another_selection_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    comparison = read_comparison(write_comparison(tmp_path / "compared"))
    with pytest.raises(ConfigError, match=f"--comparison: .* is not of this run's selection .*{message}"):
        against_plain(comparison, summary(tmp_path / "run", **changes))


def test_a_comparison_of_another_model_or_without_plain_training_is_refused(tmp_path: Path) -> None:
    plan = make_plan()
    plan["settings"] = {"model_name_or_path": "large-llama"}
    run = summary(tmp_path / "run")
    with pytest.raises(ConfigError, match="model_name_or_path: 'small-llama' here, 'large-llama' there"):
        against_plain(read_comparison(write_comparison(tmp_path / "model", plan)), run)
    without = write_comparison(tmp_path / "without", make_plan(["coreset@wall_clock", "random@wall_clock"]))
    with pytest.raises(ConfigError, match="should have an arm of the config's selection and one of plain training"):
        against_plain(read_comparison(without), run)
    with pytest.raises(ConfigError, match="has no runs yet"):
        against_plain(read_comparison(write_comparison(tmp_path / "begun", lines=[])), run)


def test_the_report_tells_it_and_opens_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared, run = write_comparison(tmp_path / "compared"), write(tmp_path / "run")
    console, opened, there = Console(file=io.StringIO(), width=200), [], True

    def browser(address: str) -> bool:
        opened.append(address)
        return there

    monkeypatch.setattr("webbrowser.open", browser)
    page = report(run, console, comparison=compared, show_it=True)
    assert opened == [page.resolve().as_uri()]
    assert "<dt>Against plain training</dt><dd>plain, large batch, at equal wall-clock, 5 seeds" in page.read_text()
    assert isinstance(console.file, io.StringIO)
    assert "Against plain training: plain, small batch, at equal steps" in console.file.getvalue()
    there = False
    with pytest.raises(ConfigError, match=f"--open: no browser could be started here. The page is in {page}"):
        report(run, console, show_it=True)
    with pytest.raises(DataError, match=r"plan\.json"):
        report(run, console, comparison=run)
    with pytest.raises(ConfigError, match="--comparison is of a run's report"):
        report(compared, console, comparison=compared)
    assert "Not known from one run" in page.read_text()

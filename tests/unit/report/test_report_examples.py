"""The table of examples, against counts of the run's own lines."""

import json
from collections import defaultdict

import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from rich.console import Console

from corebatch.cli.report import report
from corebatch.errors import ConfigError, DataError
from corebatch.report.examples import export_examples
from corebatch.trainer import CoresetConfig
from training import mixture, run, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("run")
    run(trainer(made, coreset=CoresetConfig(), max_steps=9))  # one pass and a half
    return made


def expected(folder, data):
    """What a loop over the lines finds."""
    found = defaultdict(lambda: {"drawn": 0, "trained": 0, "losses": [], "weights": [], "last_step": None})
    for line in (folder / "chosen.jsonl").read_text().splitlines():
        step = json.loads(line)
        for i in (*step["chosen"], *step["passed"]):
            found[i]["drawn"] += 1
        given = step.get("weights") or [1.0] * len(step["chosen"])
        for i, weight, loss in zip(step["chosen"], given, step["losses"] or [None] * len(given), strict=True):
            found[i]["trained"] += 1
            found[i]["weights"].append(weight)
            found[i]["last_step"] = step["step"]
            found[i]["losses"] += [loss] if loss is not None else []
    rows = []
    for i in sorted(found):
        each = found[i]
        losses, weights = each["losses"], each["weights"]
        rows.append(
            {
                "example": i,
                "source": data[i]["source"],
                "drawn": each["drawn"],
                "trained": each["trained"],
                "mean_loss": pytest.approx(sum(losses) / len(losses)) if losses else None,
                "last_loss": losses[-1] if losses else None,
                "last_step": each["last_step"],
                "mean_weight": pytest.approx(sum(weights) / len(weights)) if weights else None,
            }
        )
    return rows


def test_the_table_is_what_the_lines_say(folder, tmp_path):
    count = export_examples(folder, tmp_path / "out.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    wanted = expected(folder, mixture())
    assert rows == wanted
    assert count == len(rows) > 80
    assert {row["trained"] for row in rows} >= {0, 1, 2}
    assert all((row["mean_loss"] is None) == (row["trained"] == 0) for row in rows)


def test_as_csv_and_as_a_command(folder, tmp_path):
    report(folder, Console(quiet=True), tmp_path, tmp_path / "out.csv")
    table = pyarrow.csv.read_csv(tmp_path / "out.csv")
    wanted = expected(folder, mixture())
    assert table.column("example").to_pylist() == [row["example"] for row in wanted]
    assert table.column("drawn").to_pylist() == [row["drawn"] for row in wanted]
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("kind", ["list", "torch"])
def test_data_of_another_kind_and_losses_that_are_not_known(tmp_path, kind):
    class Rows(torch.utils.data.Dataset):
        def __len__(self):
            return 96

        def __getitem__(self, i):
            return mixture_rows[i]

    mixture_rows = list(mixture())
    made = mixture_rows if kind == "list" else Rows()
    run(trainer(tmp_path, coreset=CoresetConfig(loss_by_source=False), train_dataset=made, max_steps=2))
    export_examples(tmp_path, tmp_path / "out.parquet")
    rows = pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist()
    assert all(row["mean_loss"] is row["last_loss"] is None for row in rows)
    assert all(row["source"] == mixture_rows[row["example"]]["source"] for row in rows)


def test_a_killed_run_has_one_too(folder, tmp_path):
    for name in ("corebatch.json", "sources.npy"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    text = (folder / "chosen.jsonl").read_text()
    (tmp_path / "chosen.jsonl").write_text(text[:-20])
    export_examples(tmp_path, tmp_path / "out.parquet")
    (tmp_path / "chosen.jsonl").write_text(text[: text[:-1].rindex("\n") + 1])
    assert pyarrow.parquet.read_table(tmp_path / "out.parquet").to_pylist() == expected(tmp_path, mixture())


def copied(folder, tmp_path):
    for name in ("corebatch.json", "sources.npy", "chosen.jsonl"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    "harm, message",
    [
        (lambda f: (f / "chosen.jsonl").unlink(), "has no record of its examples: chosen.jsonl is missing"),
        (lambda f: (f / "sources.npy").unlink(), "has no record of its examples: sources.npy is missing"),
        (lambda f: (f / "sources.npy").write_bytes(b"no array"), "sources.npy cannot be read"),
        (lambda f: (f / "corebatch.json").unlink(), "sources.npy should hold the source of each example, of 0"),
        (lambda f: (f / "chosen.jsonl").write_text('{"step": 1}\n'), r"chosen.jsonl:1: should be a step of this run"),
        (lambda f: (f / "chosen.jsonl").write_text("{\n{}\n"), r"chosen.jsonl:1: not valid JSON"),
        (
            lambda f: (f / "chosen.jsonl").write_text('{"step": 1, "chosen": [96], "passed": []}\n'),
            "should be a step of this run. Found: index 96 is out of bounds",
        ),
        (
            lambda f: (f / "chosen.jsonl").write_text('{"step": 1, "chosen": [-1], "passed": []}\n'),
            "should be a step of this run. Found: example -1",
        ),
    ],
)
def test_a_record_that_is_missing_or_broken_is_an_error(folder, tmp_path, harm, message):
    harm(copied(folder, tmp_path))
    (tmp_path / "out.parquet").write_text("old")
    with pytest.raises(DataError, match=message):
        export_examples(tmp_path, tmp_path / "out.parquet")
    assert (tmp_path / "out.parquet").read_text() == "old"
    assert not list(tmp_path.glob(".*.part"))


def test_what_cannot_be_written_is_an_error(folder, tmp_path):
    console = Console(quiet=True)
    with pytest.raises(ConfigError, match=r"--examples should name a file ending in .parquet or .csv. Found out.xlsx"):
        report(folder, console, None, tmp_path / "out.xlsx")
    with pytest.raises(ConfigError, match="could not be written"):
        export_examples(folder, tmp_path / "missing" / "out.csv")
    with pytest.raises(DataError, match="Found no folder"):
        report(tmp_path / "none", console, None, tmp_path / "out.csv")
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(ConfigError, match="Found a comparison"):
        report(tmp_path, console, None, tmp_path / "out.csv")

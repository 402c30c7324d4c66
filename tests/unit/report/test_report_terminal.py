"""The tables in the terminal."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from report_runs import EVALUATION, INFO, PEAK, STEPS_TODAY, long_run, write_run
from rich.cells import cell_len
from rich.console import Console

from corebatch.report import print_summary, read_run, summarise, write_report


def printed(folder: Path, width: int = 80, **options: Any) -> str:
    console = Console(file=io.StringIO(), width=width, **options)
    print_summary(summarise(read_run(folder)), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, first: str) -> list[str]:
    return next(line.split() for line in text.splitlines() if line.startswith(first))


def test_numbers_are_there(tmp_path: Path) -> None:
    text = printed(write_run(tmp_path, evaluation=EVALUATION))
    assert row(text, "algebra ") == ["algebra", "14", "87.5", "%", "6", "75.0", "%", "0.86", "×"]  # noqa: RUF001
    assert row(text, "tiny")[-1] == "1"
    assert row(text, "score ")[:5] == ["score", "600", "600", "30.0", "%"]
    assert row(text, "pool (all")[-2:] == ["2.000", "1.000"]
    assert row(text, "Tokens  ") == ["Tokens", "2,000", "scored,", "1,000", "trained"]
    assert row(text, "all ") == ["all", "–", "3/4", "75.0", "30.1–95.4"]  # noqa: RUF001


def test_what_newer_records_tell_is_there(tmp_path: Path) -> None:
    text = printed(write_run(tmp_path, STEPS_TODAY, corebatch={**INFO, "peak_flops": PEAK}), 100)
    assert "33.3 % of positions scored, 20.0 % of positions trained" in text
    assert "40.0 % of 160 GFLOP/s a device (measured matmul float32)" in text
    assert "full (1 step) and proxy (1 step)" in text
    assert "at most 12.5 MB a step" in text
    assert "7 MB, 3,584 KB a step (features 85.7 %, rows 14.3 %)" in text
    assert "1 of 8 chosen rows changed ranks" in text
    assert row(text, "communication")[:3] == ["communication", "250", "250"]
    assert "exchange" not in text
    narrow = printed(tmp_path)
    assert all(cell_len(line) <= 80 for line in narrow.splitlines())


@pytest.mark.parametrize("width", [80, 120])
def test_fits_the_width_without_cutting_a_number(tmp_path: Path, width: int) -> None:
    names = ["数学オリンピック", "a_source_with_a_name_that_is_longer_than_any_column", *map(str, range(40))]
    steps = long_run(30, names)
    for step in steps:
        step["drawn"] = {name: n * (300_000 if len(name) > 2 else 100_000) for name, n in step["drawn"].items()}
    text = printed(write_run(tmp_path, steps, evaluation=EVALUATION), width)
    assert all(cell_len(line) <= width for line in text.splitlines())
    assert "26 other sources" in text
    numbers = [line for line in text.splitlines() if line.startswith(("数学", "26 other", "train "))]
    assert len(numbers) == 3
    assert not any("…" in line for line in numbers)


def test_names_are_neither_markup_nor_escape_codes(tmp_path: Path) -> None:
    text = printed(write_run(tmp_path, long_run(3, ["[red]a[/red]", "b\x1b[31m\nc"])))
    assert "[red]a[/red]" in text
    assert "\x1b" not in text
    assert "b�[31m�c" in text


def test_notes_are_told(tmp_path: Path) -> None:
    assert "Note: corebatch.json is missing" in printed(write_run(tmp_path, corebatch=None))


UNSCORED = "nothing: rows are drawn by the square root of their trained tokens"


@pytest.mark.parametrize(
    "scored, selection",
    [
        (UNSCORED, UNSCORED.removeprefix("nothing: ")),
        ("nothing: rows are chosen by what training taught of them", "balanced on last_layer"),
        ("nothing: label_counts is known without a forward", "balanced on last_layer"),
    ],
)
def test_a_run_that_scores_nothing_does_not_speak_of_scoring(tmp_path: Path, scored: str, selection: str) -> None:
    steps = [{**step, "tokens_scored": 0, "scoring": "none", "reuse_mb": None} for step in STEPS_TODAY]
    folder = write_run(tmp_path, steps, corebatch={**INFO, "scored": scored})
    text = printed(folder, 120)
    assert "scoring" not in text
    assert row(text, "Selection ")[1:] == selection.split()
    assert row(text, "Tokens  ") == ["Tokens", "1,000", "trained"]
    assert row(text, "Pool scored") == ["Pool", "scored", "none", "(2", "steps)"]
    page = write_report(folder).read_text()
    assert "none scored" in page
    assert "of time for training" in page
    assert scored in page

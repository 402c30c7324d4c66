"""`micro_batches` at pool_factor 1 from the command line: trained, resumed, recorded and reported."""

import json
import re
from pathlib import Path

import pytest

from corebatch.report import read_run, summarise

pytestmark = pytest.mark.usefixtures("one_thread")


EVERY = ("--coreset.pool_factor", 1, "--coreset.micro_batches", "length")


def test_trained_resumed_and_reported(corebatch, config, settings):
    folder = Path(settings["output_dir"])
    saved = ("--max_steps", 4, "--save_strategy", "steps", "--save_steps", 2, "--logging_steps", 1)
    code, out, err = corebatch("train", config, *EVERY, *saved)
    assert code == 0, err
    assert "scored" not in out
    assert "Selection none: every row is trained, in micro-batches by length" in out
    assert "chosen" not in out.replace("nothing was chosen", "")
    summary = summarise(read_run(folder))
    assert summary.examples_drawn == summary.examples_trained
    assert summary.examples is None
    assert summary.notes == ()
    assert re.search(r"Micro-batches 1\.\d\d positions a token \(1\.\d\d as drawn\), the largest \d+ positions \(", out)
    assert summary.positions.trained <= summary.positions.plain
    assert summary.positions.largest >= summary.positions.trained / 4 / 2  # of 4 steps of two
    assert "Every row that is drawn is trained" in json.loads((folder / "corebatch.json").read_text())["method_note"]
    page = re.sub("<style>.*?</style>|<script.*?</script>", "", (folder / "report.html").read_text(), flags=re.DOTALL)
    assert "Loss of the trained rows" in page
    for word in ("chosen most", "ratio of shares", "pool loss", "never chosen"):
        assert word not in page.lower(), word
    card = (folder / "README.md").read_text()
    assert "all of them trained" in card
    assert "in micro-batches by length, which leaves the update as it is" in card
    assert "chosen by corebatch" not in card
    assert "Trained for the mean over trained tokens." in card
    code, out, _ = corebatch("train", config, *EVERY, *saved, "--resume_from_checkpoint", "true")
    assert (code, "Nothing to do" in out) == (0, True)


def test_validate_makes_the_first_step(corebatch, config, settings):
    code, out, err = corebatch("validate", config, *EVERY)
    assert code == 0, err
    assert "The first step was made" in out
    assert "selector" not in out
    assert not (Path(settings["output_dir"]) / "selection.jsonl").exists()


@pytest.mark.parametrize("factor", [1, 2])
def test_a_cap_below_the_longest_row_stops_all_commands(corebatch, config, settings, factor):
    words = ("--coreset.pool_factor", factor, "--coreset.micro_batches", "{by: positions, most: 12, multiple: 4}")
    for command in (("validate",), ("validate", "--fast"), ("train",)):
        code, _, error = corebatch(command[0], config, *words, *command[1:])
        assert code == 2
        assert "coreset.micro_batches.most should leave room for the longest row. Found 12 positions, and row " in error
        assert re.search(r"of the mixture \(\w+\) with 1\d tokens, which are rounded up to 16", " ".join(error.split()))
    assert not (Path(settings["output_dir"]) / "selection.jsonl").exists()


@pytest.mark.parametrize(
    "cut, message",
    [
        ("sorted", "coreset.micro_batches should be one of auto, plain, length, positions, flops. Found 'sorted'"),
        ("{most: 0}", "coreset.micro_batches.most"),
        ("{by: length, most: 100}", "a cap for a cut by positions or flops"),
        ("{upto: 100}", "coreset.micro_batches has the keys by, most, multiple. Found 'upto'"),
    ],
)
def test_a_cut_that_is_none(corebatch, config, cut, message):
    code, _, error = corebatch("validate", config, "--coreset.micro_batches", cut)
    assert code == 2
    assert message in " ".join(error.split())


def figures(out):
    names = ("positions a token, as they are drawn", "positions a token, cut by positions")
    names += ("largest, as they are drawn, positions", "largest, cut by positions, positions")
    return [float(re.search(rf"{name}\W+([\d,.]+)", out)[1].replace(",", "")) for name in names]


@pytest.mark.parametrize("factor", [1, 4])
def test_validate_says_what_the_cut_saves(corebatch, config, factor):
    words = ("--coreset.pool_factor", factor, "--coreset.micro_batches", "positions", "--fast")
    code, out, err = corebatch("validate", config, *words)
    assert code == 0, err
    drawn, cut, largest_drawn, largest_cut = figures(out)
    assert 1 <= cut < drawn
    assert largest_cut <= largest_drawn
    assert "parts in which one is trained" not in out
    code, out, err = corebatch("validate", config, *words[:2], "--coreset.micro_batches", "{most: 20}", "--fast")
    assert figures(out)[3] <= 20 < largest_drawn
    assert re.search(r"parts in which one is trained, at most\W+[2-4]", out)
    code, out, err = corebatch("validate", config, *words[:2], "--coreset.micro_batches", "plain", "--fast")
    assert "positions a token" not in out


def test_keys_of_a_choice_are_told_to_be_idle(corebatch, config):
    choice = ("--coreset.selector", "random", "--coreset.feedback", "none", "--coreset.track_error", 5)
    said = "Warning: coreset.selector, coreset.feedback, coreset.track_error without effect: pool_factor is 1."
    for words, told in (
        (("--coreset.pool_factor", 1), said),
        (("--coreset.pool_factor", 2), None),
    ):
        code, out, err = corebatch("validate", config, *words, *choice, "--fast")
        assert code == 0, err
        assert told in out if told else "without effect" not in out
    words = (*EVERY, "--coreset.selector", "random", "--coreset.loss", "example_mean")  # a mean that every row can have
    code, out, _ = corebatch("validate", config, *words, "--fast")
    assert "Warning: coreset.selector without effect: pool_factor is 1." in out

"""What runs score unless told: nothing, and what they say of it."""

import json
import logging

import pytest

from corebatch.trainer import CoresetConfig, CoresetTrainer
from training import run, tiny_model, trainer


def lines(folder):
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


def told(folder):
    return json.loads((folder / "corebatch.json").read_text())["scored"]


@pytest.mark.parametrize("steps", [6, 15], ids=["a single epoch", "examples come again"])
def test_by_default_nothing_is_scored_or_remembered_and_errors_are_carried(tmp_path, caplog, steps):
    with caplog.at_level(logging.INFO):
        made = run(trainer(tmp_path, max_steps=steps))
    found = lines(tmp_path)
    assert [(line["scoring"], line["tokens_scored"]) for line in found] == [("none", 0)] * steps
    assert all(line["examples_scored"] == 0 and line["pool_loss"] is None for line in found)
    assert all(0 < line["carried"] < 3 for line in found)
    assert (made._run.scoring.memory, made._run.scoring.trained) == (None, None)
    assert told(tmp_path) == "nothing: label_counts is known without a forward"
    assert caplog.text.count(f"Scored: {told(tmp_path)}") == 1


def test_gradients_that_are_named_are_remembered_where_examples_come_again(tmp_path):
    made = run(trainer(tmp_path, coreset=CoresetConfig(selector="cube"), max_steps=15))
    found = lines(tmp_path)
    assert [(line["scoring"], line["tokens_scored"]) for line in found] == [("remembered", 0)] * 15
    made._run.update_memory()
    chosen = [json.loads(line)["chosen"] for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    assert len(made._run.scoring.memory) == len({row for rows in chosen for row in rows})
    assert told(tmp_path).startswith("nothing: rows are chosen by what training taught of them")


@pytest.mark.parametrize("settings", [{"selector": "balanced"}, {"scorer": "gradient_norm", "selector": "importance"}])
def test_what_is_named_is_scored_in_a_single_epoch(tmp_path, settings):
    run(trainer(tmp_path, coreset=CoresetConfig(**settings), max_steps=2))
    assert [(line["scoring"], line["examples_scored"]) for line in lines(tmp_path)] == [("full", 16)] * 2
    assert told(tmp_path) == "every row that is drawn"


def test_an_own_loss_teaches_nothing_so_what_is_named_is_scored_once(tmp_path):
    class Own(CoresetTrainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            return super().compute_loss(model, inputs, *args, **kwargs)

    plain = trainer(tmp_path, coreset=CoresetConfig(selector="cube"), max_steps=15)
    made = Own(
        model=tiny_model(), args=plain.args, train_dataset=plain.train_dataset, data_collator=plain._own_collator,
        coreset=CoresetConfig(selector="cube"),
    )  # fmt: skip
    found = [each._run.scoring.strategy for each in (plain, made)]
    assert [(each.way, each.unknown) for each in found] == [("remembered", "guess"), ("remembered", "score")]

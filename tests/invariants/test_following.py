"""Error feedback in a trainer: every source keeps its weight over the run, the sum of errors stays bounded."""

import json

import pytest
import torch

from corebatch.trainer import CoresetConfig
from training import SOURCES, mixture, run, tiny_model, trainer

STEPS = 200


def lines(folder, name):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def weight_of_sources(folder, data):
    """Trained tokens of each source, by weight, over those that were drawn."""
    tokens = [sum(label != -100 for label in row["labels"][1:]) for row in data]
    trained, drawn = dict.fromkeys(SOURCES, 0.0), dict.fromkeys(SOURCES, 0.0)
    for line in lines(folder, "chosen.jsonl"):
        pool = len(line["chosen"]) + len(line["passed"])
        for row, weight in zip(line["chosen"], line["weights"], strict=True):
            trained[data[row]["source"]] += weight * tokens[row] * pool / len(line["chosen"])
        for row in (*line["chosen"], *line["passed"]):
            drawn[data[row]["source"]] += tokens[row]
    return torch.tensor([trained[source] / drawn[source] for source in SOURCES])


def test_sources_keep_their_weight_without_a_forward(tmp_path):
    data = mixture()
    coreset = CoresetConfig.following(pool_factor=4)
    run(trainer(tmp_path, tiny_model(lora=False), coreset, train_dataset=data, max_steps=STEPS))
    steps = lines(tmp_path, "selection.jsonl")
    assert all(step["examples_scored"] == 0 and step["tokens_scored"] == 0 for step in steps)
    carried = torch.tensor([step["carried"] for step in steps])
    assert carried[STEPS // 2 :].max() < 1.5 * carried[: STEPS // 2].max()
    assert (weight_of_sources(tmp_path, data) - 1).abs().max() < 0.03


@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
def test_what_is_remembered_is_followed(tmp_path, loss):
    """Only rows that are known have features; the others are drawn by size, and the run goes on the same."""
    coreset = CoresetConfig(
        pool_factor=4, selector="balanced", feedback=0.9, loss=loss, scoring={"way": "remembered", "unknown": "guess"}
    )
    run(trainer(tmp_path, tiny_model(lora=False), coreset, max_steps=40))
    carried = [step["carried"] for step in lines(tmp_path, "selection.jsonl")]
    assert carried[0] == 0
    assert 0 < carried[-1] < 10


def test_costs_make_cheaper_steps(tmp_path):
    spent = {}
    for power in (None, 1.0):
        coreset = CoresetConfig(
            pool_factor=4, scorer="tokens", selector="importance", selector_options={"cost_power": power}
        )
        run(trainer(tmp_path / str(power), tiny_model(lora=False), coreset, max_steps=60))
        spent[power] = sum(step["tokens_trained"] for step in lines(tmp_path / str(power), "selection.jsonl"))
    assert spent[1.0] < 0.95 * spent[None]

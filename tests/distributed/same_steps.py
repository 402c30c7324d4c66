"""What one rank and two have trained, and that it is the same."""

import json

import pytest
import torch


def both(trained, engine, names, method):
    """(lines, weights) of a method on one rank and on two."""
    folders = [trained(1, "ddp", names), trained(2, engine, names)]
    lines = [json.loads((folder / f"{method}.json").read_text()) for folder in folders]
    return lines, [torch.load(folder / f"{method}.pt") for folder in folders]


def assert_same_steps(one, two):
    assert len(one) == len(two)
    keys = ("ids", "drawn", "chosen", "pool_examples", "chosen_examples", "examples_scored", "labels_trained")
    for alone, joint in zip(one, two, strict=True):
        for key in keys:
            assert alone[key] == joint[key]
        for key in ("shares", "loss_by_source", "loss_tokens", "drawn_loss_by_source"):
            assert joint[key] == (alone[key] and pytest.approx(alone[key], rel=1e-5))
        assert joint["train_loss"] == pytest.approx(alone["train_loss"], rel=1e-5)

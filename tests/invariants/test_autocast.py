"""Scoring leaves autocast as it was."""

import pytest
import torch

from corebatch.trainer import CoresetConfig
from training import run, tiny_model, trainer


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("recipe", [CoresetConfig(scoring="full"), CoresetConfig.colm()], ids=["full", "colm"])
def test_training_in_bf16_leaves_autocast_as_it_was(tmp_path, recipe, outside):
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=outside):
        made = trainer(tmp_path, tiny_model(), recipe, bf16=True, max_steps=1)
        run(made)
        assert torch.is_autocast_enabled("cpu") is outside
    assert not torch.is_autocast_enabled("cpu")
    assert made.state.global_step == 1

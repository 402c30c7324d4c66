"""The whole step takes hardly more memory than plain training on the same micro-batch."""

import json

import pytest

from corebatch.bench.models import build_model, model_config
from corebatch.bench.steps.arm import Rows, run_arm
from corebatch.bench.steps.plan import ACCUMULATION, StepSettings, plan

MODEL = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 8,
    "num_attention_heads": 4, "max_position_embeddings": 256,
}  # fmt: skip
ARMS = {"plain scoring": {"scoring": {"way": "full", "reuse": False}}, "memory": {"scoring": "remembered"}}


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ["lora", "full"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_live_bytes_of_the_step(tmp_path, adapter, checkpointing):
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    usual = plan(StepSettings(model=str(tmp_path), large=8, micro_batch=4, ratios=[2], length=8)).arms
    others = {arm.name: None for arm in usual if arm.coreset is not None}
    settings = StepSettings(
        model=str(tmp_path), adapter=adapter, checkpointing=checkpointing, large=32, micro_batch=4, ratios=[4],
        length=128, max_length=128, steps=1, rounds=1, arms={**others, **ARMS},
    )  # fmt: skip
    model = build_model(str(tmp_path), adapter=adapter)
    made = plan(settings)
    rows = Rows(made.shapes, 3 * settings.large, model_config(str(tmp_path)).vocab_size, 0)  # of three steps
    peaks = {
        arm.name: run_arm(arm, model, rows, settings, number=0, memory=True).peak_bytes
        for arm in made.arms
        if arm.name in (ACCUMULATION, *ARMS)
    }
    assert set(peaks) == {ACCUMULATION, *ARMS}
    for arm in ARMS:
        # The pool's inputs and features are counted, and more is drawn than is trained: four times here.
        assert peaks[arm] <= 1.05 * peaks[ACCUMULATION], (arm, peaks)

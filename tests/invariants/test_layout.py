"""How a batch is cut into micro-batches does not matter, and the same seed gives the same run."""

import json

import pytest
import torch

from corebatch.trainer import CoresetConfig
from training import largest_difference, run, same, tiny_model, trainer, weights

METHODS = {
    "recommended": CoresetConfig(),
    "colm": CoresetConfig.colm(),
    "balanced": CoresetConfig(selector="balanced", pool_factor=4),
    "tokens": CoresetConfig(scorer="tokens", selector="importance"),
    "optimizer_scale": CoresetConfig(normalise="optimizer"),
    "random": CoresetConfig(selector="random"),
    "stratified": CoresetConfig(selector="stratified"),
    "hard": CoresetConfig(scorer="loss", selector="hard"),
    "small_kept": CoresetConfig(small_sources="auto"),
    "example_mean": CoresetConfig(loss="example_mean"),
}
PLAIN_LOSS = {"random", "stratified", "hard"}


@pytest.mark.parametrize("method", METHODS)
def test_one_by_eight_is_eight_by_one(tmp_path, method):
    results, chosen = [], []
    for size, steps in ((1, 8), (8, 1), (2, 4)):
        made = trainer(
            tmp_path / f"{size}x{steps}",
            tiny_model(dtype=torch.float64),
            METHODS[method],
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
            optim="adamw_torch",
        )
        results.append(weights(run(made)))
        lines = (tmp_path / f"{size}x{steps}" / "selection.jsonl").read_text().splitlines()
        chosen.append([json.loads(line)["chosen"] for line in lines])
    # transformers' own loss is in float32 whatever the model, ours is not
    bound = 2e-5 if method in PLAIN_LOSS else 1e-9
    assert chosen[0] == chosen[1] == chosen[2]
    assert largest_difference(results[0], results[1]) < bound
    assert largest_difference(results[0], results[2]) < bound


@pytest.mark.parametrize("method", ["recommended", "colm", "balanced"])
def test_the_same_seed_gives_the_same_run(tmp_path, method):
    results = []
    for name in ("one", "two"):
        made = run(trainer(tmp_path / name, tiny_model(dropout=0.1), METHODS[method]))
        lines = [json.loads(line) for line in (tmp_path / name / "selection.jsonl").read_text().splitlines()]
        untimed = [{k: v for k, v in line.items() if k not in ("ms", "memory_mb", "seconds")} for line in lines]
        results.append((weights(made), untimed))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_another_selection_seed_gives_another_choice(tmp_path):
    results = [weights(run(trainer(tmp_path / str(seed), tiny_model(), CoresetConfig(seed=seed)))) for seed in (0, 1)]
    assert not same(*results)

"""pool_factor 1 is the plain Trainer, bit for bit."""

import pytest

from corebatch.trainer import CoresetConfig
from training import mixture, run, same, tiny_model, trainer, weights

TIMES = ("train_runtime", "train_samples_per_second", "train_steps_per_second")


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("kind", ["llama", "phi", "gpt2"])
def test_pool_factor_1_is_the_plain_trainer(tmp_path, kind, lora):
    results = []
    for plain in (True, False):
        made = run(
            trainer(
                tmp_path / str(plain),
                tiny_model(kind, lora=lora, dropout=0.1),
                CoresetConfig(pool_factor=1),
                plain=plain,
            )
        )
        history = [{k: v for k, v in line.items() if k not in TIMES} for line in made.state.log_history]
        results.append((weights(made), history))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]
    assert not list((tmp_path / "False").glob("selection.jsonl"))


def test_pool_factor_1_evaluates_like_the_plain_trainer(tmp_path):
    losses = []
    for plain in (True, False):
        made = trainer(
            tmp_path / str(plain), None, CoresetConfig(pool_factor=1), plain=plain, extra={"eval_dataset": mixture(20)}
        )
        losses.append(made.evaluate()["eval_loss"])
    assert losses[0] == losses[1]


def test_text_sources_survive_evaluation_without_column_removal(tmp_path):
    made = trainer(tmp_path, remove_unused_columns=False, max_steps=1, extra={"eval_dataset": mixture(10)})
    run(made)
    assert made.evaluate()["eval_loss"] > 0

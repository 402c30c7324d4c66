"""How a batch is cut into micro-batches does not matter, and the same seed gives the same run."""

import json

import pytest
import torch

from corebatch.trainer import CoresetConfig
from training import BY_LENGTH, largest_difference, mixture, run, same, tiny_model, trainer, weights

METHODS = {
    "recommended": CoresetConfig(),
    "scored": CoresetConfig(scoring="full"),
    "colm": CoresetConfig.colm(),
    "balanced": CoresetConfig(selector="balanced", pool_factor=4),
    "tokens": CoresetConfig(scorer="tokens", selector="importance"),
    "optimizer_scale": CoresetConfig(normalise="optimizer"),
    "random": CoresetConfig(selector="random"),
    "stratified": CoresetConfig(selector="stratified"),
    "hard": CoresetConfig(scorer="loss", selector="hard"),
    "small_kept": CoresetConfig(small_sources="auto"),
    "example_mean": CoresetConfig(loss="example_mean", scoring="full"),
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


@pytest.mark.parametrize("method", ["recommended", "scored", "colm", "balanced"])
def test_the_same_seed_gives_the_same_run(tmp_path, method):
    results = []
    for name in ("one", "two"):
        made = run(trainer(tmp_path / name, tiny_model(dropout=0.1), METHODS[method]))
        lines = [json.loads(line) for line in (tmp_path / name / "selection.jsonl").read_text().splitlines()]
        untimed = [{k: v for k, v in line.items() if k not in ("ms", "memory_mb", "mfu", "seconds")} for line in lines]
        results.append((weights(made), untimed))
    assert same(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


def test_another_selection_seed_gives_another_choice(tmp_path):
    results = [weights(run(trainer(tmp_path / str(seed), tiny_model(), CoresetConfig(seed=seed)))) for seed in (0, 1)]
    assert not same(*results)


@pytest.mark.parametrize(
    "settings",
    [
        BY_LENGTH,
        {"dataloader_num_workers": 2},
        {"dataloader_drop_last": True, "max_steps": -1, "num_train_epochs": 1},
        {"remove_unused_columns": False},
        {"bf16": True},
        {"include_num_input_tokens_seen": "all"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_common_settings_of_the_trainer_go_with_selection(tmp_path, settings):
    made = run(trainer(tmp_path, tiny_model(lora=False), CoresetConfig(pool_factor=3), **settings))
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert len(lines) == made.state.global_step > 0
    assert all(line["pool_examples"] == 24 and line["chosen_examples"] == 8 for line in lines[:4])


@pytest.mark.parametrize("collator", ["seq2seq", "language_modeling"])
def test_the_collators_of_transformers(tmp_path, collator):
    from tokenizers import Tokenizer, models
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq, PreTrainedTokenizerFast

    words = {f"w{n}": n for n in range(48)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, "w0")), pad_token="w0")
    data = mixture(40)
    if collator == "seq2seq":
        collate = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)
    else:
        collate, data = DataCollatorForLanguageModeling(tokenizer, mlm=False), data.remove_columns("labels")
    extra = {"processing_class": tokenizer}
    made = trainer(tmp_path, data_collator=collate, train_dataset=data, extra=extra, max_steps=2)
    shapes = []
    step = type(made).training_step

    def watched(self, model, inputs, *args, **kwargs):
        shapes.append(inputs["input_ids"].shape[1])
        return step(self, model, inputs, *args, **kwargs)

    made.training_step = watched.__get__(made)
    run(made)
    assert made.state.global_step == 2
    if collator == "seq2seq":
        assert all(width % 8 == 0 for width in shapes)

"""What people combine with the Trainer's own settings, each run on a tiny model."""

import json

import pytest
import torch
from transformers import EarlyStoppingCallback

from corebatch.trainer import CoresetConfig
from training import largest_difference, mixture, run, same, tiny_model, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


def lines(folder):
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


def losses(made):
    return [line["loss"] for line in made.state.log_history if "loss" in line]


def held_out(count=16):
    return {"eval_dataset": mixture(count, seed=7)}


CHOSEN = [(16, 8)] * 6


def counts(folder):
    return [(line["pool_examples"], line["chosen_examples"]) for line in lines(folder)]


# ---- what is trained ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_it_learns(tmp_path, lora):
    scored = CoresetConfig(scoring={"way": "remembered", "unknown": "score"})
    settings = {"max_steps": 30, "learning_rate": 2e-2, "train_dataset": mixture(32)}
    found = losses(run(trainer(tmp_path, tiny_model(lora=lora), scored, **settings)))
    assert len(found) == 30
    assert sum(found[-5:]) < 0.95 * sum(found[:5])
    assert counts(tmp_path) == [(16, 8)] * 30


@pytest.mark.parametrize("lora, least", [(True, 0.02), (False, 1.0)], ids=["lora", "full"])
def test_the_default_learns_without_a_scoring_forward(tmp_path, lora, least):
    rows = mixture(32)
    settings = {"max_steps": 30, "learning_rate": 2e-2, "train_dataset": rows, "extra": {"eval_dataset": rows}}
    made = trainer(tmp_path, tiny_model(lora=lora), **settings)
    before = made.evaluate()["eval_loss"]
    assert run(made).evaluate()["eval_loss"] < before - least
    assert {line["tokens_scored"] for line in lines(tmp_path)} == {0}


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_activation_checkpointing_changes_no_weight(tmp_path, lora, reentrant):
    plain = run(trainer(tmp_path / "plain", tiny_model(lora=lora)))
    made = run(
        trainer(
            tmp_path / "checkpointing", tiny_model(lora=lora), gradient_checkpointing=True,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        )
    )  # fmt: skip
    assert largest_difference(weights(plain), weights(made)) < 1e-5
    assert counts(tmp_path / "checkpointing") == CHOSEN


def test_bfloat16_autocast(tmp_path):
    run(trainer(tmp_path / "exact", None, CoresetConfig(scoring="full")))
    made = run(trainer(tmp_path / "bf16", None, CoresetConfig(scoring="full"), bf16=True))
    assert counts(tmp_path / "bf16") == CHOSEN
    for one, other in zip(lines(tmp_path / "exact"), lines(tmp_path / "bf16"), strict=True):
        assert other["pool_loss"] == pytest.approx(one["pool_loss"], rel=0.01)
    assert all(value.dtype == torch.float32 for value in weights(made).values())


def test_a_model_in_bfloat16(tmp_path):
    made = run(trainer(tmp_path, tiny_model(lora=False, dtype=torch.bfloat16)))
    assert counts(tmp_path) == CHOSEN
    assert all(torch.isfinite(torch.tensor(losses(made))))


def test_neftune_is_noise_in_training_alone(tmp_path):
    scored = CoresetConfig(scoring="full")
    quiet = run(trainer(tmp_path / "quiet", None, scored))
    noisy = trainer(tmp_path / "noisy", None, scored, neftune_noise_alpha=5.0, save_strategy="steps", save_steps=3)
    run(noisy)
    assert lines(tmp_path / "quiet")[0]["pool_loss"] == lines(tmp_path / "noisy")[0]["pool_loss"]
    assert lines(tmp_path / "quiet")[0]["chosen"] == lines(tmp_path / "noisy")[0]["chosen"]
    assert not same(weights(quiet), weights(noisy))
    again = trainer(tmp_path / "noisy", None, scored, neftune_noise_alpha=5.0, save_strategy="steps", save_steps=3)
    run(again, resume_from_checkpoint=str(tmp_path / "noisy" / "checkpoint-3"))
    assert same(weights(noisy), weights(again))


def test_gradients_are_clipped(tmp_path):
    """With plain SGD and one step, how far the weights go is the learning rate times the norm allowed."""
    made = trainer(tmp_path, tiny_model(dtype=torch.float64), optim="sgd", max_grad_norm=0.01, learning_rate=0.5,
                   lr_scheduler_type="constant", max_steps=1)  # fmt: skip
    before = weights(made)
    run(made)
    after = weights(made)
    moved = sum(float((after[name] - before[name]).square().sum()) for name in before) ** 0.5
    assert moved == pytest.approx(0.5 * 0.01, rel=1e-3)


# ---- how rows are drawn ---------------------------------------------------------------------------------------------


def test_grouping_by_length(tmp_path):
    """Pools of like length waste less, every example is drawn once, and a resumed run is the same."""
    grouped = {"train_sampling_strategy": "group_by_length"} if _strategies() else {"group_by_length": True}
    settings = {**grouped, "max_steps": 8, "save_strategy": "steps", "save_steps": 4, "train_dataset": mixture(128)}
    whole = run(trainer(tmp_path / "grouped", **settings))
    again = trainer(tmp_path / "grouped", **settings)
    run(again, resume_from_checkpoint=str(tmp_path / "grouped" / "checkpoint-4"))
    assert same(weights(whole), weights(again))
    random = trainer(tmp_path / "random", train_dataset=mixture(128))
    assert _padding(whole) < 0.7 * _padding(random)
    drawn = [line["drawn"] for line in lines(tmp_path / "grouped")]
    assert sum(sum(pool.values()) for pool in drawn) == 128
    assert sum(pool.get("rare", 0) for pool in drawn) == 8  # all of them


def _strategies():
    from transformers import TrainingArguments

    return hasattr(TrainingArguments, "train_sampling_strategy")


def _padding(made):
    """The share of padding in what the loader draws."""
    masks = [batch["attention_mask"] for batch in made.get_train_dataloader()]
    assert all(len(mask) == 8 for mask in masks)
    return 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)


def test_workers_of_the_loader_change_nothing(tmp_path):
    alone = run(trainer(tmp_path / "alone"))
    made = run(trainer(tmp_path / "workers", dataloader_num_workers=2, dataloader_prefetch_factor=2))
    assert same(weights(alone), weights(made))


def test_dropping_the_last_batch(tmp_path):
    """Of 44 rows 40 are drawn, eight at a time; a step takes two batches, the last of an epoch one."""
    run(trainer(tmp_path, train_dataset=mixture(44), dataloader_drop_last=True, max_steps=4))
    assert counts(tmp_path) == [(16, 8), (16, 8), (8, 4), (16, 8)]


def test_ignore_data_skip_begins_the_data_anew(tmp_path):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "ignore_data_skip": True}
    run(trainer(tmp_path, **settings))
    first = lines(tmp_path)
    made = trainer(tmp_path, **settings)
    run(made, resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    after = lines(tmp_path)
    assert [line["step"] for line in after] == list(range(1, 9))
    assert after[:4] == first[:4]
    assert made.state.global_step == 8
    assert all(line["pool_examples"] == 16 and line["chosen_examples"] == 8 for line in after)
    assert all(torch.isfinite(value).all() for value in weights(made).values())


# ---- evaluation, the best checkpoint, early stopping ----------------------------------------------------------------


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
def test_evaluation_in_between_changes_no_weight_and_is_the_plain_trainer_s(tmp_path, several):
    one, two = mixture(16, seed=7), mixture(16, seed=8)
    extra = {"eval_dataset": {"one": one, "two": two} if several else one}
    alone = run(trainer(tmp_path / "alone"))
    made = run(trainer(tmp_path / "evaluated", extra=extra, eval_strategy="steps", eval_steps=2, eval_on_start=True))
    assert same(weights(alone), weights(made))
    names = ["eval_one_loss", "eval_two_loss"] if several else ["eval_loss"]
    plain = trainer(tmp_path / "plain", made.model, plain=True, extra=extra)
    expected = plain.evaluate()
    for name in names:
        found = [line[name] for line in made.state.log_history if name in line]
        assert len(found) == 4
        assert found[-1] == expected[name]


def test_the_best_checkpoint_is_loaded_at_the_end(tmp_path):
    """A learning rate that grows too large: the best is not the last."""
    settings = {
        "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "max_steps": 8,
        "learning_rate": 0.5, "lr_scheduler_type": "constant", "extra": held_out(),
    }  # fmt: skip
    coreset = CoresetConfig(selector="balanced", scoring={"way": "remembered", "unknown": "score"})
    made = run(trainer(tmp_path, tiny_model(lora=False), coreset, **settings))
    found = {line["step"]: line["eval_loss"] for line in made.state.log_history if "eval_loss" in line}
    best = min(found, key=found.get)
    assert best < 8
    assert made.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert made.evaluate()["eval_loss"] == pytest.approx(found[best], rel=1e-6)
    assert len(lines(tmp_path)) == 8


def test_early_stopping(tmp_path):
    settings = {
        "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1,
        "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "max_steps": 20,
        "learning_rate": 0.5, "lr_scheduler_type": "constant",
        "extra": {**held_out(), "callbacks": [EarlyStoppingCallback(early_stopping_patience=2)]},
    }  # fmt: skip
    made = run(trainer(tmp_path, tiny_model(lora=False), **settings))
    found = [line["eval_loss"] for line in made.state.log_history if "eval_loss" in line]
    stopped = made.state.global_step
    assert stopped < 20
    assert len(lines(tmp_path)) == stopped
    assert min(found) == found[stopped - 3]  # two evaluations without a better one
    assert made.evaluate()["eval_loss"] == pytest.approx(min(found), rel=1e-6)


# ---- memory and counting --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"torch_empty_cache_steps": 1},
        {"average_tokens_across_devices": True},
        {"average_tokens_across_devices": False},
        {"logging_nan_inf_filter": False},
        {"include_num_input_tokens_seen": "all"},
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 1},
        {"restore_callback_states_from_checkpoint": True},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_that_change_no_weight(tmp_path, settings):
    alone = run(trainer(tmp_path / "alone"))
    made = run(trainer(tmp_path / "other", **settings))
    assert same(weights(alone), weights(made))
    assert counts(tmp_path / "other") == CHOSEN


class RunsOut:
    """Memory for two rows at a time, from the third optimizer step on."""

    def __init__(self, model):
        self.steps, self.rows = 0, []
        self.handle = model.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        if module.training:
            self.rows.append(len(kwargs["input_ids"]))
            if len(self.rows) > 5 and self.rows[-1] > 2:
                raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")


def test_smaller_micro_batches_where_memory_runs_out(tmp_path):
    """`auto_find_batch_size` begins anew with less; so do selection and its log."""
    model = tiny_model()
    memory = RunsOut(model)
    equal = CoresetConfig(micro_batches="length")  # as many rows in each, by which this memory goes
    made = run(trainer(tmp_path, model, equal, auto_find_batch_size=True))
    assert made._train_batch_size <= 2
    assert memory.rows[:5] == [4] * 5
    size = made._train_batch_size
    assert set(memory.rows[-12:]) == {size}
    assert made._run.scoring.micro_batch == size
    found = lines(tmp_path)
    assert [line["step"] for line in found] == list(range(1, 7))
    assert counts(tmp_path) == [(4 * size, 2 * size)] * 6
    assert (tmp_path / "selection.old-1.jsonl").exists()


def test_smaller_micro_batches_and_a_checkpoint(tmp_path):
    """A run that goes on from a checkpoint of smaller micro-batches has them from its first step."""
    settings = {"auto_find_batch_size": True, "save_strategy": "steps", "save_steps": 3}
    model = tiny_model()
    RunsOut(model)
    whole = run(trainer(tmp_path, model, **settings))
    again = trainer(tmp_path, tiny_model(), **settings)
    run(again, resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert again._train_batch_size == whole._train_batch_size
    assert same(weights(whole), weights(again))
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 7))


# ---- pool_factor 1 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"neftune_noise_alpha": 5.0},
        {"bf16": True},
        {"max_grad_norm": 0.01},
        {"dataloader_num_workers": 1},
        {"gradient_checkpointing": True},
        {"average_tokens_across_devices": False},
        {"auto_find_batch_size": True},
        {"label_smoothing_factor": 0.1},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_pool_factor_one_is_plain_training(tmp_path, settings):
    found = [
        run(trainer(tmp_path / str(plain), None, CoresetConfig(pool_factor=1), plain=plain, max_steps=3, **settings))
        for plain in (True, False)
    ]
    assert same(*map(weights, found))


@pytest.mark.parametrize(
    "settings",
    [
        {"bf16": True},
        {"max_grad_norm": 0.01},
        {"dataloader_num_workers": 1},
        {"gradient_checkpointing": True},
        {"average_tokens_across_devices": False},
        {"auto_find_batch_size": True},
        {"torch_empty_cache_steps": 1},
        {"include_num_input_tokens_seen": "all"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_every_row_put_together_anew_is_plain_training(tmp_path, settings):
    coreset, settings = CoresetConfig(pool_factor=1, micro_batches="positions"), {"optim": "sgd", **settings}
    plain, ours = (
        run(trainer(tmp_path / str(plain), tiny_model(lora=False), coreset, plain=plain, max_steps=3, **settings))
        for plain in (True, False)
    )
    assert largest_difference(weights(plain), weights(ours)) < (1e-4 if "bf16" in settings else 1e-7)

"""The step inside TRL's SFTTrainer."""

import json

import pytest
import torch

from training import SOURCES, mixture, same, tiny_model

pytest.importorskip("trl", reason="the extra trl is not installed")

from datasets import Dataset
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from corebatch.errors import ConfigError, DataError, LossMismatchError
from corebatch.optimizers import training_arguments
from corebatch.trainer import CoresetConfig, CoresetMixin, CoresetSFTTrainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:trl"),
]


@pytest.fixture(scope="module")
def tokenizer():
    words = ["<pad>", "<s>", "</s>", *[f"w{n}" for n in range(45)]]
    core = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="w0"))
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def made(kind, folder, tokenizer, coreset=None, target=None, **settings):
    args = {
        "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "max_steps": 4, "learning_rate": 5e-3,
        "report_to": [], "disable_tqdm": True, "use_cpu": True, "bf16": False, "logging_steps": 1,
        "save_strategy": "no",
        "seed": 3, **settings,
    }  # fmt: skip
    extra = {} if kind is SFTTrainer else {"coreset": coreset, "target_dataset": target}
    return kind(
        model=tiny_model(),
        args=training_arguments(SFTConfig, output_dir=str(folder), **args),
        train_dataset=mixture(96),
        eval_dataset=mixture(8, seed=5),
        processing_class=tokenizer,
        **extra,
    )


@pytest.mark.parametrize("by", ["length", "positions"])
def test_every_row_put_together_anew_is_the_plain_sft_trainer(tmp_path, tokenizer, by):
    settings = {"optim": "sgd", "max_steps": 6, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 3}
    plain = made(SFTTrainer, tmp_path / "plain", tokenizer, **settings)
    ours = made(CoresetSFTTrainer, tmp_path / by, tokenizer, CoresetConfig(pool_factor=1, micro_batches=by), **settings)
    for each in (plain, ours):
        each.model.double()
        each.train()
    one, other = (each.accelerator.unwrap_model(each.model_wrapped).state_dict() for each in (plain, ours))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-10, atol=1e-12)
    for before, after in zip(plain.state.log_history[:-1], ours.state.log_history[:-1], strict=True):
        assert after["loss"] == pytest.approx(before["loss"], rel=1e-5)
        assert after["num_tokens"] == before["num_tokens"]


def test_an_optimizer_and_a_schedule_by_name(tmp_path, tokenizer):
    schedule = {"lr_scheduler_type": "power", "lr_scheduler_kwargs": {"a": 1.0, "decay": 0.5}}
    trainer = made(CoresetSFTTrainer, tmp_path, tokenizer, CoresetConfig(), optim="mada", **schedule)
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == "MADA"
    assert trainer.lr_scheduler.get_last_lr() == [0.0, 0.0]  # it has fallen to its end


def test_a_target_of_tokenised_rows_is_followed(tmp_path, tokenizer):
    coreset = CoresetConfig(selector="greats", target={"every": 2, "rows": 4})
    trainer = made(CoresetSFTTrainer, tmp_path, tokenizer, coreset, mixture(12, seed=7))
    trainer.train()
    assert trainer._run.method.validation.shape[0] == 1
    raw = made(CoresetSFTTrainer, tmp_path / "raw", tokenizer, coreset, Dataset.from_dict({"text": ["w1 w2"] * 8}))
    with pytest.raises(DataError, match=r"should have the columns of train_dataset .* Found text"):
        raw.train()


@pytest.mark.parametrize("coreset", [CoresetConfig(), CoresetConfig(selector="random"), CoresetConfig.colm()])
def test_sources_survive_and_the_small_batch_is_trained(tmp_path, tokenizer, coreset):
    trainer = made(CoresetSFTTrainer, tmp_path, tokenizer, coreset)
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    assert set(lines[0]["drawn"]) <= set(SOURCES)
    assert len(lines[0]["drawn"]) > 2
    assert all(line["chosen_examples"] == 8 for line in lines)
    assert all(torch.isfinite(torch.tensor(line["train_loss"])) for line in lines)
    assert trainer.evaluate()["eval_loss"] > 0


@pytest.mark.parametrize(
    "coreset",
    [{"selector": "random"}, {"pool_factor": 1, "loss_by_source": True}, {}],
    ids=["uniform", "plain", "weights"],
)
def test_losses_of_sources_out_of_trl_s_own_forward(tmp_path, tokenizer, coreset):
    trainer = made(CoresetSFTTrainer, tmp_path, tokenizer, CoresetConfig(**coreset))
    trainer.train()
    for line in map(json.loads, (tmp_path / "selection.jsonl").read_text().splitlines()):
        losses, tokens = line["loss_by_source"], line["loss_tokens"]
        assert losses.keys() <= set(SOURCES)
        if coreset:  # the plain loss
            mean = sum(losses[name] * tokens[name] for name in losses) / sum(tokens.values())
            assert mean == pytest.approx(line["train_loss"], rel=1e-5)
            assert sum(tokens.values()) == line["labels_trained"]
    assert any("loss/algebra" in entry for entry in trainer.state.log_history)


def test_pool_factor_1_is_the_plain_sft_trainer(tmp_path, tokenizer):
    states = []
    for kind in (SFTTrainer, CoresetSFTTrainer):
        trainer = made(kind, tmp_path / kind.__name__, tokenizer, CoresetConfig(pool_factor=1))
        trainer.train()
        states.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
    assert same(*states)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"packing": True, "max_length": 32}, ConfigError, "packing"),
        # TRL before 1.16 makes it a loss function of the Trainer's
        ({"loss_type": "dft"}, LossMismatchError, "dft|compute_loss_func"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_does_not_go_with_selection_is_refused(tmp_path, tokenizer, settings, error, message):
    with pytest.raises(error, match=message):
        made(CoresetSFTTrainer, tmp_path, tokenizer, CoresetConfig(), **settings)


def test_raw_text_with_sources_is_prepared_by_trl_and_keeps_them(tmp_path, tokenizer):
    rows = [
        {"prompt": f"w{n % 40} w1 w2 ", "completion": f"w{(n * 7) % 40} w3", "source": SOURCES[n % 3]}
        for n in range(64)
    ]
    args = SFTConfig(
        str(tmp_path), per_device_train_batch_size=4, max_steps=2, report_to=[], disable_tqdm=True, use_cpu=True,
        bf16=False, save_strategy="no",
    )  # fmt: skip
    trainer = CoresetSFTTrainer(
        model=tiny_model(), args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
    )
    trainer.train()
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert set(lines[0]["drawn"]) == set(SOURCES[:3])
    assert lines[0]["labels_trained"] < lines[0]["tokens_trained"]


class MixedIn(CoresetMixin, SFTTrainer):
    pass


@pytest.mark.parametrize("kind", [CoresetSFTTrainer, MixedIn])
@pytest.mark.parametrize("selector", ["cube", "random"])
def test_num_tokens_are_those_of_trained_rows_as_trl_counts_them(tmp_path, tokenizer, kind, selector):
    trainer = made(kind, tmp_path, tokenizer, CoresetConfig(selector=selector), eval_strategy="steps", eval_steps=2)
    trainer.train()
    data, total, expected = mixture(96), 0, []
    for line in (tmp_path / "chosen.jsonl").read_text().splitlines():
        total += sum(len(data[i]["input_ids"]) for i in json.loads(line)["chosen"])
        expected.append(total)
    history = trainer.state.log_history
    assert [line["num_tokens"] for line in history if "loss" in line] == expected
    assert [line["eval_num_tokens"] for line in history if "eval_loss" in line] == [expected[1], expected[3]]
    trained = [line for line in history if "loss" in line]
    assert all(("mean_token_accuracy" in line) == (selector == "random") for line in trained)


@pytest.mark.parametrize("pool_factor", [1, 2])
def test_the_numbers_of_evaluation_are_trl_s(tmp_path, tokenizer, pool_factor):
    numbers = []
    for kind, coreset in ((SFTTrainer, None), (CoresetSFTTrainer, CoresetConfig(pool_factor=pool_factor))):
        trainer = made(kind, tmp_path / kind.__name__, tokenizer, coreset)
        numbers.append(trainer.evaluate())
    measured = [key for key in numbers[0] if "loss" in key or "accuracy" in key or "entropy" in key or "tokens" in key]
    assert "eval_mean_token_accuracy" in measured
    assert [numbers[0][key] for key in measured] == [numbers[1][key] for key in measured]

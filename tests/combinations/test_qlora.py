"""QLoRA: four-bit weights of bitsandbytes (NF4, on CPU) below LoRA."""

import copy
import json

import pytest
import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    set_seed,
)

from corebatch.errors import ConfigError, UnsupportedModelError
from corebatch.model.modes import packing_linears
from corebatch.scoring import make_scorer
from corebatch.trainer import CoresetConfig, CoresetSFTTrainer
from training import VOCABULARY, Collator, largest_difference, mixture, run, same, trainer, weights

bitsandbytes = pytest.importorskip("bitsandbytes", reason="the extra `qlora` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    set_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def four_bits(folder, *, adapted=("v_proj",), nested=False):
    options = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested,
        bnb_4bit_compute_dtype=torch.float32,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=options, dtype=torch.float32)
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    set_seed(1)
    return get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=list(adapted), init_lora_weights=False))


def dequantised(model):
    """The same model with its four-bit weights as float32 numbers."""
    model = copy.deepcopy(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, bitsandbytes.nn.Linear4bit):
                linear = torch.nn.Linear(child.in_features, child.out_features, bias=False)
                values = bitsandbytes.functional.dequantize_4bit(child.weight.data, child.weight.quant_state)
                linear.weight = torch.nn.Parameter(values.float())
                setattr(module, name, linear)
    return model


def one_by_one(model, batch, weight):
    """Each example's gradient of its summed token loss by `weight`, by autograd: [B, P].

    In training mode, since in the other bitsandbytes changes the weights' layout; there is no dropout."""
    model.train()
    weight.requires_grad_(True)
    rows = []
    for i in range(len(batch["input_ids"])):
        row = {key: value[i : i + 1] for key, value in batch.items()}
        tokens = (row["labels"][:, 1:] != -100).sum()
        (gradient,) = torch.autograd.grad(model(**row).loss * tokens, weight)
        rows.append(gradient.flatten())
    return torch.stack(rows)


@pytest.mark.parametrize("nested", [False, True], ids=["nf4", "nested"])
def test_features_of_adapters_are_their_gradients(folder, nested):
    model, batch = four_bits(folder, nested=nested), Collator()(list(mixture(6)))
    batch = {key: batch[key] for key in ("input_ids", "labels", "attention_mask")}
    value = model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj")
    assert isinstance(value.base_layer, bitsandbytes.nn.Linear4bit)
    features = make_scorer("last_layer", {"num_blocks": 1}).score(model, batch)
    torch.testing.assert_close(features, one_by_one(model, batch, value.lora_B["default"].weight), atol=1e-5, rtol=1e-4)


def test_features_of_a_projection_that_is_not_adapted_are_those_of_its_numbers(folder):
    model, batch = four_bits(folder, adapted=["q_proj"]), Collator()(list(mixture(6)))
    batch = {key: batch[key] for key in ("input_ids", "labels", "attention_mask")}
    scorer = make_scorer("last_layer", {"num_blocks": 1})
    features = scorer.score(model, batch)
    plain = dequantised(model)
    weight = plain.get_submodule("base_model.model.model.layers.1.self_attn.v_proj").weight
    torch.testing.assert_close(features, one_by_one(plain, batch, weight), atol=1e-5, rtol=1e-4)
    assert scorer.coordinates() is None  # packed bytes are not the coordinates


def test_it_trains_the_adapters_alone_and_learns(folder, tmp_path):
    model = four_bits(folder, adapted=["q_proj", "v_proj"])
    made = trainer(tmp_path, model, max_steps=30, learning_rate=2e-2, train_dataset=mixture(32))
    before = weights(made)
    run(made)
    after = weights(made)
    losses = [line["loss"] for line in made.state.log_history if "loss" in line]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("lora_" in name for name in changed)
    assert any(value.dtype == torch.uint8 for value in before.values())


def test_resumed_is_uninterrupted(folder, tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    whole = run(trainer(tmp_path / "whole", four_bits(folder), **settings))
    again = trainer(tmp_path / "whole", four_bits(folder), **settings)
    run(again, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same(weights(whole), weights(again))


def test_checkpointing_with_the_scoring_forward_reused_changes_nothing(folder, tmp_path):
    plain = run(trainer(tmp_path / "plain", four_bits(folder), CoresetConfig(scoring="full")))
    model = four_bits(folder)
    reused = run(
        trainer(
            tmp_path / "reused", model, CoresetConfig(scoring={"way": "auto", "reuse": True}),
            gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False},
        )
    )  # fmt: skip
    assert reused._run.step.states is not None
    assert reused._run.step.states.reason is None
    assert '"reuse_mb"' in (tmp_path / "reused" / "selection.jsonl").read_text()
    assert largest_difference(weights(plain), weights(reused)) < 1e-5


def test_pool_factor_one_is_plain_training(folder, tmp_path):
    ours = run(trainer(tmp_path / "ours", four_bits(folder), CoresetConfig(pool_factor=1)))
    plain = run(trainer(tmp_path / "plain", four_bits(folder), plain=True))
    assert same(weights(ours), weights(plain))


def test_zeroth_order_is_refused(folder, tmp_path):
    with pytest.raises(UnsupportedModelError, match="not quantised"):
        run(trainer(tmp_path, four_bits(folder), CoresetConfig.colm()))


def bytes_of(model):
    return {
        name: module.weight.data.clone()
        for name, module in model.named_modules()
        if isinstance(module, bitsandbytes.nn.Linear4bit)
    }


def test_scoring_and_evaluation_leave_the_layout_of_weights(folder, tmp_path):
    """On CPUs with AVX512-BF16 bitsandbytes changes it in evaluation mode, and training goes wrong without a word."""
    model, batch = four_bits(folder), Collator()(list(mixture(6)))
    before = bytes_of(model)
    model.eval()
    make_scorer("last_layer").score(model, {key: batch[key] for key in ("input_ids", "labels", "attention_mask")})
    assert same(before, bytes_of(model))
    held_out = {"eval_dataset": mixture(16, seed=7)}
    alone = run(trainer(tmp_path / "alone", model))
    evaluated = trainer(
        tmp_path / "evaluated", four_bits(folder), extra=held_out, eval_strategy="steps", eval_steps=1,
        eval_on_start=True,
    )  # fmt: skip
    run(evaluated)
    assert sum("eval_loss" in line for line in evaluated.state.log_history) == 7
    assert same(weights(alone), weights(evaluated))
    assert same(before, bytes_of(evaluated.model))


def test_weights_that_were_repacked_before_are_refused(folder, tmp_path):
    model = four_bits(folder)
    if not packing_linears(model.modules()):
        pytest.skip("bitsandbytes repacks weights only on CPUs with AVX512-BF16")
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.full((1, 4), 5))
    with pytest.raises(ConfigError, match="Load the model anew"):
        trainer(tmp_path, model)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:trl")
def test_through_trl(folder, tmp_path):
    trl = pytest.importorskip("trl", reason="the extra `trl` is not installed")
    core = Tokenizer(WordLevel({f"w{n}": n for n in range(VOCABULARY)}, unk_token="w0"))
    options = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    made = CoresetSFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(folder, quantization_config=options, dtype=torch.float32),
        args=trl.SFTConfig(
            str(tmp_path), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=30,
            learning_rate=2e-2, report_to=[], disable_tqdm=True, use_cpu=True, bf16=True, logging_steps=1,
            gradient_checkpointing=False, save_strategy="no", seed=3,
        ),
        train_dataset=mixture(32),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="w2"),
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
        coreset=CoresetConfig(scoring="full"),
    )  # fmt: skip
    assert {p.dtype for p in made.model.parameters() if p.requires_grad} == {torch.bfloat16}
    made.train()
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [line["chosen_examples"] for line in lines] == [8] * 30
    losses = [line["pool_loss"] for line in lines]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])

"""A model whose own loss is not the cross-entropy of its trained tokens is refused, however little it differs; a model
that is no causal language model, and batches that are not rows, are refused by name."""

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import AdaptionPromptConfig, PromptTuningConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DataCollatorWithFlattening,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaForTokenClassification,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from corebatch.errors import CorebatchError, DataError, LossMismatchError, UnsupportedModelError
from corebatch.model.untraced import untraced
from corebatch.trainer import CoresetConfig
from corebatch.trainer.model_loss import check_loss, check_model
from training import VOCABULARY, Collator, mixture, run, tiny_model, trainer

SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4, "head_dim": 8}


def config():
    return tiny_model(lora=False).config


def changed(change):
    """A Llama whose class does something to its output."""

    class Changed(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            if kwargs.get("labels") is not None:
                change(self, output, kwargs["labels"])
            return output

    torch.manual_seed(0)
    return Changed(config())


def add_tiny(model, output, labels):
    output.loss = output.loss + 1e-6


def add_in_training(model, output, labels):
    if model.training:
        output.loss = output.loss + 1e-4 * output.logits.logsumexp(-1).pow(2).mean()


def further_tokens(model, output, labels):
    """As heads that predict the token after the next do."""
    later = F.cross_entropy(output.logits[:, :-2].flatten(0, 1).float(), labels[:, 2:].flatten(), ignore_index=-100)
    output.loss = output.loss + 1e-2 * later


def smooth(model, output, labels):
    output.loss = F.cross_entropy(
        output.logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100, label_smoothing=0.01
    )


def unshifted(model, output, labels):
    output.loss = F.cross_entropy(output.logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def without_end(model, output, labels):
    """Another label is ignored too."""
    kept = labels[:, 1:].masked_fill(labels[:, 1:] == labels.max(), -100)
    output.loss = F.cross_entropy(output.logits[:, :-1].flatten(0, 1).float(), kept.flatten(), ignore_index=-100)


@pytest.mark.parametrize(
    "change, says",
    [
        (add_tiny, "labels that train nothing give 1e-06"),
        (add_in_training, "in training it is"),
        (further_tokens, "in evaluation it is"),
        (smooth, "in evaluation it is"),
        (unshifted, "in evaluation it is"),
        (without_end, "in evaluation it is"),
    ],
)
def test_what_a_model_adds_to_its_loss_is_found(tmp_path, change, says):
    model = changed(change)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(LossMismatchError, match=says) as raised:
        run(trainer(tmp_path, model, remove_unused_columns=False))
    assert "On the first batch" in str(raised.value)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_loss_function_of_ones_own_is_found_and_named(tmp_path):
    def focal(logits, labels, vocab_size, **_):
        losses = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="none")
        return ((1 - (-losses).exp()) ** 2 * losses).sum() / (labels[:, 1:] != -100).sum()

    model = tiny_model(lora=False)
    model.loss_function = focal
    with pytest.raises(LossMismatchError, match=r"LlamaForCausalLM has a loss_function from .*test_model_loss"):
        run(trainer(tmp_path, model))


def experts(kind, **settings):
    torch.manual_seed(0)
    made = getattr(transformers, f"{kind}Config")(
        **SMALL, **EXPERTS, moe_intermediate_size=16, shared_expert_intermediate_size=16, **settings
    )
    return getattr(transformers, f"{kind}ForCausalLM")(made)


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe", "Qwen3Moe", "Olmoe", "GraniteMoe"])
def test_a_router_loss_is_refused_by_its_setting_however_small(tmp_path, kind):
    model = experts(kind, output_router_logits=True, router_aux_loss_coef=1e-7)
    with pytest.raises(LossMismatchError, match="output_router_logits with router_aux_loss_coef 1e-07"):
        trainer(tmp_path, model)
    model.config.output_router_logits = False
    assert run(trainer(tmp_path, model, max_steps=1)).state.global_step == 1
    model.config.output_router_logits = True  # behind the back of the settings
    batch = untagged_batch()
    with pytest.raises(LossMismatchError, match="labels that train nothing"):
        check_loss(model, batch)


def untagged_batch():
    return {key: value for key, value in Collator()(list(mixture(2))).items() if key != "source"}


def test_a_router_of_weight_zero_adds_nothing(tmp_path):
    model = experts("Mixtral", output_router_logits=True, router_aux_loss_coef=0.0)
    assert run(trainer(tmp_path, model, max_steps=1)).state.global_step == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "phi", "gpt2"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_plain_models_pass_in_any_precision_and_with_dropout(kind, dtype, dropout):
    check_loss(tiny_model(kind, lora=True, dropout=dropout).to(dtype), untagged_batch())


@pytest.mark.parametrize("vocabulary", [49_152, 151_936])
def test_a_large_vocabulary_passes_to_rounding(vocabulary):
    torch.manual_seed(0)
    model = LlamaForCausalLM(transformers.LlamaConfig(**{**SMALL, "vocab_size": vocabulary}))
    model.lm_head.weight.data.mul_(40)  # logits that spread as those of a trained model
    ids = torch.randint(3, vocabulary, (2, 40))
    check_loss(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})


def test_the_check_leaves_no_trace():
    class Counting(LlamaForCausalLM):
        def __init__(self, made):
            super().__init__(made)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, *args, **kwargs):
            self.calls += 1
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(1)
            return super().forward(*args, **kwargs)

    model = Counting(config())
    model.model.layers[1].eval()
    modes = [module.training for module in model.modules()]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    with untraced(model, inner=True, outermost=False):
        assert not model.training
        assert model.model.layers[1].training
        model(**untagged_batch())
    assert model.calls == 0
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()
    assert (states[2] == np.random.get_state()[1]).all()  # noqa: NPY002


class Around(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.lm = model

    def forward(self, **inputs):
        return self.lm(**inputs)


def t5():
    return T5ForConditionalGeneration(
        T5Config(vocab_size=VOCABULARY, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, pad_token_id=0)
    )


@pytest.mark.parametrize(
    "model, says",
    [
        (lambda: LlamaForSequenceClassification(config()), "Found LlamaForSequenceClassification.*score"),
        (lambda: LlamaForTokenClassification(config()), "Found LlamaForTokenClassification"),
        (lambda: LlamaModel(config()), "Found LlamaModel"),
        (t5, "T5ForConditionalGeneration, an encoder with a decoder"),
        (lambda: Around(tiny_model(lora=False)), r"Found Around.*around LlamaForCausalLM.*`\.lm`"),
        (lambda: torch.nn.Linear(2, 2), "Found Linear"),
        (
            lambda: get_peft_model(
                tiny_model(lora=False),
                AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=2, adapter_layers=1),
            ),
            "ADAPTION_PROMPT",
        ),
    ],
)
def test_what_is_no_causal_language_model_is_named(tmp_path, model, says):
    with pytest.raises(UnsupportedModelError, match=says):
        trainer(tmp_path, model())


def test_a_model_that_is_made_later_is_looked_at_before_the_first_step():
    check_model(None)


def test_prompt_tuning_and_masked_models_are_refused(tmp_path):
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(UnsupportedModelError, match="prompt learning"):
        run(trainer(tmp_path, get_peft_model(tiny_model(lora=False), prompt)))
    bert = BertForMaskedLM(BertConfig(**{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}))
    with pytest.raises(LossMismatchError, match="not shifted"):
        run(trainer(tmp_path, bert, CoresetConfig(scorer="tokens", selector="importance")))


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda b: {**b, "labels": b["labels"][:, 0]}, r"a label for each token.*\(8,\)"),
        (lambda b: {**b, "labels": b["labels"][:, :3]}, r"\(8, 3\)"),
        (lambda b: {**b, "loss_weights": torch.ones(8)}, "loss_weights"),
    ],
)
def test_batches_that_are_not_rows_with_labels(tmp_path, change, says):
    class Changed(Collator):
        def __call__(self, rows):
            return change(super().__call__(rows))

    with pytest.raises(DataError, match=says):
        run(trainer(tmp_path, data_collator=Changed()))


def test_a_flattening_collator(tmp_path):
    with pytest.raises(CorebatchError, match=r"Flattening.*unpacked rows"):
        run(trainer(tmp_path, data_collator=DataCollatorWithFlattening()))


@pytest.mark.parametrize("selector", ["cube", "balanced", "random", "importance", "facility_location", "pivotal"])
@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
def test_a_pool_without_a_trained_token_makes_a_step_of_loss_zero_and_says_so_once(tmp_path, selector, loss, caplog):
    data = mixture(96).map(
        lambda row, i: row if i % 48 == 7 else {"labels": [-100] * len(row["labels"])}, with_indices=True
    )
    scorer = {"scorer": "tokens"} if selector == "importance" else {}
    made = trainer(tmp_path, None, CoresetConfig(selector=selector, loss=loss, **scorer), train_dataset=data)
    run(made)
    losses = [line["loss"] for line in made.state.log_history if "loss" in line]
    assert len(losses) == 6
    assert sum(loss == 0 for loss in losses) >= 4
    assert all(bool(torch.isfinite(p).all()) for p in made.model.parameters())
    told = [record for record in caplog.records if "trained token" in record.getMessage()]
    assert len(told) == 1


def test_a_router_in_a_model_of_experts_is_not_mixed_up_with_its_settings():
    model = MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2))
    check_loss(model, untagged_batch())


@pytest.mark.parametrize(
    "coreset", [CoresetConfig(selector="random", loss="example_mean"), CoresetConfig(selector="random")]
)
def test_a_uniform_selector_compares_losses_once_rows_have_weights(tmp_path, coreset):
    """With fewer rows than micro-batches, at the end of a stream, or by a mean of examples."""

    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(list(mixture(33)))

    settings = {"train_dataset": Stream(), "max_steps": 6} if coreset.loss == "token_mean" else {}
    made = trainer(tmp_path, changed(add_tiny), coreset, remove_unused_columns=False, **settings)
    with pytest.raises(LossMismatchError, match="labels that train nothing"):
        run(made)
    assert made.state.global_step == (0 if coreset.loss == "example_mean" else 2)

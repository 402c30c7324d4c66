"""What selection does not go with is refused before anything is trained, and says what to do."""

import functools

import pytest
import torch
from datasets import Dataset
from transformers import Gemma2Config, Gemma2ForCausalLM, MambaConfig, MambaForCausalLM

from corebatch.errors import ConfigError, CorebatchError, DataError, LossMismatchError, UnsupportedModelError
from corebatch.trainer import CoresetConfig
from training import REBALANCES, Collator, mixture, run, tiny_model, trainer, weights


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def test_a_stream_needs_max_steps(tmp_path):
    stream = Stream(list(mixture(96)))
    with pytest.raises(ConfigError, match="max_steps"):
        trainer(tmp_path, train_dataset=stream, max_steps=-1)


def test_a_stream_with_max_steps_trains(tmp_path):
    made = run(trainer(tmp_path, train_dataset=Stream(list(mixture(96))), max_steps=4))
    assert made.state.global_step == 4
    assert "algebra" in (tmp_path / "selection.jsonl").read_text()


def test_small_sources_of_a_stream_cannot_be_counted(tmp_path):
    made = trainer(tmp_path, None, CoresetConfig(small_sources="auto"), train_dataset=Stream(list(mixture())))
    with pytest.raises(ConfigError, match="stream"):
        run(made)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        pytest.param(
            {"train_sampling_strategy": "batch_rebalance"},
            ConfigError,
            "batch_rebalance",
            marks=pytest.mark.skipif(not REBALANCES, reason="this transformers has no batch_rebalance"),
        ),
        ({"label_smoothing_factor": 0.1}, LossMismatchError, "label_smoothing_factor 0.1"),
        ({"extra": {"compute_loss_func": lambda *_, **__: 0}}, LossMismatchError, "compute_loss_func"),
    ],
)
def test_refused_settings(tmp_path, settings, error, message):
    with pytest.raises(error, match=message) as raised:
        trainer(tmp_path, **settings)
    assert isinstance(raised.value, CorebatchError)
    assert isinstance(raised.value, ValueError)
    trainer(tmp_path, None, CoresetConfig(pool_factor=1), **settings)  # plain training takes it


def test_a_missing_source_column_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"'origin'.*input_ids, labels, source"):
        trainer(tmp_path, None, CoresetConfig(source_column="origin"))


def test_without_a_source_column_there_is_one_source(tmp_path):
    run(trainer(tmp_path, train_dataset=mixture(40, source=False), max_steps=1))
    assert '"drawn": {"all": 16}' in (tmp_path / "selection.jsonl").read_text()


def test_an_empty_data_set(tmp_path):
    empty = Dataset.from_dict({"input_ids": [], "labels": []})
    with pytest.raises(DataError, match="Found none"):
        run(trainer(tmp_path, train_dataset=empty))


@pytest.mark.parametrize("scorer", ["last_layer", "tokens"])
def test_a_nan_loss_names_the_step_and_trains_nothing(tmp_path, scorer):
    model = tiny_model(lora=False)
    row = mixture()[0]["input_ids"][0]
    with torch.no_grad():
        model.model.embed_tokens.weight[row] = float("nan")
    selector = "pivotal" if scorer == "last_layer" else "importance"
    made = trainer(tmp_path, model, CoresetConfig(scorer=scorer, selector=selector), learning_rate=1.0)
    before = {k: v for k, v in weights_of(model).items()}
    message = r"At step 1, examples \d+.*NaN" if scorer == "last_layer" else r"At step \d the loss.*nan"
    with pytest.raises(CorebatchError, match=message):
        run(made)
    after = weights_of(model)
    assert made.state.global_step == 0
    assert all(torch.equal(before[key].nan_to_num(), after[key].nan_to_num()) for key in before)


def weights_of(model):
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_packed_batches_are_refused(tmp_path):
    class Packed(Collator):
        def __call__(self, rows):
            return {**super().__call__(rows), "seq_idx": torch.zeros(1, 3)}

    with pytest.raises(DataError, match=r"unpacked rows.*seq_idx"):
        run(trainer(tmp_path, data_collator=Packed()))


def test_no_labels(tmp_path):
    class Unlabelled(Collator):
        def __call__(self, rows):
            batch = super().__call__(rows)
            del batch["labels"]
            return batch

    with pytest.raises(DataError, match="labels"):
        run(trainer(tmp_path, data_collator=Unlabelled()))


def test_no_value_projection(tmp_path):
    model = MambaForCausalLM(
        MambaConfig(vocab_size=48, hidden_size=16, state_size=4, num_hidden_layers=2, pad_token_id=0, use_mambapy=False)
    )
    with pytest.raises(UnsupportedModelError, match="No value projection"):
        run(trainer(tmp_path / "scored", model, CoresetConfig(scoring="full")))
    assert run(trainer(tmp_path / "default", model)).state.global_step == 6  # which looks at none


def test_a_sampler_that_ignores_the_batch_size(tmp_path, monkeypatch):
    from transformers import Trainer

    made = trainer(tmp_path)
    original = Trainer.get_train_dataloader

    def own(self):
        self._train_batch_size = 3
        return original(self)

    monkeypatch.setattr(Trainer, "get_train_dataloader", own)
    with pytest.raises(ConfigError, match=r"= 8 rows at a time. Found 3"):
        run(made)


def gemma(**changes):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, pad_token_id=0, final_logit_softcapping=0.5,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config)
    model.config.update(changes)
    return model


def test_soft_caps_are_known(tmp_path):
    assert run(trainer(tmp_path, gemma(), max_steps=1)).state.global_step == 1


def test_a_loss_that_is_not_the_models_own_stops_the_run(tmp_path):
    model = gemma()
    model.lm_head.weight.data.mul_(20)
    forward = type(model).forward

    @functools.wraps(forward)
    def scaled(self, *args, **kwargs):  # a model that adds something to its loss
        output = forward(self, *args, **kwargs)
        if output.loss is not None:
            output.loss = output.loss + 0.1
        return output

    model.forward = scaled.__get__(model)
    before = weights_of(model)
    with pytest.raises(LossMismatchError, match="first batch"):
        run(trainer(tmp_path, model))
    after = weights_of(model)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_wrong_coreset_argument(tmp_path):
    with pytest.raises(ConfigError, match="Found dict"):
        trainer(tmp_path, None, {"pool_factor": 2})


def test_the_last_step_trains_the_weights(tmp_path):
    made = trainer(tmp_path, tiny_model())
    before = weights_of(made.model)
    run(made)
    after = weights(made)
    assert any(not torch.equal(before[key], after[key]) for key in before if "lora" in key)
    assert all(torch.equal(before[key], after[key]) for key in before if "lora" not in key)

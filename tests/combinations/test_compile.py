"""torch.compile: the decoder below the head is compiled in place, scoring runs uncompiled, the weights are the same."""

import logging
import shutil
from functools import partial

import pytest
import torch
from accelerate.utils import DistributedType, TorchDynamoPlugin
from datasets import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from corebatch.errors import ConfigError
from corebatch.model.compiling import decoder
from corebatch.scoring import make_scorer
from corebatch.trainer import CoresetConfig
from corebatch.trainer.checks import check_settings
from training import VOCABULARY, Collator, largest_difference, mixture, run, same, tiny_model, trainer, weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    # PyTorch's own, while Dynamo reads modules of transformers and of itself
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch"),
]


@pytest.fixture(autouse=True)
def no_graphs_left():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def graphs():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def compiled(folder, model=None, coreset=None, *, backend="eager", **settings):
    return trainer(folder, model, coreset, torch_compile=True, torch_compile_backend=backend, **settings)


CASES = {
    "lora": ({"lora": True}, None, {}),
    "checkpointing": ({"lora": False}, None, {"gradient_checkpointing": True}),
    "uniform": ({"layers": 1}, CoresetConfig(selector="random", loss="example_mean"), {"max_steps": 3}),
    "bfloat16": ({"layers": 1}, None, {"bf16": True, "max_steps": 3}),
    "gpt2": ({"kind": "gpt2", "layers": 1}, None, {"max_steps": 3}),
    "every_row": ({"layers": 1}, CoresetConfig(pool_factor=1, micro_batches={"multiple": 8}), {"max_steps": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_an_uncompiled_run(tmp_path, case):
    kind, coreset, settings = CASES[case]
    plain = run(trainer(tmp_path / "plain", tiny_model(**kind), coreset, **settings))
    assert graphs() == 0
    made = run(compiled(tmp_path / "compiled", tiny_model(**kind), coreset, **settings))
    assert 1 <= graphs() <= 4  # of a first width, and of all others
    below = decoder(made.model)
    assert below._compiled_call_impl is not None
    assert type(made.model_wrapped).__name__ != "OptimizedModule"
    tolerance = 2e-2 if settings.get("bf16") else 1e-5
    assert largest_difference(weights(plain), weights(made)) < tolerance
    lines = (tmp_path / "compiled" / "selection.jsonl").read_text().splitlines()
    assert len(lines) == settings.get("max_steps", 6)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_backends(tmp_path, backend):
    if backend == "inductor" and shutil.which("g++") is None:
        pytest.skip("inductor needs a C++ compiler")
    ids = torch.randint(3, VOCABULARY, (64, 8), generator=torch.Generator().manual_seed(0))  # of one width: one graph
    rows = Dataset.from_list([{"input_ids": row, "labels": [-100, *row[1:]]} for row in ids.tolist()])

    def made(make, folder):
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        set_seed(0)
        return run(make(tmp_path / folder, LlamaForCausalLM(config).double(), max_steps=4, train_dataset=rows))

    plain = made(trainer, "plain")
    fast = made(partial(compiled, backend=backend), "compiled")
    assert graphs() == 1
    assert largest_difference(weights(plain), weights(fast)) < 1e-6  # norms are computed in float32


def test_scoring_runs_the_modules_as_they_are(tmp_path):
    model, batch = tiny_model(lora=False), Collator()(list(mixture(8)))
    expected = make_scorer("last_layer").score(model, batch)
    model.model.compile(backend="eager")
    assert torch.equal(make_scorer("last_layer").score(model, batch), expected)
    assert graphs() == 0
    model(input_ids=batch["input_ids"])  # compiled now
    assert graphs() >= 1
    assert torch.equal(make_scorer("last_layer").score(model, batch), expected)


@pytest.mark.slow
def test_evaluation_and_resume(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3, "eval_strategy": "steps", "eval_steps": 3}
    settings["extra"] = {"eval_dataset": mixture(8, seed=5)}

    def made(folder):
        return compiled(folder, tiny_model(layers=1), **{**settings, "extra": dict(settings["extra"])})

    whole = run(made(tmp_path / "run"))
    assert sum("eval_loss" in line for line in whole.state.log_history) == 2
    assert "model.layers.0.self_attn.q_proj.weight" in str(list(weights(whole)))  # no _orig_mod
    again = run(made(tmp_path / "run"), resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    assert same(weights(whole), weights(again))


@pytest.mark.slow
def test_evaluation_before_training_compiles_no_more(tmp_path):
    made = compiled(tmp_path, tiny_model(layers=1), extra={"eval_dataset": mixture(8, seed=5)}, max_steps=2)
    made.evaluate()
    run(made)
    plain = run(trainer(tmp_path / "plain", tiny_model(layers=1), max_steps=2))
    assert largest_difference(weights(plain), weights(made)) < 1e-5


def test_blocks_alone_where_accelerate_is_told_so(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_USE_REGIONAL_COMPILATION", "true")
    made = run(compiled(tmp_path, tiny_model(lora=False), max_steps=2))
    below = decoder(made.model)
    assert below._compiled_call_impl is None
    assert all(block._compiled_call_impl is not None for block in below.layers)


def test_asked_for_by_accelerate_launch(tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "eager")
    made = run(trainer(tmp_path, tiny_model(lora=False, layers=1), max_steps=2))
    assert not made.args.torch_compile
    assert decoder(made.model)._compiled_call_impl is not None
    assert type(made.model_wrapped).__name__ != "OptimizedModule"
    assert isinstance(made.accelerator.state.dynamo_plugin, TorchDynamoPlugin)


def test_nothing_is_learnt_from_training_and_the_log_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        scored = CoresetConfig(scoring={"way": "remembered", "unknown": "score"})
        made = run(compiled(tmp_path, tiny_model(layers=1), scored, max_steps=8))  # more than one epoch
    assert made._run.scoring.strategy.way == "remembered"
    assert made._run.scoring.trained is None
    assert sum("is not learnt" in record.getMessage() for record in caplog.records) == 1


def test_by_default_nothing_is_scored_or_remembered(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        made = run(compiled(tmp_path, tiny_model(layers=1), max_steps=8))
    assert (made._run.scoring.way, made._run.scoring.memory, made._run.scoring.trained) == ("none", None, None)
    assert "is not learnt" not in caplog.text


@pytest.mark.parametrize(
    "scoring, message",
    [
        ({"way": "full", "reuse": True}, "reuse"),
        ({"way": "remembered", "unknown": "guess"}, "teaches nothing"),
    ],
)
def test_what_needs_hooks_in_training_is_refused(tmp_path, scoring, message):
    with pytest.raises(ConfigError, match=message):
        compiled(tmp_path, None, CoresetConfig(scoring=scoring), gradient_checkpointing=True)


@pytest.mark.parametrize("engine", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_sharded_engines_are_refused(tmp_path, monkeypatch, engine):
    made = compiled(tmp_path)
    monkeypatch.setattr(type(made.accelerator), "distributed_type", property(lambda _: engine))
    with pytest.raises(ConfigError, match=f"torch_compile on {engine.value}"):
        check_settings(made, made.coreset, made._run.method)


@pytest.mark.parametrize("how", ["around", "in place", "forward"])
def test_a_model_that_comes_compiled_is_refused(tmp_path, how):
    model = tiny_model(lora=False)
    if how == "around":
        model = torch.compile(model, backend="eager")
    elif how == "in place":
        model.compile(backend="eager")
    else:
        model.forward = torch.compile(model.forward, backend="eager")
    with pytest.raises(ConfigError, match="come uncompiled"):
        trainer(tmp_path, model)


def test_pool_factor_one_is_left_to_the_trainer(tmp_path):
    made = run(compiled(tmp_path, tiny_model(lora=False, layers=1), CoresetConfig(pool_factor=1), max_steps=1))
    assert type(made.model_wrapped).__name__ == "OptimizedModule"

"""Optimizers that update weights inside backward: the same run as the plain optimizer, in one micro-batch."""

import importlib.util
import json
import math
import shutil

import pytest
import torch
from test_resume import untimed

from corebatch.errors import CheckpointError, ConfigError, NonFiniteError, UnsupportedModelError
from corebatch.memory import FeatureMemory
from corebatch.trainer import CoresetConfig, OptimizerInBackward
from training import largest_difference, run, same, tiny_model, trainer, weights

ONE = {"gradient_accumulation_steps": 1, "max_grad_norm": 0.0, "optim": "adamw_torch"}
FOUR = CoresetConfig(pool_factor=4)
CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


def needs(*packages):
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")


def full(kind="llama", **settings):
    return tiny_model(kind, lora=False, dtype=torch.float64, **settings)


def hand_written(model, lr=5e-3):
    """PyTorch's tutorial: an AdamW for each weight, stepped by a hook. transformers' own defaults of AdamW."""
    each = {p: torch.optim.AdamW([p], lr=lr, weight_decay=0.0, foreach=False) for p in model.parameters()}

    def update(parameter):
        each[parameter].step()
        each[parameter].zero_grad()

    for parameter in each:
        parameter.register_post_accumulate_grad_hook(update)
    return each


def in_backward(optimizer=torch.optim.AdamW, **settings):
    return {"optimizer_cls_and_kwargs": (OptimizerInBackward, {"optimizer": optimizer, "lr": 5e-3, **settings})}


def lines(folder):
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


CASES = {
    "weighted": (FOUR, "llama", {}),
    "tied": (FOUR, "gpt2", {}),
    "uniform": (CoresetConfig(selector="random", pool_factor=4), "llama", {}),
    "remembered": (CoresetConfig(scoring="remembered", pool_factor=4), "gpt2", {"max_steps": 12}),
    "checkpointing": (CoresetConfig(scoring={"way": "full", "reuse": False}, pool_factor=4), "llama", CHECKPOINTING),
    "reused": (CoresetConfig(scoring={"way": "full", "reuse": True}, pool_factor=4), "llama", CHECKPOINTING),
    "reused_tied": (CoresetConfig(scoring={"way": "full", "reuse": True}, pool_factor=4), "gpt2", CHECKPOINTING),
    "optimizer_scale": (CoresetConfig(normalise="optimizer", pool_factor=4), "llama", {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_run_is_the_plain_optimizers(tmp_path, case):
    coreset, kind, settings = CASES[case]
    settings = {**ONE, **settings}
    plain = run(trainer(tmp_path / "plain", full(kind), coreset, **settings))
    made = run(trainer(tmp_path / "made", full(kind), coreset, extra=in_backward(), **settings))
    before = full(kind).state_dict()
    assert all(not torch.equal(before[name], value) for name, value in weights(made).items() if value.ndim > 1)
    # transformers' own loss, which uniform selectors use, is in float32 whatever the model
    assert largest_difference(weights(plain), weights(made)) < (1e-6 if case == "uniform" else 1e-12)
    one, other = lines(tmp_path / "plain"), lines(tmp_path / "made")
    assert [line["chosen"] for line in one] == [line["chosen"] for line in other]
    for line in other:
        assert (line["pool_examples"], line["chosen_examples"]) == (16, 4)
        assert {"train", "optimizer"} <= line["ms"].keys()
        assert math.isfinite(line["train_loss"])
    assert all((line.get("reuse_mb") or 0) > 0 for line in other) == case.startswith("reused")


def test_a_schedule_and_weight_decay_are_the_plain_optimizers(tmp_path):
    settings = {**ONE, "lr_scheduler_type": "cosine", "warmup_steps": 2, "weight_decay": 0.3}
    plain = run(trainer(tmp_path / "plain", full(), FOUR, **settings))
    made = run(trainer(tmp_path / "made", full(), FOUR, extra=in_backward(), **settings))
    assert largest_difference(weights(plain), weights(made)) < 1e-12
    assert plain.state.log_history[3]["learning_rate"] == made.state.log_history[3]["learning_rate"]


def test_a_hand_written_step_in_backward_is_the_plain_optimizer(tmp_path):
    settings = {**ONE, "lr_scheduler_type": "constant"}
    plain = run(trainer(tmp_path / "plain", full(), FOUR, **settings))
    model = full()
    hand_written(model)
    made = run(trainer(tmp_path / "made", model, FOUR, **settings))  # the Trainer's own AdamW finds no gradient
    assert largest_difference(weights(plain), weights(made)) < 1e-12


def test_what_is_learnt_from_training_is_what_the_plain_optimizer_gives(tmp_path):
    """Weights of later blocks have moved when earlier ones are reached; features do not look at weights."""
    memories = []
    for name, extra in (("plain", {}), ("made", in_backward())):
        made = run(
            trainer(
                tmp_path / name,
                full("gpt2"),
                CoresetConfig(scoring={"way": "remembered", "unknown": "guess"}, pool_factor=4),
                extra=extra,
                **ONE,
            )
        )
        made._run.update_memory()
        assert isinstance(made._run.scoring.memory, FeatureMemory)
        memories.append(made._run.scoring.memory.state_dict())
    assert memories[0].keys() == memories[1].keys()
    for key, value in memories[0].items():
        torch.testing.assert_close(memories[1][key], value, equal_nan=True)


def test_resumed_is_uninterrupted(tmp_path):
    settings = {**ONE, "max_steps": 9, "save_strategy": "steps", "save_steps": 4}
    whole = run(trainer(tmp_path / "whole", full(), FOUR, extra=in_backward(), **settings))
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed" / "checkpoint-9")
    made = trainer(tmp_path / "killed", full(), FOUR, extra=in_backward(), **settings)
    run(made, resume_from_checkpoint=True)
    assert same(weights(whole), weights(made))
    assert untimed(tmp_path / "whole" / "selection.jsonl") == untimed(tmp_path / "killed" / "selection.jsonl")


def test_a_run_goes_on_with_the_plain_optimizer_from_its_checkpoint(tmp_path):
    settings = {**ONE, "max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = run(trainer(tmp_path / "run", full(), FOUR, extra=in_backward(), **settings))
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    plain = run(trainer(tmp_path / "run", full(), FOUR, **settings), resume_from_checkpoint=True)
    assert largest_difference(weights(whole), weights(plain)) < 1e-12


@pytest.mark.parametrize("own", [True, False], ids=["own", "hand_written"])
def test_a_loss_that_is_not_finite_moves_no_weight(tmp_path, own, monkeypatch):
    from corebatch.trainer import mixin

    model = full()
    extra = in_backward() if own else {}
    if not own:
        hand_written(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    original = mixin.weighted_loss

    def broken(*args):
        loss, outputs = original(*args)
        return loss * float("nan"), outputs

    monkeypatch.setattr(mixin, "weighted_loss", broken)
    made = trainer(tmp_path, model, FOUR, extra=extra, **ONE)
    with pytest.raises(NonFiniteError, match=r"At step 1 .* No weight was moved"):
        run(made)
    assert same(before, weights(made))


@pytest.mark.parametrize("settings", [{"optim": "lomo"}, {"optim": "apollo_adamw_layerwise"}, {"extra": in_backward()}])
def test_accumulation_is_refused_at_once(tmp_path, settings):
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps 2\. Set it to 1, and pool_factor"):
        trainer(tmp_path, full(), FOUR, **settings)


def test_accumulation_with_a_hook_is_refused_before_anything_is_trained(tmp_path):
    model = full()
    made = trainer(tmp_path, model, FOUR, max_grad_norm=0.0)
    hand_written(model)
    before = weights(made)
    with pytest.raises(ConfigError, match=r"model.embed_tokens.weight .*update.* gradient_accumulation_steps 2"):
        run(made)
    assert same(before, weights(made))


def test_clipping_that_does_nothing_is_said(tmp_path, caplog):
    run(trainer(tmp_path, full(), FOUR, extra=in_backward(), gradient_accumulation_steps=1, max_steps=1))
    assert "max_grad_norm 1.0 has no effect" in caplog.text


def test_a_hook_that_waits_for_gradients_makes_resuming_uncertain(tmp_path, caplog):
    settings = {**ONE, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    run(trainer(tmp_path, full(), FOUR, **settings))
    shutil.rmtree(tmp_path / "checkpoint-4")
    model = full()
    hand_written(model)
    run(trainer(tmp_path, model, FOUR, **settings), resume_from_checkpoint=True)
    assert "the resumed run may not be the same" in caplog.text


def test_one_weight_has_one_such_optimizer():
    weight = torch.nn.Parameter(torch.ones(2))
    first = OptimizerInBackward([weight], torch.optim.SGD, lr=0.5)
    with pytest.raises(ConfigError, match="remove_hooks"):
        OptimizerInBackward([weight], torch.optim.SGD, lr=0.5)
    weight.sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.5))
    with pytest.raises(ConfigError, match="closure"):
        first.step(lambda: 0.0)
    first.remove_hooks()
    weight.sum().backward()
    torch.testing.assert_close(weight.detach(), torch.full((2,), 0.5))


@pytest.mark.parametrize("optim", ["sgd", "adafactor"])
def test_an_optimizer_without_second_moments_is_named_at_the_first_step(tmp_path, optim):
    made = trainer(tmp_path, full(), CoresetConfig(normalise="optimizer"), optim=optim)
    with pytest.raises(UnsupportedModelError, match=r"second moment for every weight.* Found (SGD|Adafactor)"):
        run(made)


# ---- optimizers of others --------------------------------------------------------------------------------------------

TARGETS = {"optim_target_modules": ["mlp"], "optim_args": "rank=4,update_proj_gap=2,scale=1.0"}
LAYERWISE = {
    "galore": ("galore_adamw", pytest.param("galore", marks=needs("galore_torch", "bitsandbytes"))),
    "apollo": ("apollo_adamw", pytest.param("apollo", marks=needs("apollo_torch", "bitsandbytes"))),
}
OF_OTHERS = [parameter for _, parameter in LAYERWISE.values()]
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:This implementation of AdamW is deprecated:FutureWarning"),
    # transformers steps its stand-in scheduler before its stand-in optimizer
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step:UserWarning"),
]


@pytest.mark.parametrize("name", OF_OTHERS)
def test_a_layer_wise_optimizer_is_its_plain_one(tmp_path, name):
    optim = LAYERWISE[name][0]
    settings = {**ONE, **TARGETS, "lr_scheduler_type": "constant"}
    plain = trainer(tmp_path / "plain", full(), FOUR, **{**settings, "optim": optim})
    for state in plain.create_optimizer().state.values():
        state["seed"] = 1  # APOLLO numbers an optimizer's weights, and each is the first of its own if layer-wise
    run(plain)
    made = run(trainer(tmp_path / "made", full(), FOUR, **{**settings, "optim": f"{optim}_layerwise"}))
    assert not same(weights(made), full().state_dict())
    assert largest_difference(weights(plain), weights(made)) < 1e-12
    assert [line["train_loss"] for line in lines(tmp_path / "made")] == pytest.approx(
        [line["train_loss"] for line in lines(tmp_path / "plain")], rel=1e-12
    )


@pytest.mark.parametrize("name", OF_OTHERS)
def test_a_layer_wise_run_is_not_resumed(tmp_path, name):
    settings = {**ONE, **TARGETS, "optim": f"{LAYERWISE[name][0]}_layerwise", "max_steps": 4}
    settings |= {"save_strategy": "steps", "save_steps": 2}
    run(trainer(tmp_path, full(), FOUR, **settings))
    before = (tmp_path / "selection.jsonl").read_text()
    with pytest.raises(CheckpointError, match=r"_layerwise' a checkpoint has none of the optimizer's state"):
        run(trainer(tmp_path, full(), FOUR, **settings), resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert (tmp_path / "selection.jsonl").read_text() == before


@pytest.mark.parametrize("name", OF_OTHERS)
def test_optimizers_of_others_in_ours(tmp_path, name):
    """GaLore and APOLLO through OptimizerInBackward are transformers' layer-wise runs."""
    settings = {**ONE, **TARGETS, "lr_scheduler_type": "constant", "max_steps": 4}
    layerwise = run(trainer(tmp_path / "one", full(), FOUR, **{**settings, "optim": f"{LAYERWISE[name][0]}_layerwise"}))
    parts = list(layerwise.optimizer.optimizer.optimizer_dict.values())
    groups = [{k: v for k, v in part.param_groups[0].items() if k != "params"} for part in parts]
    projected, usual = (next(g for g in groups if ("rank" in g) == wanted) for wanted in (True, False))
    model = full()
    of_mlp = {wanted: [p for n, p in model.named_parameters() if (".mlp." in n) == wanted] for wanted in (True, False)}
    optimizer = OptimizerInBackward(
        [{**usual, "params": of_mlp[False]}, {**projected, "params": of_mlp[True]}], type(parts[0]), lr=5e-3
    )
    extra = {"optimizers": (optimizer, None)}
    made = run(trainer(tmp_path / "other", model, FOUR, extra=extra, **settings))
    assert largest_difference(weights(layerwise), weights(made)) < 1e-12


@needs("galore_torch", "bitsandbytes")
@pytest.mark.parametrize("rank", [4, 64])
def test_second_moments_of_a_layer_wise_optimizer(tmp_path, rank):
    """Those of weights without a projector are found; those of rotated gradients are refused, whatever shape."""
    settings = {**ONE, "optim": "galore_adamw_layerwise", "optim_args": f"rank={rank}", "max_steps": 3}
    coreset = CoresetConfig(normalise="optimizer", pool_factor=4)
    run(trainer(tmp_path / "there", full(), coreset, **settings, optim_target_modules=["mlp"]))
    made = trainer(tmp_path / "not", full(), coreset, **settings, optim_target_modules=["v_proj"])
    with pytest.raises(UnsupportedModelError, match=r"Found AdamW, whose settings are .*rank"):
        run(made)


@needs("lomo_optim")
def test_lomo_is_sgd(tmp_path):
    settings = {**ONE, "learning_rate": 0.5}
    # LOMO computes updates in float32, so that is what both are trained in.
    plain = run(trainer(tmp_path / "plain", tiny_model(lora=False), FOUR, **{**settings, "optim": "sgd"}))
    settings |= {"optim": "lomo", "save_strategy": "steps", "save_steps": 4}
    made = run(trainer(tmp_path / "made", tiny_model(lora=False), FOUR, **settings))
    assert not same(weights(made), tiny_model(lora=False).state_dict())
    assert largest_difference(weights(plain), weights(made)) < 1e-6
    shutil.rmtree(tmp_path / "made" / "checkpoint-6")
    resumed = trainer(tmp_path / "made", tiny_model(lora=False), FOUR, **settings)
    run(resumed, resume_from_checkpoint=True)
    assert same(weights(made), weights(resumed))


@needs("lomo_optim")
def test_adalomo(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)  # AdaLomo asks for a GPU by name
    settings = {**ONE, "optim": "adalomo", "save_strategy": "steps", "save_steps": 4}
    made = run(trainer(tmp_path, tiny_model(lora=False), FOUR, **settings))
    assert not same(weights(made), tiny_model(lora=False).state_dict())
    assert all(math.isfinite(line["train_loss"]) for line in lines(tmp_path))
    with pytest.raises(CheckpointError, match="adalomo"):
        run(trainer(tmp_path, tiny_model(lora=False), FOUR, **settings), resume_from_checkpoint=True)
    made = trainer(tmp_path / "o", tiny_model(lora=False), CoresetConfig(normalise="optimizer"), **settings)
    with pytest.raises(UnsupportedModelError, match="AdaLomo"):
        run(made)

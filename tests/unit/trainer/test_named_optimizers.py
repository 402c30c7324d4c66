"""Optimizers that `optim` names beside those of transformers: how they train, go on, and scale a gradient."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from corebatch.config.settings import settings_from
from corebatch.errors import ConfigError, MissingExtraError, UnsupportedModelError
from corebatch.model.moments import Coordinates, second_moments
from corebatch.optimizers import MADA, OPTIMIZERS, kept_numbers, make_optimizer
from corebatch.trainer import CoresetConfig
from training import arguments, resumed_at, run, same, tiny_model, trainer, weights

pytest.importorskip("pytorch_optimizer")
HAVE_A_METRIC = ("adan", "adopt", "lamb", "mada", "novograd")


def numbers(kept):
    """How many numbers of tensors a state holds; what is one for a whole tensor does not count."""
    if isinstance(kept, torch.Tensor):
        return kept.numel() if kept.ndim else 0
    return sum(map(numbers, kept.values() if isinstance(kept, dict) else kept)) if hasattr(kept, "__len__") else 0


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_it_trains_and_goes_on_where_it_was_bit_for_bit(tmp_path, name, lora):
    def made(folder):
        model = tiny_model(lora=lora)
        return trainer(
            folder, model, CoresetConfig(), optim=name, learning_rate=1e-3, weight_decay=0.1, save_strategy="steps",
            save_steps=3,
        )  # fmt: skip

    begun = made(tmp_path / "whole")
    before = weights(begun)
    whole = run(begun)
    assert type(whole.optimizer.optimizer).__name__.lower() == name
    assert not same(before, weights(whole))
    assert kept_numbers(name, whole.model) == sum(map(numbers, whole.optimizer.optimizer.state.values()))
    _, resumed = resumed_at(3, tmp_path / "whole", made)
    assert same(weights(whole), weights(resumed))


def test_a_plain_trainer_of_ours_takes_the_name_as_well(tmp_path):
    made = run(trainer(tmp_path, tiny_model(), CoresetConfig(pool_factor=1), optim="lamb", max_steps=2))
    assert type(made.optimizer.optimizer).__name__ == "Lamb"


@pytest.mark.parametrize(
    "name, given, wanted",
    [
        ("lion", {}, {"betas": (0.9, 0.99)}),
        ("lamb", {"adam_beta2": 0.95, "adam_epsilon": 1e-7}, {"betas": (0.9, 0.95), "eps": 1e-7}),
        ("adan", {"adam_beta1": 0.97, "optim_args": "beta_difference=0.9"}, {"betas": (0.97, 0.9, 0.99), "eps": 1e-8}),
        ("lars", {"optim_args": "momentum=0.8, nesterov=true"}, {"momentum": 0.8, "nesterov": True}),
        ("soap", {"optim_args": "precondition_frequency=2"}, {"precondition_frequency": 2, "betas": (0.95, 0.95)}),
        ("mada", {"optim_args": "rho=1,rate=0"}, {"rho": 1.0, "rate": 0.0, "betas": (0.9, 0.95)}),
        ("muon", {"learning_rate": 0.01}, {"lr": 0.01, "adamw_lr": 0.01, "adamw_betas": (0.9, 0.95)}),
    ],
)
def test_what_is_given_arrives_and_its_own_defaults_stand_for_the_rest(tmp_path, name, given, wanted):
    _, settings = make_optimizer(arguments(tmp_path, optim=name, **given), tiny_model(), set())
    assert {key: settings[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    "name, given, words",
    [
        ("lars", {"adam_beta2": 0.95}, "'lars' has no adam_beta2. Found 0.95"),
        ("lion", {"adam_epsilon": 1e-6}, "'lion' has no adam_epsilon"),
        ("lamb", {"optim_args": "pre_norms=true"}, "Did you mean 'pre_norm'"),
        ("lamb", {"optim_args": "pre_norm=2"}, "pre_norm should be like False. Found '2'"),
        ("lamb", {"optim_args": "betas=0.9"}, "have keys of their own"),
        ("adopt", {"optim_args": "maximize=true"}, "Found 'maximize=true'"),
        ("mada", {"optim_args": "rho"}, "Found 'rho'"),
    ],
)
def test_what_an_optimizer_has_not_is_refused_by_name(tmp_path, name, given, words):
    with pytest.raises(ConfigError, match=words):
        arguments(tmp_path, optim=name, **given)


def test_muon_steps_by_the_matrices_between_embedding_and_head(tmp_path):
    made = run(trainer(tmp_path, tiny_model(lora=False), optim="muon", max_steps=1, weight_decay=0.1))
    names = {id(p): name for name, p in made.model.named_parameters()}
    groups = {
        (group["use_muon"], group["weight_decay"]): {names[id(p)].split(".")[-2] for p in group["params"]}
        for group in made.optimizer.optimizer.param_groups
    }
    assert groups[True, 0.1] == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert groups[False, 0.1] == {"embed_tokens", "lm_head"}
    assert groups[False, 0.0] == {"input_layernorm", "post_attention_layernorm", "norm"}
    with pytest.raises(ConfigError, match="Found none that is trained"):
        make_optimizer(made.args, nn.LayerNorm(3), set())


def test_without_the_package_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(MissingExtraError, match=r"corebatch\[optimizers\]"):
        arguments(tmp_path, optim="lamb")
    assert make_optimizer(arguments(tmp_path, optim="mada"), tiny_model(), set())[0] is MADA


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_looks_at_whole_tensors_is_refused_where_they_are_divided(tmp_path, monkeypatch, name):
    made = trainer(tmp_path, tiny_model(), optim=name)
    monkeypatch.setattr("corebatch.trainer.named_parts.sharded", lambda trainer: "FSDP")
    if OPTIMIZERS[name].whole:
        with pytest.raises(ConfigError, match=f"'{name}' looks at whole tensors, which FSDP divides"):
            made.create_optimizer()
    else:
        assert made.create_optimizer() is not None


def test_a_config_names_them_and_a_word_that_is_none_gets_both_lists(tmp_path):
    values = {"model_name_or_path": "none", "datasets": [{"path": "none.jsonl"}], "output_dir": str(tmp_path)}
    args = settings_from({**values, "optim": "lamb", "optim_args": "adam=true"}, "config").training_arguments()
    assert (args.optim, args.optim.value, args.adam_epsilon) == ("lamb", "lamb", 1e-6)
    assert args.to_dict()["optim"] == "lamb"
    with pytest.raises(ConfigError, match="corebatch has adan, adopt, lamb"):
        settings_from({**values, "optim": "lamp"}, "config").training_arguments()
    with pytest.raises(ConfigError, match="corebatch has power beside these"):
        settings_from({**values, "lr_scheduler_type": "powre"}, "config").training_arguments()
    with pytest.raises(ConfigError, match="'lars' has no adam_beta1"):
        settings_from({**values, "optim": "lars", "adam_beta1": 0.8}, "config").training_arguments()


# ---- their metric ----------------------------------------------------------------------------------------------------


def optimized(name, given=""):
    """Two tensors that were stepped by, their optimizer, and what made it; moments hardly move any more."""
    made, sizes = torch.Generator().manual_seed(0), ((20, 15), (10, 30))
    tensors = [nn.Parameter(torch.randn(size, generator=made, dtype=torch.float64)) for size in sizes]
    args = SimpleNamespace(
        optim=name, optim_args=given, learning_rate=1e-3, adam_beta1=0.9, adam_beta2=0.99, adam_epsilon=1e-12,
        weight_decay=0.0,
    )  # fmt: skip
    kind, settings = make_optimizer(args, nn.Linear(1, 1), set())
    optimizer = kind(tensors, **settings)
    for _ in range(30):
        for tensor, scale in zip(tensors, (1.0, 30.0), strict=True):
            rows = torch.linspace(0.1, 2, len(tensor), dtype=torch.float64)[:, None] * scale
            tensor.grad = torch.randn(tensor.shape, generator=made, dtype=torch.float64) * rows
        optimizer.step()
    return tensors, optimizer, args


@pytest.mark.parametrize("name", HAVE_A_METRIC)
def test_a_gradient_is_scaled_as_the_optimizer_would_scale_it(name):
    """One step from the same state with a gradient that is a little larger in one number: how much more that moves."""
    tensors, optimizer, _ = optimized(name, "rate=0,beta_rate=0" if name == "mada" else "")
    scale = second_moments(optimizer, [Coordinates(parameter=p, rows=None) for p in tensors]).rsqrt()[::30]
    state, before = optimizer.state_dict(), [p.detach().clone() for p in tensors]

    def moved(tensor, at, more):
        optimizer.load_state_dict(copy.deepcopy(state))
        for p, was in zip(tensors, before, strict=True):
            p.data.copy_(was)
            p.grad = torch.full_like(p, 1e-6)
        tensors[tensor].grad.view(-1)[at] += more
        optimizer.step()
        return tensors[tensor].detach().view(-1)[at].clone()

    found = torch.stack([moved(k, at, -1e-4) - moved(k, at, 1e-4) for k in (0, 1) for at in range(0, 300, 30)])
    torch.testing.assert_close(found / found.mean(), scale / scale.mean(), rtol=0.1, atol=0)
    assert scale.max() / scale.min() > 5


def test_lamb_without_trust_ratios_has_adams_metric():
    tensors, optimizer, _ = optimized("lamb", "adam=true")
    own = second_moments(optimizer, [Coordinates(parameter=p, rows=None) for p in tensors])
    assert torch.equal(own, torch.cat([optimizer.state[p]["exp_avg_sq"].flatten() for p in tensors]))


@pytest.mark.parametrize(
    "name, words",
    [
        ("lars", "own gradient's norm"),
        ("lion", "steps by a sign"),
        ("muon", "Use normalise 'muon'"),
        ("soap", "eigenbasis of each matrix"),
    ],
)
def test_one_without_a_metric_for_single_weights_is_refused_in_the_first_step(tmp_path, name, words):
    with pytest.raises(UnsupportedModelError, match=words):
        run(trainer(tmp_path, tiny_model(), CoresetConfig(normalise="optimizer"), optim=name))


@pytest.mark.parametrize("name", HAVE_A_METRIC)
def test_one_with_a_metric_chooses_by_it(tmp_path, name):
    assert run(trainer(tmp_path, tiny_model(), CoresetConfig(normalise="optimizer"), optim=name)).state.global_step == 6


def test_another_optimizer_of_the_package_is_refused_by_its_name(tmp_path):
    import pytorch_optimizer

    given = {"optimizer_cls_and_kwargs": (pytorch_optimizer.Yogi, {"lr": 1e-3})}
    with pytest.raises(UnsupportedModelError, match="Yogi is not one of Adan, ADOPT"):
        run(trainer(tmp_path, tiny_model(), CoresetConfig(normalise="optimizer"), extra=given))

"""The invariants of this folder for every way of scoring, with reuse of the scoring forward, and without padding."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from corebatch.trainer import CoresetConfig
from training import largest_difference, run, same, tiny_model, trainer, weights

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")

CHECKPOINTING = {"gradient_checkpointing": True}
NOT_REENTRANT = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
REUSE = {"way": "full", "reuse": True}
UNTIMED = ("ms", "memory_mb", "mfu", "seconds")

WAYS: dict[str, Any] = {
    "window": {"way": "window", "tokens": 6},
    "first_blocks": {"way": "first_blocks", "blocks": 1},
    "every": {"way": "every", "steps": 3},
    "every_not_learning": {"way": "every", "steps": 3, "learn": False},
    "remembered": "remembered",
    "remembered_scored": {"way": "remembered", "unknown": "score", "max_age": 5},
    "two_phase": "two_phase",
    "two_phase_norm": {"way": "two_phase", "proxy": "norm"},
    "two_phase_loss": {"way": "two_phase", "proxy": "loss"},
    "none": "none",
}


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in UNTIMED} for line in found]


def trained(folder: Path, coreset: CoresetConfig, model: Any = None, **settings: Any) -> dict[str, torch.Tensor]:
    model = model if model is not None else tiny_model(dtype=torch.float64)
    return weights(run(trainer(folder, model, coreset, optim="adamw_torch", **settings)))


# ---- resumed, again, in other layouts --------------------------------------------------------------------------------

RESUMED: dict[str, tuple[Any, dict[str, Any], float]] = {  # scoring, the Trainer's settings, dropout
    **{name: (WAYS[name], {}, 0.1) for name in ("every", "remembered", "remembered_scored", "two_phase_norm")},
    "remembered, checkpointing": ("remembered", CHECKPOINTING, 0.1),
    "reuse": (REUSE, CHECKPOINTING, 0.0),
    "reuse, not reentrant": (REUSE, NOT_REENTRANT, 0.0),
}


@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_resumed_is_uninterrupted(tmp_path: Path, case: str, lora: bool) -> None:
    scoring, settings, dropout = RESUMED[case]
    settings = {"max_steps": 11, "save_strategy": "steps", "save_steps": 4, **settings}  # 6 steps an epoch

    def made(folder: Path) -> Any:
        return trainer(folder, tiny_model(dropout=dropout, lora=lora), CoresetConfig(scoring=scoring), **settings)

    whole = run(made(tmp_path / "whole"))
    killed = tmp_path / "killed"
    shutil.copytree(tmp_path / "whole", killed)
    shutil.rmtree(killed / "checkpoint-11")
    resumed = run(made(killed), resume_from_checkpoint=True)
    assert same(weights(whole), weights(resumed))
    assert lines(tmp_path / "whole") == lines(killed)
    one, other = (made._run.scoring.memory for made in (whole, resumed))
    if one is not None:
        state = other.state_dict()
        for key, value in one.state_dict().items():
            torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)
    if "reuse" in case:
        assert all(line["reuse_mb"] > 0 for line in lines(killed))


def test_saving_more_often_changes_nothing(tmp_path: Path) -> None:
    """What was trained is remembered before a checkpoint is written, and at the next step otherwise."""
    coreset = CoresetConfig(scoring="remembered")
    often = {"save_strategy": "steps", "save_steps": 1}
    one, other = (trained(tmp_path / str(n), coreset, max_steps=9, **(often if n else {})) for n in range(2))
    assert same(one, other)


@pytest.mark.parametrize("way", WAYS)
def test_the_same_seed_gives_the_same_run(tmp_path: Path, way: str) -> None:
    coreset = CoresetConfig(scoring=WAYS[way])
    one, other = (trained(tmp_path / str(n), coreset, tiny_model(dropout=0.1), max_steps=8) for n in range(2))
    assert same(one, other)
    assert lines(tmp_path / "0") == lines(tmp_path / "1")


@pytest.mark.parametrize("way", WAYS)
def test_one_by_eight_is_eight_by_one(tmp_path: Path, way: str) -> None:
    """Float32 inside of norms and memories hides nothing here: rows are weighted alike in every layout."""
    results = []
    for size, steps in ((1, 8), (8, 1), (2, 4)):
        results.append(
            trained(
                tmp_path / str(size),
                CoresetConfig(scoring=WAYS[way]),
                tiny_model("gpt2", dtype=torch.float64),
                per_device_train_batch_size=size,
                gradient_accumulation_steps=steps,
                max_steps=9,
            )
        )
    chosen = [[line["chosen"] for line in lines(tmp_path / str(size))] for size in (1, 8, 2)]
    assert chosen[0] == chosen[1] == chosen[2]
    assert largest_difference(results[0], results[1]) < 1e-9
    assert largest_difference(results[0], results[2]) < 1e-9


# ---- no trace --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["window", "first_blocks", "two_phase", "remembered_scored"])
def test_scoring_leaves_the_model_as_it_was(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(dropout=0.1)
    made = trainer(tmp_path, model, CoresetConfig(scoring=WAYS[way]), max_steps=2)
    scored = type(made._run.scoring.forwards).score
    seen = 0

    def picture() -> list[Any]:
        return [
            torch.get_rng_state(),
            *(value.clone() for value in model.state_dict().values()),
            *(torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()),
            torch.tensor([module.training for module in model.modules()]),
            [parameter.requires_grad for parameter in model.parameters()],
            [set(vars(module)) for module in model.modules()],
            [(len(module._forward_hooks), len(module._forward_pre_hooks)) for module in model.modules()],
        ]

    def watched(*args: Any, **settings: Any) -> Any:
        nonlocal seen
        before = picture()
        found = scored(*args, **settings)
        for one, other in zip(before, picture(), strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other
        seen += 1
        return found

    monkeypatch.setattr(type(made._run.scoring.forwards), "score", watched)
    run(made)
    assert seen == 2


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """What the plain Trainer trains."""
    made = trainer(tmp_path_factory.mktemp("plain"), tiny_model(dropout=0.1), plain=True, max_steps=3)
    return weights(run(made))


@pytest.mark.parametrize("way", ["full", *WAYS])
def test_pool_factor_1_is_the_plain_trainer(tmp_path: Path, plain: dict[str, torch.Tensor], way: str) -> None:
    coreset = CoresetConfig(pool_factor=1, scoring=WAYS.get(way, REUSE), padding_free=True)
    assert same(plain, weights(run(trainer(tmp_path, tiny_model(dropout=0.1), coreset, max_steps=3))))


# ---- reuse, and no padding, change nothing but the cost --------------------------------------------------------------

# Of both kinds of layout: padded and packed micro-batches, rows that are kept and (with little memory) rows that are
# not.
SAME_TRAINING: dict[str, dict[str, Any]] = {
    "reuse": {"scoring": REUSE},
    "reuse in host memory": {"scoring": {**REUSE, "reuse_place": "host"}},
    "reuse of some": {"scoring": {**REUSE, "reuse_gb": 30e-6, "rows": 3}},
    "padding_free": {"scoring": {"way": "full", "reuse": False}, "padding_free": True},
    "reuse, padding_free": {"scoring": REUSE, "padding_free": True},
}


def checkpointed(folder: Path, lora: bool, checkpointing: dict[str, Any], **settings: Any) -> dict[str, torch.Tensor]:
    coreset = CoresetConfig(**{"padding_free": False, **settings})
    return trained(folder, coreset, tiny_model("gpt2", lora=lora, dtype=torch.float64), **checkpointing)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """The folder and the weights of a run without reuse and packing, which is made once."""

    @cache
    def get(lora: bool, reentrant: bool) -> tuple[Path, dict[str, torch.Tensor]]:
        folder = tmp_path_factory.mktemp("off")
        checkpointing = CHECKPOINTING if reentrant else NOT_REENTRANT
        return folder, checkpointed(folder, lora, checkpointing, scoring={"way": "full", "reuse": False})

    return get


@pytest.mark.parametrize("case", SAME_TRAINING)
@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
def test_reuse_and_packing_train_the_same_weights(
    tmp_path: Path, without: Any, case: str, lora: bool, reentrant: bool
) -> None:
    folder, expected = without(lora, reentrant)
    found = checkpointed(tmp_path, lora, CHECKPOINTING if reentrant else NOT_REENTRANT, **SAME_TRAINING[case])
    assert largest_difference(expected, found) < (1e-10 if "padding_free" not in case else 1e-9)
    if "reuse" in case:
        assert all(line["reuse_mb"] > 0 for line in lines(tmp_path))
    if "padding_free" in case:
        off, on = lines(folder), lines(tmp_path)
        assert all(line["positions_trained"] == line["tokens_trained"] for line in on)
        assert any(line["positions_trained"] > line["tokens_trained"] for line in off)


@pytest.mark.parametrize("way", ["remembered", "two_phase_norm"])
def test_what_is_learnt_does_not_depend_on_padding(tmp_path: Path, way: str) -> None:
    results = []
    for packed in (False, True):
        coreset = CoresetConfig(scoring=WAYS[way], padding_free=packed)
        model = tiny_model("gpt2", dtype=torch.float64)
        results.append(trained(tmp_path / str(packed), coreset, model, max_steps=9))
    assert largest_difference(*results) < 1e-9


def test_reuse_runs_no_block_twice(tmp_path: Path) -> None:
    """With checkpointing a block runs in the scoring forward and in the backward's recomputation, not in between."""
    runs = {}
    for reuse in (False, True):
        model = tiny_model(lora=False)
        calls: list[bool] = []
        # Inside of the block, since transformers 5 leaves hooks on the block itself out of its checkpoint; and before
        # and not after, since recomputation may stop as soon as it has what is needed.
        inner = model.model.layers[0].self_attn
        inner.register_forward_pre_hook(lambda module, _, calls=calls: calls.append(module.training))
        coreset = CoresetConfig(scoring={"way": "full", "reuse": reuse})
        calls_before: list[int] = []

        class Began(TrainerCallback):
            def __init__(self, calls: list[bool], before: list[int]) -> None:
                self.calls, self.before = calls, before

            def on_step_begin(self, *_: Any, **__: Any) -> None:
                self.before.append(sum(self.calls))

        # the first step looks at the model's loss besides
        trained(
            tmp_path / str(reuse),
            coreset,
            model,
            max_steps=3,
            extra={"callbacks": [Began(calls, calls_before)]},
            **CHECKPOINTING,
        )
        runs[reuse] = sum(calls) - calls_before[1]
    assert runs[False] == 8  # 2 steps of 2 micro-batches: forward and recomputation
    assert runs[True] == 4


def test_auto_reuses_where_there_is_checkpointing_and_no_dropout(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, dropout, settings in (("plain", 0.0, {}), ("dropout", 0.1, CHECKPOINTING), ("fits", 0.0, CHECKPOINTING)):
        trained(tmp_path / name, CoresetConfig(scoring="full"), tiny_model(dropout=dropout), max_steps=1, **settings)
        assert ("reuse_mb" in lines(tmp_path / name)[0]) == (name == "fits")
    assert caplog.text.count("The scoring forward is not reused for training. Dropout or noise is active") == 1


# ---- TRL -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning:trl")
@pytest.mark.parametrize("selector", ["balanced", "random"])
def test_reuse_in_trls_trainer(tmp_path: Path, selector: str) -> None:
    pytest.importorskip("trl", reason="the extra trl is not installed")
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig

    from corebatch.trainer import CoresetSFTTrainer
    from training import mixture

    core = Tokenizer(models.WordLevel({f"w{n}": n for n in range(48)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="w0", eos_token="w2")
    results = []
    for reuse in (False, True):
        made = CoresetSFTTrainer(
            model=tiny_model("gpt2", dtype=torch.float64),
            args=SFTConfig(
                str(tmp_path / str(reuse)), per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=4,
                learning_rate=5e-3, report_to=[], disable_tqdm=True, use_cpu=True, bf16=False, save_strategy="no",
                gradient_checkpointing=True, seed=3,
            ),
            train_dataset=mixture(96),
            processing_class=tokenizer,
            coreset=CoresetConfig(selector=selector, scorer="last_layer", scoring={"way": "full", "reuse": reuse}),
        )  # fmt: skip
        results.append(weights(run(made)))
        assert (lines(tmp_path / str(reuse))[0].get("reuse_mb", 0) > 0) == (reuse and selector == "balanced")
    assert largest_difference(*results) < 1e-10


def test_with_unknown_score_every_example_is_scored_once(tmp_path):
    coreset = CoresetConfig(scoring={"way": "remembered", "unknown": "score"})
    made = run(trainer(tmp_path, coreset=coreset, max_steps=15))  # 96 examples, 16 a step: six steps are an epoch
    found = lines(tmp_path)
    assert [line["examples_scored"] for line in found] == [16] * 6 + [0] * 9
    assert all(line["pool_loss"] is not None for line in found[:6])
    assert [line["scoring"] for line in found] == ["remembered"] * 15
    assert len(made._run.scoring.memory) == 96


def test_a_window_counts_its_own_tokens(tmp_path):
    run(trainer(tmp_path, coreset=CoresetConfig(scoring={"way": "window", "tokens": 6}), max_steps=3))
    for line in lines(tmp_path):
        assert line["tokens_scored"] <= 6 * line["examples_scored"]
        assert 0 <= line["padding_scored"] < 1

"""What a checkpoint holds of the selection, and how one is found whole or not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from corebatch.batch.method import CoresetStep
from corebatch.errors import CheckpointError, CorebatchError
from corebatch.record.checkpoint import MARKER, TENSORS, last_complete, load_state, save_state
from corebatch.trainer import CoresetConfig

COLM = CoresetConfig.colm(pool_factor=4)


def stepped(config: CoresetConfig = COLM, updates: int = 3) -> CoresetStep:
    step = config.build()
    if step.normalise is not None:
        for number in range(updates):
            step.normalise.update(torch.full((2, 1), float(number + 1)))
    return step


def saved(folder: Path, config: CoresetConfig = COLM, at: int = 5) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": at}))
    (folder / "optimizer.pt").write_bytes(bytes(100))
    save_state(folder, stepped(config), config.to_dict(), at)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        COLM,
        CoresetConfig(),
        CoresetConfig.colm(small_sources=("a", "b")),
        CoresetConfig(selector_options={"floor": 0.5}),
    ],
    ids=["colm", "recommended", "tuple", "options"],
)
def test_the_round_trip(tmp_path: Path, config: CoresetConfig) -> None:
    folder, step = saved(tmp_path / "checkpoint-5", config), config.build()
    assert load_state(folder, step, config.to_dict()) == 5
    if step.normalise is not None:
        original = stepped(config)
        assert original.normalise is not None
        rows = torch.linspace(-2, 2, 7)[:, None]
        assert torch.equal(step.normalise(rows), original.normalise(rows))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [TENSORS, MARKER, "optimizer.pt", "trainer_state.json"]
    )


def test_saving_again_replaces(tmp_path: Path) -> None:
    folder = saved(tmp_path, at=3)
    saved(tmp_path, at=7)
    assert load_state(folder, COLM.build(), COLM.to_dict()) == 7


def test_a_save_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text('{"global_step": 0}')
    save_state(tmp_path, COLM.build(), COLM.to_dict(), 0)
    step = COLM.build()
    assert load_state(tmp_path, step, COLM.to_dict()) == 0
    assert step.normalise is not None
    assert step.normalise.state_dict() == {}


def cut(path: Path, keep: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def rewrite(folder: Path, **values: Any) -> None:
    state = json.loads((folder / MARKER).read_text())
    (folder / MARKER).write_text(json.dumps({**state, **values}))


@pytest.mark.parametrize(
    "damage, found",
    [
        (lambda folder: (folder / MARKER).unlink(), f"Found no {MARKER}: the save was cut off"),
        (lambda folder: (folder / TENSORS).unlink(), f"{TENSORS} is missing"),
        (lambda folder: (folder / "trainer_state.json").unlink(), "trainer_state.json is missing"),
        (lambda folder: (folder / "optimizer.pt").unlink(), "optimizer.pt is missing"),
        (lambda folder: cut(folder / "optimizer.pt", 0.5), "optimizer.pt should have 100 bytes and has 50"),
        (lambda folder: cut(folder / MARKER, 0.5), "JSONDecodeError"),
        (lambda folder: cut(folder / MARKER, 0.0), "JSONDecodeError"),
        (lambda folder: cut(folder / "trainer_state.json", 0.5), "trainer_state.json should have"),
        (lambda folder: cut(folder / TENSORS, 0.9), f"{TENSORS} should have"),
        (lambda folder: flip(folder / TENSORS), f"{TENSORS} was changed"),
        (lambda folder: (folder / MARKER).write_text("{}"), "KeyError: 'files'"),
        (lambda folder: (folder / MARKER).write_text("[]"), "TypeError"),
        (lambda folder: rewrite(folder, coreset=[1]), "TypeError"),
        (lambda folder: rewrite(folder, global_step=6), f"Found 6 in {MARKER}, 5"),
        (lambda folder: rewrite(folder, global_step=None), "TypeError"),
        (lambda folder: rewrite(folder, files={}) or (folder / TENSORS).write_bytes(b"x"), "SafetensorError"),
        (lambda folder: rewrite(folder, files={}) or (folder / "trainer_state.json").write_text("[]"), "TypeError"),
        (lambda folder: rewrite(folder, files={}) or (folder / "trainer_state.json").write_text("{}"), "KeyError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_checkpoint_is_an_error_and_changes_nothing(tmp_path: Path, damage: Any, found: str) -> None:
    folder, step = saved(tmp_path / "checkpoint-5"), COLM.build()
    damage(folder)
    with pytest.raises(CheckpointError) as caught:
        load_state(folder, step, COLM.to_dict())
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, CorebatchError)
    assert str(folder) in str(caught.value)
    assert found in str(caught.value)
    assert step.normalise is not None
    assert step.normalise.state_dict() == {}


def test_other_settings_are_named_and_change_nothing(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoint-5")
    other = CoresetConfig.colm(pool_factor=8, seed=3)
    step = other.build()
    with pytest.raises(CheckpointError) as caught:
        load_state(folder, step, other.to_dict())
    message = str(caught.value)
    assert "pool_factor was 4 and is 8" in message
    assert "seed was 0 and is 3" in message
    assert "selector was" not in message
    assert step.normalise is not None
    assert step.normalise.state_dict() == {}


def test_another_cut_into_micro_batches_goes_on_with_a_warning(tmp_path: Path, caplog) -> None:
    """The updates are the same but for rounding. In checkpoints from before it was a setting rows were sorted."""
    before, same = CoresetConfig(micro_batches="length"), CoresetConfig(micro_batches={"by": "length"})
    folder = saved(tmp_path / "checkpoint-5", before)
    rewrite(folder, coreset={key: value for key, value in before.to_dict().items() if key != "micro_batches"})
    assert load_state(folder, same.build(), same.to_dict()) == 5
    assert caplog.messages == []
    capped = CoresetConfig(micro_batches={"by": "positions", "most": 512})
    assert load_state(folder, capped.build(), capped.to_dict()) == 5
    assert "micro_batches length, and the run goes on with {'by': 'positions', 'most': 512}" in caplog.text


@pytest.mark.parametrize("loss, other", [("token_mean", "sources"), ("example_mean", "tokens")])
def test_a_checkpoint_from_before_there_were_objectives_loads(tmp_path: Path, loss: str, other: str) -> None:
    config = CoresetConfig(loss=loss)
    folder = saved(tmp_path / "checkpoint-5", config)
    later = ("objective", "weight_column", "source_tokens", "sampling", "replay", "loss_by_source")
    rewrite(folder, coreset={key: value for key, value in config.to_dict().items() if key not in later})
    assert load_state(folder, config.build(), config.to_dict()) == 5
    changed = config.changed(objective=other)
    with pytest.raises(CheckpointError, match=f"objective was '{config.objective}' and is '{other}'"):
        load_state(folder, changed.build(), changed.to_dict())


def test_a_checkpoint_from_before_leftovers_were_a_setting_loads(tmp_path: Path) -> None:
    """They went by largest remainders then; the run goes on, and says with which version it began."""
    config = CoresetConfig(selector="stratified")
    folder = saved(tmp_path / "checkpoint-5", config)
    rewrite(folder, coreset={key: value for key, value in config.to_dict().items() if key != "leftovers"})
    assert load_state(folder, config.build(), config.to_dict()) == 5
    other = CoresetConfig(selector="stratified", leftovers="smallest")
    with pytest.raises(CheckpointError, match="leftovers was 'random' and is 'smallest'"):
        load_state(folder, other.build(), other.to_dict())


def test_what_scoring_does_with_memory_may_change_on_the_way(tmp_path: Path) -> None:
    folder = saved(tmp_path / "checkpoint-5", CoresetConfig(scoring="full"))
    smaller = CoresetConfig(scoring={"way": "full", "rows": 2, "reuse_gb": 0.5})
    assert load_state(folder, smaller.build(), smaller.to_dict()) == 5
    other = CoresetConfig(scoring={"way": "window", "rows": 2})
    with pytest.raises(CheckpointError, match="scoring was 'full' and is 'window'"):
        load_state(folder, other.build(), other.to_dict())


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere"):
        load_state(tmp_path / "nowhere", COLM.build(), COLM.to_dict())


def test_the_last_complete_one(tmp_path: Path) -> None:
    for number in (2, 9, 10):
        saved(tmp_path / f"checkpoint-{number}", at=number)
    (tmp_path / "checkpoint-100").mkdir()  # cut off before the marker
    (tmp_path / "checkpoint-100" / TENSORS).write_bytes(b"")
    saved(tmp_path / "checkpoint-best")
    saved(tmp_path / "checkpoint-200-old")
    assert last_complete(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize("folder", ["empty", "missing"])
def test_no_complete_one_is_an_error(tmp_path: Path, folder: str) -> None:
    (tmp_path / "empty" / "checkpoint-1").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=f"{folder} should hold a complete checkpoint .* Found none"):
        last_complete(tmp_path / folder)

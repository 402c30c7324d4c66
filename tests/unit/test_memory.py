"""What the memory gives back of what it took, and what it says of what it never saw."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from corebatch.memory import WIDTH, FeatureMemory, Recalled
from corebatch.scoring.sketch import count_sketch

HALF = 2e-3  # relative: directions are kept in half precision
TOKENS = torch.tensor([4, 9, 16, 25, 1, 36])
IDS = torch.tensor([7, 3, 1000, 12, 5, 8])


def rows(count: int = 6, width: int = 40, *, seed: int = 0) -> Tensor:
    """Features whose lengths go over six orders of magnitude."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return features * torch.logspace(-3, 3, count, dtype=torch.float64).unsqueeze(1)


def filled(features: Tensor, *, step: int = 0, losses: Tensor | None = None, tokens: Tensor = TOKENS) -> FeatureMemory:
    memory = FeatureMemory(seed=0)
    count = len(features)
    memory.update(IDS[:count], memory.narrow(features), tokens[:count], step, losses)
    return memory


def recalled(memory: FeatureMemory, *, step: int = 0, max_age: int | None = None) -> Recalled:
    return memory.recall(IDS, TOKENS, step, max_age)


def assert_same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True)


def test_features_and_lengths_come_back() -> None:
    features = rows()
    found = recalled(filled(features))
    assert found.known.all()
    assert found.features.dtype == torch.float32
    torch.testing.assert_close(found.sizes, features.norm(dim=1), rtol=1e-6, atol=0)
    errors = (found.features.double() - features).norm(dim=1) / features.norm(dim=1)
    assert float(errors.max()) < HALF


@pytest.mark.parametrize("scale", [1e-15, 1e-6, 1.0, 1e6, 1e15])
def test_half_precision_does_not_limit_the_scale(scale: float) -> None:
    features = rows() * scale
    found = recalled(filled(features))
    torch.testing.assert_close(found.sizes, features.norm(dim=1), rtol=1e-5, atol=0)
    torch.testing.assert_close(found.features.norm(dim=1).double(), features.norm(dim=1), rtol=HALF, atol=0)


def test_wide_features_become_narrow_with_their_lengths_and_about_their_angles() -> None:
    features = rows(width=8 * WIDTH)
    features[5] = features[0] * 100 + features[1] * 100 / 16
    memory = FeatureMemory(seed=0)
    narrow = memory.narrow(features)
    assert narrow.shape == (6, WIDTH)
    torch.testing.assert_close(narrow.norm(dim=1).double(), features.norm(dim=1), rtol=1e-5, atol=0)

    def angles(values: Tensor) -> Tensor:
        unit = torch.nn.functional.normalize(values.double(), dim=1)
        return unit @ unit.T

    assert float((angles(narrow) - angles(features)).abs().max()) < 4 / WIDTH**0.5
    assert torch.equal(narrow, FeatureMemory(seed=0).narrow(features)), "ranks and resumed runs sketch alike"
    assert not torch.equal(narrow, FeatureMemory(seed=1).narrow(features))


def test_nothing_is_known_of_what_was_never_seen() -> None:
    found = recalled(FeatureMemory(seed=0))
    assert not found.known.any()
    assert found.features.shape == (6, 0)
    torch.testing.assert_close(found.sizes, TOKENS.double().sqrt())
    torch.testing.assert_close(found.losses, TOKENS.double())


def test_the_unknown_are_guessed_at_the_level_of_the_known() -> None:
    features = torch.nn.functional.normalize(rows(3)) * 5 * TOKENS[:3].sqrt().unsqueeze(1)
    found = recalled(filled(features, losses=2.5 * TOKENS[:3]))
    assert found.known.tolist() == [True] * 3 + [False] * 3
    torch.testing.assert_close(found.sizes, 5 * TOKENS.double().sqrt(), rtol=1e-6, atol=0)
    torch.testing.assert_close(found.losses, 2.5 * TOKENS.double(), rtol=1e-6, atol=0)
    assert not found.features[3:].any()


def test_examples_without_a_trained_token_are_guessed_as_nothing() -> None:
    found = filled(rows(3)).recall(IDS[3:], torch.zeros(3, dtype=torch.long), 0, None)
    assert found.sizes.tolist() == [0, 0, 0]


def test_what_is_remembered_drifts_with_the_level() -> None:
    """Gradients became ten times smaller: after the newer examples the older ones count as smaller too."""
    features = torch.nn.functional.normalize(rows()) * TOKENS.sqrt().unsqueeze(1)
    memory = filled(features[:3])
    for step in range(1, 60):
        memory.update(IDS[3:], memory.narrow(features[3:] / 10), TOKENS[3:], step)
    found = recalled(memory, step=60)
    torch.testing.assert_close(found.sizes, features.norm(dim=1) / 10, rtol=1e-3, atol=0)
    torch.testing.assert_close(found.features.norm(dim=1).double(), found.sizes, rtol=HALF, atol=0)


def test_one_update_moves_the_level_by_a_fifth() -> None:
    features = torch.nn.functional.normalize(rows()) * TOKENS.sqrt().unsqueeze(1)
    memory = filled(features[:3])
    memory.update(IDS[3:], memory.narrow(features[3:] * math.e), TOKENS[3:], 1)
    found = recalled(memory, step=1)
    expected = features.norm(dim=1) * torch.tensor([math.exp(0.2)] * 3 + [math.e] * 3)
    torch.testing.assert_close(found.sizes, expected, rtol=1e-6, atol=0)


def test_what_is_too_old_is_not_known() -> None:
    memory = filled(rows(3), step=10, losses=torch.ones(3))
    memory.update(IDS[3:], memory.narrow(rows()[3:]), TOKENS[3:], 12)
    for step, known in ((12, 6), (13, 6), (14, 3), (15, 3), (16, 0)):
        found = recalled(memory, step=step, max_age=3)
        assert int(found.known.sum()) == known
        assert not found.features[~found.known].any()
    assert recalled(memory, step=10**6).known.all()


def test_of_an_example_that_comes_again_the_last_counts() -> None:
    memory = filled(rows())
    features = rows(seed=1)
    memory.update(IDS, memory.narrow(features), TOKENS, 3)
    assert len(memory) == 6
    torch.testing.assert_close(recalled(memory, step=3, max_age=0).features.double(), features, rtol=0.1, atol=1)
    twice, kept = torch.cat([IDS, IDS]), memory.narrow(torch.cat([rows(), features]))
    memory.update(twice, kept, torch.cat([TOKENS, TOKENS]), 4, torch.arange(12.0))
    assert len(memory) == 6
    found = recalled(memory, step=4)
    torch.testing.assert_close(found.sizes, features.norm(dim=1), rtol=1e-5, atol=0)
    assert found.losses.tolist() == [6, 7, 8, 9, 10, 11]


def test_it_grows_and_keeps_what_it_has() -> None:
    memory, width = FeatureMemory(seed=0), 3
    values = torch.arange(1.0, 5001.0)
    for start in range(0, 5000, 700):
        part = slice(start, min(start + 700, 5000))
        features = values[part].unsqueeze(1).repeat(1, width)
        memory.update(torch.arange(10_000, 15_000)[part], features, torch.ones(len(features)).long(), start)
        assert len(memory) == min(start + 700, 5000)
    found = memory.recall(torch.arange(10_000, 15_000), torch.ones(5000).long(), 5000, None)
    assert found.known.all()
    sizes = found.sizes / found.sizes[0]  # the level moved meanwhile, for all rows of one update alike
    torch.testing.assert_close(sizes[:700], values[:700].double(), rtol=1e-5, atol=0)


def test_nothing_to_take_changes_nothing() -> None:
    memory = filled(rows())
    before = memory.state_dict()
    nothing = torch.zeros(0, dtype=torch.long)
    memory.update(nothing, torch.zeros(0, 40), nothing, 9)
    assert_same_state(memory.state_dict(), before)


def test_features_of_zeros_are_known_to_be_nothing() -> None:
    memory = filled(torch.zeros(6, 40), losses=torch.zeros(6))
    found = recalled(memory)
    assert found.known.all()
    assert not found.sizes.any()
    assert not found.features.any()
    mixed = rows()
    mixed[2] = 0
    memory.update(IDS, memory.narrow(mixed), TOKENS, 1)
    found = recalled(memory, step=1)
    assert found.sizes[2] == 0
    assert bool(torch.isfinite(found.features).all())
    assert bool((found.sizes[[0, 1, 3, 4, 5]] > 0).all())


def test_the_loss_of_what_was_learnt_from_training_is_guessed() -> None:
    memory = filled(rows(3), losses=torch.tensor([8.0, 18.0, 32.0]))  # two a token
    memory.update(IDS[3:], memory.narrow(rows()[3:]), TOKENS[3:], 1)
    found = recalled(memory, step=1)
    assert found.known.all()
    assert found.losses.tolist() == [8, 18, 32, 50, 2, 72]


@pytest.mark.parametrize("count", [0, 3, 6])
def test_it_survives_a_checkpoint_bit_for_bit(tmp_path: Path, count: int) -> None:
    memory = FeatureMemory(seed=0)
    if count:
        memory = filled(rows()[:count], losses=torch.arange(float(count)))
    save_file({key: value.contiguous() for key, value in memory.state_dict().items()}, tmp_path / "memory.safetensors")
    again = FeatureMemory(seed=0)
    again.load_state_dict(load_file(tmp_path / "memory.safetensors"))
    assert len(again) == count
    for number in range(2):  # and goes on alike
        one, other = (recalled(m, step=number) for m in (memory, again))
        for name in ("known", "features", "sizes", "losses"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        for m in (memory, again):
            m.update(IDS + 2, m.narrow(rows(seed=2)), TOKENS, number)
    assert_same_state(memory.state_dict(), again.state_dict())


def test_the_state_holds_no_spare_room() -> None:
    state = filled(rows()).state_dict()
    assert {len(state[key]) for key in ("ids", "directions", "lengths", "losses", "steps")} == {6}
    assert state["directions"].dtype == torch.float16


def test_the_sketch_is_sums_of_signed_columns() -> None:
    features, width = rows(width=300), 32
    found = count_sketch(features, width, torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(width, (300,), generator=generator)
    signs = torch.randint(2, (300,), generator=generator) * 2 - 1
    expected = torch.zeros(6, width, dtype=features.dtype).index_add_(1, places, features * signs)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert count_sketch(features, 300, generator) is features

"""`sgd` and `muon`: what they do to features, and that they need what they need."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from corebatch.batch.method import CoresetStep
from corebatch.errors import ConfigError, InputError
from corebatch.scoring import LastLayer, Loss
from corebatch.seeds import seeded
from corebatch.selectors import make_selector
from corebatch.trainer import CoresetConfig
from corebatch.transforms import NORMALISERS, Muon, Sgd, make_normaliser
from models import tiny_batch, tiny_model
from training import run, trainer

SHAPES = [(6, 3), (3, 6), (3, 2)]
COLUMNS = 18 + 18 + 6


def features(rows: int = 9, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, COLUMNS, generator=generator, dtype=torch.float64) + 0.3


def matrices(rows: Tensor) -> list[Tensor]:
    sizes = [outputs * inputs for outputs, inputs in SHAPES]
    return [part.view(-1, *shape) for part, shape in zip(rows.split(sizes, dim=1), SHAPES, strict=True)]


def orthogonal_factor(matrix: Tensor) -> Tensor:
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def test_names() -> None:
    assert isinstance(make_normaliser("sgd"), Sgd)
    assert isinstance(make_normaliser("muon"), Muon)
    assert all(NORMALISERS[name].linear for name in ("sgd", "muon", "optimizer"))


def test_sgd_changes_nothing() -> None:
    given = features()
    assert Sgd()(given) is given


def test_muon_sends_the_mean_to_its_orthogonal_factor() -> None:
    given = features()
    mapped = Muon()(given, shapes=SHAPES)
    assert mapped.shape == given.shape
    for mean, found in zip(matrices(given.mean(0, True)), matrices(mapped.mean(0, True)), strict=True):
        torch.testing.assert_close(found[0], orthogonal_factor(mean[0]))


def test_muon_is_the_derivative_of_the_step_and_a_multiple_of_it() -> None:
    """Row by row and block by block, by differences of orthogonal factors."""
    given = features()
    mapped = matrices(Muon()(given, shapes=SHAPES))
    for block, found in zip(matrices(given), mapped, strict=True):
        mean, h = block.mean(0), 1e-6
        for row, expected in zip(found, block, strict=True):
            slope = (orthogonal_factor(mean + h * expected) - orthogonal_factor(mean - h * expected)) / (2 * h)
            share = (expected * mean).sum() / mean.square().sum()
            torch.testing.assert_close(row, slope + share * orthogonal_factor(mean), rtol=1e-4, atol=1e-6)


def newton_schulz(matrix: Tensor) -> Tensor:
    """Muon's own step: five iterations on the shorter side."""
    x = matrix / matrix.norm() if matrix.shape[0] <= matrix.shape[1] else matrix.mT / matrix.norm()
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.mT


@pytest.mark.parametrize("shape", [(128, 8), (16, 64), (64, 32), (32, 48), (48, 32)])
def test_what_leaving_out_half_of_the_rows_does_to_muons_step(shape: tuple[int, int]) -> None:
    """The change of the mean of mapped rows points along the change of the original's step."""
    cosines = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randn(128, *shape, generator=generator, dtype=torch.float64)
        rows += 0.3 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        mapped = Muon()(rows.flatten(1), shapes=[shape]).view_as(rows)
        found = (mapped[:64].mean(0) - mapped.mean(0)).flatten()
        wanted = (newton_schulz(rows[:64].mean(0)) - newton_schulz(rows.mean(0))).flatten()
        cosines.append(float(torch.nn.functional.cosine_similarity(found, wanted, dim=0)))
    assert sum(cosines) / len(cosines) > 0.8


@pytest.mark.parametrize("shape", [(32, 32), (4, 5), (7, 5)])
def test_muon_refuses_matrices_that_are_nearly_square(shape: tuple[int, int]) -> None:
    rows = torch.ones(3, 18 + shape[0] * shape[1])
    with pytest.raises(
        InputError, match=rf"1\.5 times the shorter.* Found {shape[0]} x {shape[1]}\. Use normalise none"
    ):
        Muon()(rows, shapes=[(6, 3), shape])


def test_muon_is_linear_in_the_rows() -> None:
    """One map for all rows: a weighted mean of mapped rows is the mapped weighted mean."""
    given = features()
    weights = torch.rand(len(given), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mapped = Muon()(given, shapes=SHAPES)
    # A row added whose opposite is added as well leaves the mean as it is, and so the map.
    extra = weights @ given / weights.sum()
    mean = given.mean(0)
    both = torch.cat([given, extra.unsqueeze(0), (2 * mean - extra).unsqueeze(0)])
    torch.testing.assert_close(both.mean(0), mean)
    torch.testing.assert_close(Muon()(both, shapes=SHAPES)[len(given)], weights @ mapped / weights.sum())


def test_muon_is_the_derivative_of_the_orthogonal_factor_outside_its_range() -> None:
    generator = torch.Generator().manual_seed(2)
    mean = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    u = torch.linalg.svd(mean, full_matrices=False)[0]
    change = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    change -= u @ (u.mT @ change)
    derivative = (orthogonal_factor(mean + 1e-6 * change) - orthogonal_factor(mean - 1e-6 * change)) / 2e-6
    rows = torch.stack([mean + change, mean - change]).flatten(1)
    mapped = Muon()(rows, shapes=[(6, 3)]).view(2, 6, 3)
    torch.testing.assert_close((mapped[0] - mapped[1]) / 2, derivative, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-10, 1.0, 1e15])
def test_muon_does_not_see_the_scale_of_gradients(scale: float, dtype: torch.dtype) -> None:
    given = features().to(dtype)
    mapped = Muon()(given * scale, shapes=SHAPES)
    assert mapped.dtype == dtype
    torch.testing.assert_close(mapped, Muon()(given, shapes=SHAPES), rtol=1e-3, atol=1e-4)


def test_muon_does_not_blow_up_what_is_nearly_zero() -> None:
    given = torch.zeros(2, 24, dtype=torch.float64)
    given[:, 0], given[:, 5] = 1.0, 1e-9  # singular values 1, 1e-9, 0, 0
    mapped = Muon()(given, shapes=[(6, 4)])
    assert float(mapped[0, 0]) == pytest.approx(1.0)
    assert float(mapped[0, 5]) == pytest.approx(1e-9 * 3.4445**5)
    assert float(mapped[:, 6:].abs().max()) < 1e-15


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_row_in_a_direction_that_the_mean_has_not_is_raised_as_the_floor_is(shape: tuple[int, int]) -> None:
    mean, row = torch.zeros(2, *shape, dtype=torch.float64)
    mean[0, 0], row[3, 3] = 1.0, 1e-7
    mapped = Muon()(torch.stack([mean + row, mean - row]).flatten(1), shapes=[shape]).view(2, *shape)
    torch.testing.assert_close((mapped[0] - mapped[1]) / 2, row * 3.4445**5)


def test_muon_where_the_mean_is_zero() -> None:
    given = torch.cat([features(2), -features(2)])
    assert torch.equal(Muon()(given, shapes=SHAPES), given)
    assert bool((Muon()(torch.zeros(3, COLUMNS), shapes=SHAPES) == 0).all())


@pytest.mark.parametrize("shapes, message", [(None, "scorer 'last_layer'"), ([(6, 3), (2, 2)], "6 x 3, 2 x 2 are 22")])
def test_features_that_are_no_such_matrices_are_an_error(shapes: list[tuple[int, int]] | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Muon()(features(), shapes=shapes)


@pytest.mark.parametrize("floor", [0.0, -1.0, 2.0, float("nan")])
def test_a_floor_out_of_range_is_an_error(floor: float) -> None:
    with pytest.raises(ConfigError, match="muon's floor"):
        Muon(floor=floor)


# Which features are matrices, and the way to the normaliser


@pytest.mark.parametrize(
    "kind, lora, options, shapes",
    [
        ("llama", True, {}, [(16, 3)]),  # one block for every eight of the model, one at least
        ("llama", True, {"num_blocks": 3}, [(16, 3)] * 3),
        ("llama", False, {"num_blocks": 2}, [(16, 32)] * 2),
        ("gpt2", False, {"num_blocks": 1}, [(32, 32)]),
        ("gpt2", True, {"num_blocks": 1}, [(32, 3)]),
        ("llama", False, {"max_dim": 100}, None),  # projected: no matrices of a weight
    ],
)
def test_shapes_of_last_layer(
    kind: str, lora: bool, options: dict[str, int], shapes: list[tuple[int, int]] | None
) -> None:
    scorer = LastLayer(**options)
    assert scorer.shapes() is None
    found = scorer.score(tiny_model(kind, lora=lora), tiny_batch())
    assert scorer.shapes() == shapes
    assert shapes is None or found.shape[1] == sum(outputs * inputs for outputs, inputs in shapes)


def test_a_step_gives_shapes_to_muon() -> None:
    scorer = LastLayer()
    scores = scorer.run(tiny_model("llama", lora=True), tiny_batch(rows=8))
    step = CoresetStep(scorer=scorer, selector=make_selector("pivotal"), normalise=Muon())
    choice = step.choose(scores, torch.zeros(8, dtype=torch.long), 4, step=0)
    expected = make_selector("pivotal").select(
        Muon()(scores.features, shapes=scorer.shapes()), 4, seeded(0, 0, "select"), losses=scores.losses
    )
    assert torch.equal(choice.selection.indices, expected.indices)


def test_muon_after_a_scorer_without_matrices_is_an_error() -> None:
    scorer = Loss()
    scores = scorer.run(tiny_model("llama"), tiny_batch(rows=8))
    step = CoresetStep(scorer=scorer, selector=make_selector("importance"), normalise=Muon())
    with pytest.raises(InputError, match="scorer 'last_layer'"):
        step.choose(scores, torch.zeros(8, dtype=torch.long), 4, step=0)


@pytest.mark.parametrize("normalise", ["sgd", "muon", Muon(floor=0.1)])
def test_a_step_of_training(normalise: str | Muon, tmp_path: Path) -> None:
    made = run(trainer(tmp_path, coreset=CoresetConfig(normalise=normalise), max_steps=2))
    assert made.state.global_step == 2

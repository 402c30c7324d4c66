"""Inclusion probabilities, unbiasedness, and what spreading and balancing gain."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from corebatch.selectors import SELECTORS, Selector, make_selector
from corebatch.selectors.balanced import balance
from corebatch.selectors.cube import balancing_variables
from corebatch.selectors.gradient_matching import pursue
from corebatch.selectors.gram_schmidt_walk import cheapest_change
from corebatch.selectors.kernels.greedy import greedy_loop, greedy_numpy
from corebatch.selectors.kernels.inclusion import inclusion_probabilities, systematic_sample
from corebatch.types import Selection, SourceGroup

UNBIASED = [name for name in ("importance", "pivotal", "gram_schmidt_walk", "cube") if name in SELECTORS]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _features(rows: int = 20, columns: int = 4, seed: int = 0) -> Tensor:
    """Rows of very different norm with a common direction."""
    generator = _generator(seed)
    norms = torch.rand(rows, 1, generator=generator, dtype=torch.float64) ** 2 * 3 + 0.1
    return (torch.randn(rows, columns, generator=generator, dtype=torch.float64) + 0.5) * norms


def _clustered(clusters: int = 8, each: int = 16) -> Tensor:
    generator = _generator(3)
    centres = torch.randn(clusters, 12, generator=generator, dtype=torch.float64)
    noise = 0.05 * torch.randn(clusters * each, 12, generator=generator, dtype=torch.float64)
    return centres.repeat_interleave(each, 0) + noise


def draws(selector: Selector, features: Tensor, budget: int, count: int) -> list[Selection]:
    generator = _generator(17)
    return [selector.select(features, budget, generator) for _ in range(count)]


def estimate(selection: Selection, features: Tensor) -> Tensor:
    """(1/M) sum_i w_i f_i."""
    return (selection.weights.double()[:, None] * features[selection.indices]).mean(0)


def mean_square_error(selector: Selector, features: Tensor, budget: int, count: int = 60) -> float:
    mean = features.mean(0)
    errors = [(estimate(each, features) - mean).square().sum() for each in draws(selector, features, budget, count)]
    return float(torch.stack(errors).mean())


# Inclusion probabilities


def test_inclusion_is_in_proportion_to_the_norm() -> None:
    features = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0, 2.0])).double()
    found = inclusion_probabilities(features, 2, 0.1)
    torch.testing.assert_close(found, torch.tensor([1.0, 2.0, 3.0, 4.0, 2.0]).double() / 6)


def test_inclusion_is_capped_at_one_again_and_again() -> None:
    """3 * 20 / 29 is above 1; then 2 * 6 / 9 is above 1, which 3 * 6 / 29 was not; the last is shared."""
    features = torch.diag(torch.tensor([20.0, 6.0, 1.0, 1.0, 1.0])).double()
    found = inclusion_probabilities(features, 3, 0.001)
    torch.testing.assert_close(found, torch.tensor([1.0, 1.0, 1 / 3, 1 / 3, 1 / 3]).double())


@pytest.mark.parametrize("floor", [0.001, 0.1, 1.0])
@pytest.mark.parametrize("budget", [1, 7, 19])
def test_inclusion_sums_to_the_budget_and_bounds_the_weights(floor: float, budget: int) -> None:
    for seed in range(10):
        features = _features(seed=seed)
        features[seed % 5] = 0.0
        found = inclusion_probabilities(features, budget, floor)
        assert float(found.sum()) == pytest.approx(budget, abs=1e-12 * budget)
        assert float(found.min()) > 0.0
        assert float(found.max()) <= 1.0
        assert float((budget / (len(features) * found)).max()) <= (1 + floor) / floor + 1e-9


@pytest.mark.parametrize("floor", [0.001, 0.1])
def test_rows_of_zeros_share_what_is_left_of_the_budget(floor: float) -> None:
    """The mean that bounds them goes to zero, and no probability with it."""
    features = torch.diag(torch.tensor([19.0, 128.0, 12.0, *[0.0] * 6])).double()
    found = inclusion_probabilities(features, 8, floor)
    torch.testing.assert_close(found, torch.tensor([1.0] * 3 + [5 / 6] * 6, dtype=torch.float64))


@pytest.mark.parametrize("huge", [1e2, 1e4, 1e8, 1e14])
@pytest.mark.parametrize("budget", [2, 8, 15])
def test_one_enormous_row_does_not_make_all_others_alike(huge: float, budget: int) -> None:
    """It is taken for certain; the others are drawn as they are without it, but for a floor a bit higher."""
    features = _features(40)
    features[7] *= huge
    others = torch.arange(40) != 7
    found = inclusion_probabilities(features, budget, 0.01)
    alone = inclusion_probabilities(features[others], budget - 1, 0.01)
    assert float(found[7]) == 1.0
    torch.testing.assert_close(found[others], alone, rtol=0.01, atol=0.0)
    assert float((budget / (40 * found)).max()) <= 1.01 / 0.01


@pytest.mark.parametrize("certain", [1, 5, 11, 12, 18])
@pytest.mark.parametrize("floor", [0.001, 0.1, 1.0])
def test_weights_are_bounded_with_enormous_rows(certain: int, floor: float) -> None:
    features = _features(40)
    features[:certain] *= 1e9
    for budget in (1, 12, 39):
        found = inclusion_probabilities(features, budget, floor)
        assert float(found.sum()) == pytest.approx(budget, abs=1e-9)
        assert float(found.max()) <= 1.0
        assert float((budget / (40 * found)).max()) <= (1 + floor) / floor + 1e-6


@pytest.mark.parametrize("value", [0.5, 1 / 3, 0.7, 0.9, 1.0 - 1 / 30, 1 / 30])
def test_systematic_sample_has_its_size_whatever_the_rounding(value: float) -> None:
    """The sum is an integer in truth, and not quite when it is added up."""
    inclusion = torch.full((30,), value, dtype=torch.float64)
    inclusion[:3] = 1.0
    budget = 3 + round(27 * value)
    inclusion[3:] *= (budget - 3) / float(inclusion[3:].sum())
    for seed in range(50):
        rows = systematic_sample(inclusion, budget, _generator(seed))
        assert rows.tolist() == sorted(set(rows.tolist()))
        assert len(rows) == budget
        assert rows[:3].tolist() == [0, 1, 2], "certain rows"


# Unbiasedness


@pytest.mark.parametrize("name", UNBIASED)
@pytest.mark.parametrize("budget", [1, 6, 13])
def test_rows_are_included_as_often_as_they_should(name: str, budget: int) -> None:
    """Frequencies within 4.5 standard errors of pi; rows with pi = 1 always; weights exactly M / (N pi)."""
    features, count = _features(), 1500
    inclusion = inclusion_probabilities(features, budget, 0.1)
    chosen = torch.zeros(len(features), dtype=torch.float64)
    for selection in draws(make_selector(name), features, budget, count):
        chosen[selection.indices] += 1
        expected = budget / (len(features) * inclusion[selection.indices])
        torch.testing.assert_close(selection.weights, expected.float())
    error = (inclusion * (1 - inclusion) / count).sqrt()
    assert bool(((chosen / count - inclusion).abs() <= 4.5 * error + 1e-12).all())


@pytest.mark.parametrize("name", [*UNBIASED, "random"])
def test_the_weighted_mean_is_unbiased(name: str) -> None:
    features, count = _features(), 1200
    estimates = torch.stack([estimate(each, features) for each in draws(make_selector(name), features, 6, count)])
    error = estimates.std(dim=0) / math.sqrt(count)
    assert bool(((estimates.mean(0) - features.mean(0)).abs() < 4.5 * error).all())


@pytest.mark.parametrize("name", UNBIASED)
def test_the_weighted_mean_is_unbiased_over_groups(name: str) -> None:
    """A kept source and two chosen apart with budgets that are not in proportion."""
    features, count = _features(), 1200
    groups = [
        SourceGroup(name="kept", members=torch.tensor([1, 8]), budget=2, keep=True),
        SourceGroup(name="few", members=torch.tensor([0, 2, 3, 4, 5, 6, 7, 9]), budget=2),
        SourceGroup(name="many", members=torch.arange(10, 20), budget=7),
    ]
    selector, generator = make_selector(name), _generator(2)
    estimates = torch.stack(
        [estimate(selector.select(features, 11, generator, groups=groups), features) for _ in range(count)]
    )
    error = estimates.std(dim=0) / math.sqrt(count)
    assert bool(((estimates.mean(0) - features.mean(0)).abs() < 4.5 * error).all())


def test_balanced_is_nearly_unbiased() -> None:
    """The swaps bend the probabilities; the bias stays a small part of the error of importance sampling."""
    features = _features(rows=60, columns=30)
    estimates = torch.stack([estimate(each, features) for each in draws(make_selector("balanced"), features, 20, 400)])
    mean = features.mean(0)
    length = float(estimates.mean(0) @ mean / (mean @ mean))
    assert length == pytest.approx(1.0, abs=0.05)


# What the methods are for


def test_importance_beats_random_where_norms_differ() -> None:
    features = _features(rows=64)
    importance = mean_square_error(make_selector("importance"), features, 16)
    assert importance < 0.6 * mean_square_error(make_selector("random"), features, 16)


def test_pivotal_spreads_over_clusters() -> None:
    """One of each cluster, nearly: the squared error falls far below importance sampling's."""
    features = _clustered()
    pivotal = mean_square_error(make_selector("pivotal"), features, 16)
    assert pivotal < 0.3 * mean_square_error(make_selector("importance"), features, 16)


def test_balanced_reduces_the_error_and_keeps_the_mean_weight() -> None:
    features = _features(rows=64, columns=40)
    importance, balanced = make_selector("importance"), make_selector("balanced")
    assert mean_square_error(balanced, features, 16) < 0.5 * mean_square_error(importance, features, 16)
    spread = {
        selector.name: torch.stack([each.weights.mean() for each in draws(selector, features, 16, 60)]).std()
        for selector in (importance, balanced)
    }
    assert float(spread["balanced"]) < 0.7 * float(spread["importance"])


def test_balanced_without_swaps_is_importance() -> None:
    features = _features()
    none = SELECTORS["balanced"](max_swaps=0).select(features, 6, _generator(4))
    start = SELECTORS["importance"]().select(features, 6, _generator(4))
    assert none.indices.tolist() == start.indices.tolist()
    assert torch.equal(none.weights, start.weights)


def test_every_swap_lowers_the_error() -> None:
    features = _features(rows=40, columns=10)
    mean = features.mean(0)
    scale = float(torch.linalg.vector_norm(features, dim=1).mean())

    def error(swaps: int) -> float:
        selection = SELECTORS["balanced"](max_swaps=swaps).select(features, 12, _generator(5))
        constant = scale * (float(selection.weights.double().mean()) - 1.0)
        return float((estimate(selection, features) - mean).square().sum()) + constant**2

    errors = [error(swaps) for swaps in range(8)]
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(errors))
    assert errors[-1] < errors[0]


def test_certain_rows_are_never_swapped_out() -> None:
    features = _features(rows=20)
    features[3] *= 1000.0
    for selection in draws(make_selector("balanced"), features, 5, 30):
        assert 3 in selection.indices.tolist()


def test_balanced_swaps_beside_an_enormous_row() -> None:
    """Which is certain, and so no measure of what is still to be balanced."""
    features = _features(40, 6)
    features[3] = features[3] / features[3].norm() * 1e9
    inclusion = inclusion_probabilities(features, 12, 0.1)
    assert float(inclusion[3]) == 1.0
    others = torch.arange(40) != 3

    def error(rows: Tensor) -> float:
        rows = rows[rows != 3]
        missing = (features[rows] / inclusion[rows, None]).sum(0) - features[others].sum(0)
        return float(missing.square().sum())

    for seed in range(5):
        start = systematic_sample(inclusion, 12, _generator(seed))
        assert error(balance(features, inclusion, start, 12)) < 0.5 * error(start)


def test_random_and_stratified_draw_every_row_alike() -> None:
    for name in ("random", "stratified"):
        chosen = torch.zeros(12)
        for selection in draws(make_selector(name), torch.zeros(12, 1), 4, 1000):
            chosen[selection.indices] += 1
        assert bool(((chosen / 1000 - 1 / 3).abs() < 4.5 * math.sqrt(2 / 9 / 1000)).all())


def test_hard_takes_the_highest_losses_and_the_first_of_equals() -> None:
    losses = torch.tensor([0.5, 2.0, 1.0, 2.0, 1.0, 1.0])
    hard = make_selector("hard")
    assert hard.select(torch.zeros(6, 3), 3, losses=losses).indices.tolist() == [1, 2, 3]
    assert hard.select(torch.zeros(6, 3), 1, losses=losses).indices.tolist() == [1]
    assert hard.select(torch.zeros(6, 3), 4, losses=losses.double()).indices.tolist() == [1, 2, 3, 4]
    # A one-column feature is the loss; losses that are given come first.
    assert hard.select(losses[:, None], 3).indices.tolist() == [1, 2, 3]
    assert hard.select(losses[:, None], 1, losses=-losses).indices.tolist() == [0]
    with pytest.raises(ValueError, match="`hard` needs `losses`"):
        hard.select(torch.zeros(6, 3), 3)


def test_cluster_size_weights_count_the_nearest_rows() -> None:
    """Clusters of 1, 3 and 4 rows far apart: weights M / N times their sizes."""
    features = torch.tensor([0.0, 10.0, 10.1, 9.9, 20.0, 20.1, 19.9, 20.05])[:, None]
    selector = make_selector("facility_location", {"weights": "cluster_size"})
    assert selector.weighted
    assert not selector.per_source
    selection = selector.select(features, 3)
    torch.testing.assert_close(selection.weights, torch.tensor([1.0, 3.0, 4.0]) * 3 / 8)


def test_facility_location_metrics_differ() -> None:
    """Directions for cosine, positions for l1."""
    features = torch.tensor([[1.0, 0.0], [100.0, 0.0], [0.0, 1.0], [0.0, 1.1]])
    cosine = make_selector("facility_location", {"metric": "cosine"}).select(features, 2)
    assert cosine.indices.tolist() == [0, 2]
    assert 1 in make_selector("facility_location").select(features, 2).indices.tolist()


def _length(selection: Selection, features: Tensor) -> float:
    mean = features.mean(0)
    return float(estimate(selection, features) @ mean / (mean @ mean))


@pytest.mark.parametrize("budget, share", [(8, 0.95), (16, 0.8), (32, 0.5)])
def test_calibrated_meets_the_mean_and_keeps_length_and_mean_weight(budget: int, share: float) -> None:
    """In 40 dimensions: with fewer weights than directions there is less to be gained."""
    features = _features(rows=64, columns=40)
    calibrated = make_selector("calibrated")
    balanced_error = mean_square_error(make_selector("balanced"), features, budget)
    assert mean_square_error(calibrated, features, budget) < share * balanced_error
    for selection in draws(calibrated, features, budget, 20):
        assert _length(selection, features) == pytest.approx(1.0, abs=0.02)
        assert float(selection.weights.mean()) == pytest.approx(1.0, abs=0.02)


def test_calibrated_weights_stay_within_their_bounds() -> None:
    features = _features(rows=64, columns=40)
    selector = make_selector("calibrated", {"max_weight": 1.5, "ridge": 1e-4})
    drawn = draws(selector, features, 16, 20)
    weights = torch.cat([selection.weights for selection in drawn])
    assert float(weights.max()) == 1.5, "the bound is met, or this test tests nothing"
    assert float(weights.min()) == 0.0


def test_a_great_ridge_leaves_the_weights_as_they_were() -> None:
    features = _features(rows=64, columns=40)
    stiff = SELECTORS["calibrated"](ridge=1e9).select(features, 16, _generator(1))
    balanced = SELECTORS["balanced"]().select(features, 16, _generator(1))
    assert stiff.indices.tolist() == balanced.indices.tolist()
    torch.testing.assert_close(stiff.weights, balanced.weights, rtol=1e-3, atol=1e-4)


def test_craig_is_facility_location_with_cluster_sizes() -> None:
    features = _features()
    craig = SELECTORS["craig"]().select(features, 5)
    same = SELECTORS["facility_location"](metric="l2", weights="cluster_size").select(features, 5)
    assert craig.indices.tolist() == same.indices.tolist()
    assert torch.equal(craig.weights, same.weights)


def test_herding_takes_the_best_next_row_by_enumeration() -> None:
    features = _features(rows=14)
    mean, chosen = features.mean(0), []
    for _ in range(6):
        free = [row for row in range(14) if row not in chosen]
        errors = [float((features[[*chosen, row]].mean(0) - mean).norm()) for row in free]
        chosen.append(free[errors.index(min(errors))])
    assert make_selector("herding").select(features, 6).indices.tolist() == sorted(chosen)
    herding = mean_square_error(make_selector("herding"), features, 6, count=1)
    assert herding < 0.5 * mean_square_error(make_selector("random"), features, 6)


# Calibration as an option


def test_balanced_with_calibration_is_calibrated() -> None:
    features = _features(rows=64, columns=40)
    for calibrate, ridge in ((True, 0.03), (0.2, 0.2)):
        option = SELECTORS["balanced"](calibrate=calibrate).select(features, 16, _generator(2))
        named = SELECTORS["calibrated"](ridge=ridge).select(features, 16, _generator(2))
        assert option.indices.tolist() == named.indices.tolist()
        assert torch.equal(option.weights, named.weights)


@pytest.mark.parametrize("name", ["importance", "pivotal", "balanced", "cube", "gram_schmidt_walk"])
def test_calibration_keeps_the_rows_and_lowers_the_error(name: str) -> None:
    """The length and the mean weight are met as well."""
    features = _features(rows=64, columns=20)
    plain, moved = SELECTORS[name](), SELECTORS[name](calibrate=True)
    for seed in range(5):
        before = plain.select(features, 24, _generator(seed))
        after = moved.select(features, 24, _generator(seed))
        assert after.indices.tolist() == before.indices.tolist()
        assert _length(after, features) == pytest.approx(1.0, abs=0.02)
        assert float(after.weights.mean()) == pytest.approx(1.0, abs=0.02)
    assert mean_square_error(moved, features, 24) < 0.8 * mean_square_error(plain, features, 24)


# The cube method and the Gram-Schmidt walk


@pytest.mark.parametrize("name", ["cube", "gram_schmidt_walk"])
def test_balance_without_bias_beats_pivotal(name: str) -> None:
    """Forty directions of falling size: the large ones are balanced, and no probability was given up for it."""
    features = _features(rows=100, columns=40) * torch.logspace(0, -2, 40, dtype=torch.float64)
    pivotal, balanced = make_selector("pivotal"), make_selector(name)
    for budget in (50, 20):
        assert mean_square_error(balanced, features, budget) < 0.6 * mean_square_error(pivotal, features, budget)


def test_cube_variables_are_the_leading_directions() -> None:
    """They span what the eigenvectors of the exact covariance span, by falling variance."""
    features = _features(rows=40, columns=30) * torch.logspace(0, -2, 30, dtype=torch.float64)
    inclusion = inclusion_probabilities(features, 10, 0.1)
    expanded = features / inclusion[:, None]
    spread = (inclusion * (1 - inclusion)).sqrt()[:, None]
    directions = torch.linalg.eigh((spread * expanded).T @ (spread * expanded)).eigenvectors.flip(1)[:, :4]
    wanted = expanded @ directions
    found = balancing_variables(features, inclusion, 4, _generator(0))
    assert bool((found[:, 0] == 1).all())
    for column in range(4):
        one, other = found[:, 1 + column], wanted[:, column]
        assert abs(float(one @ other) / float(one.norm() * other.norm())) == pytest.approx(1.0, abs=1e-3)


def test_each_step_of_the_walk_is_the_cheapest_change() -> None:
    """By its definition: least squares over changes that sum to zero, with 1 for the pivot, the first row."""
    features = _features(rows=9, columns=3)
    matrix = features @ features.T + 0.5 * torch.eye(9, dtype=torch.float64)
    # x = e_0 - e_8 + sum_k y_k (e_k - e_8), k = 1 to 7; then the stationary point in y
    start = torch.eye(9, dtype=torch.float64)[0] - torch.eye(9, dtype=torch.float64)[8]
    basis = torch.eye(9, dtype=torch.float64)[:, 1:8] - torch.eye(9, dtype=torch.float64)[:, 8:]
    change = start - basis @ torch.linalg.solve(basis.T @ matrix @ basis, basis.T @ matrix @ start)
    inverse = torch.linalg.inv(matrix).numpy()
    found = cheapest_change(inverse[0], inverse.sum(axis=1))
    torch.testing.assert_close(torch.from_numpy(found), change)


# Gradient matching and GREATS


def _nonnegative_ridge(features: Tensor, rows: Tensor, ridge: float) -> Tensor:
    """min ||sum_S w f - sum_N f||^2 + ridge ||w||^2 over w >= 0, by enumerating which weights are zero."""
    chosen, target = features[rows], features.sum(0)
    best, found = math.inf, torch.zeros(len(rows), dtype=torch.float64)
    for size in range(1, len(rows) + 1):
        for kept in itertools.combinations(range(len(rows)), size):
            part = chosen[list(kept)]
            weights = torch.linalg.solve(part @ part.T + ridge * torch.eye(size), part @ target)
            loss = float((weights @ part - target).square().sum() + ridge * weights.square().sum())
            if loss < best and bool((weights >= 0).all()):
                best = loss
                found = torch.zeros_like(found).index_copy(0, torch.tensor(kept), weights)
    return found


def test_gradient_matching_solves_for_weights_that_are_not_negative() -> None:
    for seed in range(6):
        features = _features(rows=12, columns=3, seed=seed)
        gram = features @ features.T
        ridge = 0.1 * float(gram.diagonal().mean())
        rows, weights = pursue(gram.__getitem__, gram.sum(0).numpy(), 5, ridge)
        expected = _nonnegative_ridge(features, torch.from_numpy(rows), ridge)
        torch.testing.assert_close(torch.from_numpy(weights), expected, rtol=1e-8, atol=1e-8)


def test_gradient_matching_takes_first_what_points_along_the_sum() -> None:
    features = _features(rows=12)
    gram = features @ features.T
    rows, weights = pursue(gram.__getitem__, gram.sum(0).numpy(), 1, 1.0)
    assert rows[0] == int(gram.sum(0).argmax())
    assert weights[0] == pytest.approx(float(gram.sum(0).max() / (gram[rows[0], rows[0]] + 1.0)))


def test_gradient_matching_fills_up_with_weight_zero() -> None:
    """Only rows 0 and 2 point along the sum; the others would need negative weights."""
    features = torch.tensor([3.0, -1.0, 2.0, -0.5])[:, None]
    selection = make_selector("gradient_matching").select(features, 3)
    assert selection.indices.tolist() == [0, 2, 3]
    scaled = make_selector("gradient_matching", {"scale": "average"}).select(features, 3)
    assert torch.equal(scaled.indices, selection.indices)
    torch.testing.assert_close(scaled.weights, torch.tensor([1.8, 1.2, 0.0]))
    # w = 3 and 2 times a number: (13 a - 3.5)^2 + ridge 13 a^2 is least; the ridge is half of the mean square, 1.78125.
    solved = 13 * 3.5 / (13**2 + 1.78125 * 13)
    torch.testing.assert_close(selection.weights, 3 / 4 * solved * torch.tensor([3.0, 2.0, 0.0]))


@pytest.mark.parametrize("budget", [16, 64])
def test_gradient_matching_as_solved_is_near_the_mean_and_scaled_is_far(budget: int) -> None:
    generator = _generator(0)
    spread = torch.exp(0.5 * torch.randn(128, 1, generator=generator, dtype=torch.float64))
    features = torch.randn(128, 256, generator=generator, dtype=torch.float64) * spread + 0.2
    uniform = mean_square_error(make_selector("random"), features, budget)
    solved, scaled = (
        mean_square_error(SELECTORS["gradient_matching"](scale=scale), features, budget, 1)
        for scale in ("sum", "average")
    )
    assert solved < 0.4 * uniform
    assert scaled > 2 * solved
    assert float(make_selector("gradient_matching").select(features, budget).weights.mean()) < 1.0


def test_greats_follows_the_validation_gradient_and_avoids_repetition() -> None:
    features = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0], [0.0, 1.9], [-1.0, -1.0]])
    validation = torch.tensor([[1.0, 1.0]])
    aligned = SELECTORS["greats"](interaction=0.0).select(features, 3, validation=validation)
    assert aligned.indices.tolist() == [0, 1, 2]
    diverse = make_selector("greats").select(features, 3, validation=validation)
    assert diverse.indices.tolist() == [0, 1, 3]


@pytest.mark.parametrize("units", [(1.0, 1.0), (1e-6, 1.0), (3e4, 1e-9)])
def test_greats_with_a_learning_rate_is_the_official_formula(units: tuple[float, float]) -> None:
    """lr f_i . v - lr^2 sum_S f_i . f_j, in the units that were given."""
    features, validation = _features(rows=14) * units[0], _features(rows=3, seed=1) * units[1]
    gram, score = features @ features.T, features @ validation.mean(0)
    rate = float(0.1 * score.abs().mean() / gram.abs().mean())
    left, expected = rate * score, []
    for _ in range(5):
        row = max((row for row in range(14) if row not in expected), key=lambda row: float(left[row]))
        expected.append(row)
        left = left - rate**2 * gram[row]
    found = SELECTORS["greats"](learning_rate=rate).select(features, 5, validation=validation)
    assert found.indices.tolist() == sorted(expected)
    other = SELECTORS["greats"](learning_rate=100 * rate).select(features, 5, validation=validation)
    assert other.indices.tolist() != found.indices.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_greats_at_the_authors_rate_takes_what_is_aligned(seed: int) -> None:
    features, validation = _features(rows=40, seed=seed), _features(rows=3, seed=seed + 50)
    official = SELECTORS["greats"](learning_rate=2e-5).select(features, 10, validation=validation)
    assert official.indices.tolist() == sorted((features @ validation.mean(0)).topk(10).indices.tolist())


def test_greats_by_its_formula_whatever_the_units() -> None:
    features, validation, budget = _features(rows=14), _features(rows=3, seed=1), 5
    gram, score = features @ features.T, features @ validation.mean(0)
    between = gram.abs()[~torch.eye(14, dtype=torch.bool)].mean()
    weight = 0.7 * score.abs().mean() / (budget * between)
    chosen: list[int] = []
    for _ in range(budget):
        value = score - weight * gram[:, chosen].sum(1)
        value[chosen] = -math.inf
        chosen.append(int(value.argmax()))
    selector = SELECTORS["greats"](interaction=0.7)
    assert selector.select(features, budget, validation=validation).indices.tolist() == sorted(chosen)
    assert selector.select(features * 37, budget, validation=validation / 51).indices.tolist() == sorted(chosen)


# Facility location: stochastic, and jointly over sources


def test_stochastic_greedy_comes_near_the_exact_one() -> None:
    features = _features(rows=60)
    exact = SELECTORS["facility_location"]().select(features, 10)
    assert exact.gains is not None
    for seed in range(10):
        found = SELECTORS["facility_location"](stochastic=0.05).select(features, 10, _generator(seed))
        assert found.gains is not None
        assert float(found.gains.sum()) > 0.9 * float(exact.gains.sum())
    # So many candidates that all are looked at: the exact greedy.
    all_of_them = SELECTORS["facility_location"](stochastic=0.001).select(features, 5, _generator(0))
    assert all_of_them.indices.tolist() == SELECTORS["facility_location"]().select(features, 5).indices.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_joint_choice_is_greedy_over_all_rows_under_the_budgets(seed: int) -> None:
    features = torch.randint(0, 4, (15, 3), generator=_generator(seed)).double()  # exact distances, many ties
    source = torch.randint(0, 3, (15,), generator=_generator(seed + 50))
    budgets = [int(count) // 2 for count in source.bincount(minlength=3)]
    similarities = (features[:, None] - features).abs().sum(-1)
    similarities = similarities.max() - similarities
    chosen: list[int] = []
    for _ in range(sum(budgets)):
        covered = similarities[chosen].amax(0) if chosen else torch.zeros(15, dtype=torch.float64)
        gains = (similarities - covered).clamp(min=0).sum(1)
        for row in range(15):
            full = [int(source[each]) for each in chosen].count(int(source[row])) >= budgets[int(source[row])]
            gains[row] = -1.0 if full or row in chosen else gains[row]
        chosen.append(int(gains.argmax()))
    groups = [
        SourceGroup(name=str(each), members=(source == each).nonzero().flatten(), budget=budgets[each])
        for each in range(3)
    ]
    selector = SELECTORS["facility_location"](joint=True)
    assert selector.select(features, sum(budgets), groups=groups).indices.tolist() == sorted(chosen)
    groups_C, budgets_G = source.numpy(), np.array(budgets)
    for body in (greedy_loop, greedy_numpy):
        assert body(similarities.numpy(), groups_C, budgets_G, 1e-12)[0].tolist() == chosen

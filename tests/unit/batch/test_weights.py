"""The law of weights: the mean of what is trained is what is claimed, whatever is drawn, in parts and in phases too."""

from functools import cache

import pytest
import torch

from corebatch.batch.weights import LossWeights, loss_weights, part_scale
from corebatch.seeds import seeded
from corebatch.selectors import make_selector
from corebatch.types import SourceGroup

N, M, DRAWS = 12, 5, 4000


@pytest.fixture(scope="module")
def rows():
    """Summed losses [N] and trained tokens [N] of rows of very unequal sizes, and a feature of each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 30, (N,), generator=generator)
    return tokens * (1 + torch.rand(N, generator=generator).double()), tokens


@pytest.fixture(scope="module")
def drawn(rows):
    """Many selections by a selector, of rows whose feature is the square root of their tokens."""

    @cache
    def by(name):
        chooses, sizes = make_selector(name), rows[1].float().sqrt().unsqueeze(1)
        return [chooses.select(sizes, M, seeded(n, name)) for n in range(DRAWS // (1 if name == "importance" else 4))]

    return by


@pytest.fixture(scope="module")
def drawn_in_parts(rows):
    """(weights, rows) of many choices in two parts, each with a budget of its own."""
    chooses, sizes, made = make_selector("importance"), rows[1].float().unsqueeze(1), []
    parts = [(torch.arange(0, 4), 2), (torch.arange(4, N), 3)]
    for draw in range(DRAWS):
        chosen, weights = [], []
        for number, (members, budget) in enumerate(parts):
            selection = chooses.select(sizes[members], budget, seeded(draw, number))
            chosen.append(members[selection.indices])
            weights.append(selection.weights * part_scale(N, M, len(members), budget))
        made.append((torch.cat(weights), torch.cat(chosen)))
    return made


def claimed(losses, tokens, loss):
    return losses.sum() / tokens.sum() if loss == "token_mean" else (losses / tokens).mean()


def trained(weights: LossWeights, losses, chosen):
    assert weights.rows is not None
    assert weights.denominator is not None
    return (weights.rows.double() * losses[chosen]).sum() / weights.denominator.double()


def mean_and_error(values):
    values = torch.stack(values)
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
@pytest.mark.parametrize("selector", ["importance", "pivotal", "cube"])
def test_the_mean_of_what_is_trained_is_what_is_claimed(rows, drawn, loss, selector):
    losses, tokens = rows
    values = []
    for selection in drawn(selector):
        weights = loss_weights(
            selection.weights, selection.indices, tokens, loss=loss, weighted=True, slots=M
        )  # fmt: skip
        values.append(trained(weights, losses, selection.indices))
    mean, error = mean_and_error(values)
    assert abs(mean - float(claimed(losses, tokens, loss))) < 4 * error + 1e-6


@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
def test_rows_that_are_chosen_in_parts_estimate_the_same_mean(rows, drawn_in_parts, loss):
    losses, tokens = rows
    values = []
    for weights, chosen in drawn_in_parts:
        made = loss_weights(weights, chosen, tokens, loss=loss, weighted=True, slots=M)
        values.append(trained(made, losses, chosen))
    mean, error = mean_and_error(values)
    assert abs(mean - float(claimed(losses, tokens, loss))) < 4 * error + 1e-6


def test_a_group_has_the_scale_of_a_part(rows):
    _, tokens = rows
    groups = [
        SourceGroup(name="kept", members=torch.arange(2), budget=2, keep=True),
        SourceGroup(name="rest", members=torch.arange(2, N), budget=3),
    ]
    selection = make_selector("importance").select(tokens.float().unsqueeze(1), M, seeded(0), groups=groups)
    kept = selection.weights[selection.indices < 2]
    assert kept.tolist() == pytest.approx([part_scale(N, M, 2, 2)] * 2)


def test_the_plain_loss_is_left_alone_where_it_is_right(rows):
    _, tokens = rows
    ones, chosen = torch.ones(M), torch.arange(M)
    assert loss_weights(ones, chosen, tokens, loss="token_mean", weighted=False, slots=M) == LossWeights()
    few = loss_weights(ones, chosen, tokens, loss="token_mean", weighted=False, slots=M + 1)
    assert few.rows is ones
    assert float(few.denominator) == float(tokens[:M].sum())
    grouped = loss_weights(ones, chosen, tokens, loss="token_mean", weighted=False, slots=M, groups=True)
    assert grouped.rows is ones
    by_example = loss_weights(ones, chosen, tokens, loss="example_mean", weighted=False, slots=M)
    assert by_example.rows.tolist() == pytest.approx((1 / tokens[:M]).tolist())
    assert float(by_example.denominator) == M


def test_rows_without_a_trained_token_divide_by_nothing():
    nothing = torch.zeros(4, dtype=torch.long)
    for loss in ("token_mean", "example_mean"):
        made = loss_weights(torch.ones(2), torch.arange(2), nothing, loss=loss, weighted=True, slots=2)
        assert float(made.denominator) > 0
        assert bool(torch.isfinite(made.rows / made.denominator).all())

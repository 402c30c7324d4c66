"""A batch that grows: the rules, with the norm test on a toy whose answer is known, and how rows are shared out."""

import math
from itertools import pairwise

import pytest
import torch

from corebatch.batch.budget import BUDGETS, Budget, NoiseScale, NormTest, Ramp, RunBudget, make_budget
from corebatch.errors import CheckpointError, ConfigError
from corebatch.noise import Noise, noise_of_rows


@pytest.mark.parametrize(
    "value, made, plain",
    [
        (None, None, "constant"),
        ("constant", None, "constant"),
        ({"constant": None}, None, "constant"),
        ("ramp", Ramp(), "ramp"),
        ({"ramp": None}, Ramp(), "ramp"),
        ({"ramp": {"most": 4, "until": 1}}, Ramp(most=4, until=1), {"ramp": {"most": 4, "until": 1}}),
        ({"noise": {"times": 2}}, NoiseScale(times=2), {"noise": {"times": 2}}),
        (
            {"adadagrad": {"eta": 0.1, "every": 5, "learning_rate": "sqrt"}},
            NormTest(eta=0.1, every=5, learning_rate="sqrt"),
            {"adadagrad": {"learning_rate": "sqrt", "every": 5, "eta": 0.1}},
        ),
        (NormTest(eta=0.1), NormTest(eta=0.1), {"adadagrad": {"eta": 0.1}}),
    ],
)
def test_ways_to_write_it(value, made, plain):
    found = make_budget(value)
    assert found == made
    assert ("constant" if found is None else found.plain()) == plain
    assert make_budget(plain) == made


@pytest.mark.parametrize(
    "value, message",
    [
        ("adagrad", "should be one of constant, ramp, noise, adadagrad.* Found 'adagrad'. Did you mean 'adadagrad'"),
        (8, "should be one of constant, ramp, noise, adadagrad.* Found 8"),
        ({}, "should map one of ramp, noise, adadagrad to its options. Found {}"),
        ({"ramp": {}, "noise": {}}, "should map one of"),
        ({"ramp": 4}, "should map one of"),
        ({"constant": {"most": 4}}, "constant takes no options"),
        ({"ramp": {"eta": 0.1}}, "'ramp' takes most, learning_rate, until. Found 'eta'"),
        ({"ramp": {"most": 1}}, "ramp.most should be a number above 1. Found 1"),
        ({"noise": {"most": float("inf")}}, "noise.most should be a number above 1. Found inf"),
        ({"ramp": {"until": 0}}, "ramp.until should be a number above 0 and below 1. Found 0"),
        ({"ramp": {"learning_rate": "linear"}}, "ramp.learning_rate should be kept or sqrt. Found 'linear'"),
        ({"noise": {"every": 0}}, "noise.every should be an integer of at least 1. Found 0"),
        ({"noise": {"times": True}}, "noise.times should be a number above 0. Found True"),
        ({"adadagrad": {"eta": 1}}, "adadagrad.eta should be a number above 0 and below 1. Found 1"),
    ],
)
def test_what_it_may_not_be(value, message):
    with pytest.raises(ConfigError, match=message):
        make_budget(value)


def test_adadagrad_grows_as_its_paper_has_it_where_gradient_and_noise_are_known():
    """SGD on |x|^2 / 2 with rows of noise of variance 1 in each of D coordinates: |G|^2 = |x|^2, tr Sigma = D. The
    official rule is written out: the mean gradient's own length, ceil, never fewer."""
    dimensions, rate, eta, first = 50, 0.1, 0.5, 4
    budget = RunBudget(NormTest(eta=eta, every=1, most=500), accumulation=first, rows=1)
    budget.length = budget.steps_of_run = 10**6
    x, size, sizes = 2.0, first, []
    for step in range(60):
        squared = dimensions * x * x
        noise = None if step == 0 else Noise(signal=squared, trace=float(dimensions), rows=size)
        if step:
            tested = dimensions / (eta**2 * (squared + dimensions / size))
            size = max(size, math.ceil(tested - 1e-9))
        assert budget.next(noise) == min(size, 500 * first)
        budget.advance(step + 1)
        sizes.append(size)
        x *= 1 - rate
    assert sizes[:3] == [4, 4, 4]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) > 20
    assert all(after <= math.ceil(before / eta**2) for before, after in pairwise(sizes))


def test_the_norm_test_of_real_rows_is_the_official_one():
    """From a step's per-example gradients: tr of the sample covariance over eta^2 |mean|^2."""
    gradients = torch.randn(32, 20, generator=torch.Generator().manual_seed(0)).double() + 0.1
    noise = noise_of_rows(gradients @ gradients.T)
    wanted = gradients.var(dim=0).sum() / (0.3**2 * gradients.mean(dim=0).square().sum())
    assert NormTest(eta=0.3).rows(8, 32, 0.5, noise) == pytest.approx(float(wanted))


def test_tests_end_where_the_noise_is_small_enough():
    noise, size = Noise(signal=2.0, trace=20.0, rows=8), 4.0
    for _ in range(100):
        size = max(size, NormTest(eta=0.25).rows(4, size, 0.5, noise))
    assert size == pytest.approx(10 * (1 / 0.25**2 - 1))


def test_the_noise_scale_is_followed_and_not_at_once():
    method = NoiseScale(times=2)
    assert method.rows(4, 4, 0.5, None) == 4
    assert method.rows(4, 8, 0.5, Noise(signal=2.0, trace=10.0, rows=8)) == 10
    assert method.rows(4, 8, 0.5, Noise(signal=1.0, trace=100.0, rows=8)) == 16
    assert method.rows(4, 8, 0.5, Noise(signal=-1.0, trace=100.0, rows=8)) == 16
    assert NormTest(eta=0.5).rows(4, 8, 0.5, Noise(signal=-1.0, trace=100.0, rows=8)) == 32
    assert NormTest(eta=0.5).rows(4, 8, 0.5, Noise(signal=1.0, trace=-1.0, rows=8)) == 8


@pytest.mark.parametrize("length", [12, 13, 5, 3, 1])
@pytest.mark.parametrize("steps", [1, 2, 7, 16])
@pytest.mark.parametrize("accumulation", [1, 2, 4])
@pytest.mark.parametrize("method", [Ramp(most=3, until=0.5), Ramp(most=2.3, until=1), NoiseScale(every=2, most=5)])
def test_rows_of_a_run_are_those_of_the_configured_steps(length, steps, accumulation, method):
    """As the Trainer's loop would: slots of an epoch, each with its micro-batches; and whoever goes on from any step
    goes on the same."""
    of_epoch = -(-length // accumulation)
    takes = []

    def made():
        budget = RunBudget(method, accumulation=accumulation, rows=3)
        budget.length, budget.steps_of_run = length, steps
        return budget

    budget, noise, position = made(), Noise(signal=1.0, trace=30.0, rows=3), 0
    for epoch in range(-(-steps // of_epoch)):
        budget.begin_epoch()
        for slot in range(of_epoch):
            gone_on = made()
            gone_on.load_state_dict(budget.state_dict())
            gone_on.begin_epoch()
            took = budget.next(noise)
            if not took:  # the loop's slots that are left get nothing
                continue
            assert (gone_on.next(noise), gone_on.pieces(took)) == (took, budget.pieces(took))
            slots = gone_on.position % of_epoch  # that the Trainer skips by itself
            assert slots * accumulation + gone_on.skip == (sum(takes) - epoch * length)
            asked = length - slot * accumulation if slot == of_epoch - 1 else accumulation
            assert budget.pieces(took) >= min(asked, accumulation)
            takes.append(took)
            position += budget.advance(len(takes))
            assert position == budget.position
    whole, rest = divmod(steps, of_epoch)
    assert sum(takes) == whole * length + min(rest * accumulation, length)
    assert (budget.position, budget.done) == (steps, 1)
    assert max(takes) <= int(method.most * accumulation + 1e-9)
    assert len(takes) <= steps


def test_micro_batches_of_other_rows_do_not_go_on_where_they_do_not_come_out_even():
    budget = RunBudget(Ramp(), accumulation=2, rows=3)
    budget.length, budget.steps_of_run = 12, 6
    budget.next(None)
    budget.advance(1)
    half = RunBudget(Ramp(), accumulation=6, rows=1)
    half.load_state_dict(budget.state_dict())
    half.length = 36
    assert (half._drawn, half.micro_batches, half.skip) == (6, 6, 0)
    with pytest.raises(CheckpointError, match=r"has drawn 6 rows of its epoch and 6 a step, .* micro-batches have 4"):
        RunBudget(Ramp(), accumulation=1, rows=4).load_state_dict(budget.state_dict())


def test_the_square_root_rule():
    budget = RunBudget(Ramp(most=4, until=0.01, learning_rate="sqrt"), accumulation=2, rows=1)
    budget.length, budget.steps_of_run = 100, 50
    rates = []
    for updates in range(3):
        budget.next(None)
        rates.append(budget.rate)
        budget.advance(updates + 1)
    assert rates == [1, 2, 2]
    assert all(issubclass(method, Budget) for method in BUDGETS.values())

"""Error feedback: the sum of errors stays bounded, and the state is all there is."""

import pytest
import torch

from corebatch.batch.feedback import ErrorFeedback
from corebatch.batch.method import CoresetStep
from corebatch.errors import CheckpointError, ConfigError, InputError
from corebatch.memory import FeatureMemory
from corebatch.scoring import Scores, make_scorer
from corebatch.selectors import SELECTORS, Problem, make_selector
from corebatch.trainer import CoresetConfig
from corebatch.types import Selection, SourceGroup

ROWS, POOL, BUDGET = 96, 24, 6


def population(columns=12):
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(ROWS, columns, generator=generator) + 1.5 * torch.randn(columns, generator=generator)
    features[: ROWS // 8] *= 3.0  # a minority that nothing else balances
    return features


def step_with(rho, selector="balanced", **options):
    feedback = None if rho is None else ErrorFeedback(rho, seed=0)
    return CoresetStep(scorer=make_scorer("last_layer"), selector=make_selector(selector, options), feedback=feedback)


def series(step, features, steps, first=0, known=True):
    """Errors of `steps` choices out of pools in epochs: [steps, P]; and the mean weight of each row."""
    errors, weights, seen = [], torch.zeros(ROWS), torch.zeros(ROWS)
    for number in range(first, first + steps):
        epoch, place = divmod(number, ROWS // POOL)
        order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(epoch))
        pool = order[place * POOL : (place + 1) * POOL].sort().values
        scores = Scores(features=features[pool], losses=None, tokens=torch.ones(POOL, dtype=torch.long))
        ids = pool if known else None
        chosen = step.choose(scores, torch.zeros(POOL, dtype=torch.long), BUDGET, step=number, ids=ids).selection
        rows = pool[chosen.indices]
        estimate = (chosen.weights[:, None] * features[rows]).mean(0)
        errors.append(estimate - features[pool].mean(0))
        weights[rows] += chosen.weights * POOL / BUDGET
        seen[pool] += 1
    return torch.stack(errors), weights / seen


def test_every_example_keeps_its_weight():
    """What an example is owed is bounded, so that its mean weight goes to 1 as 1 / passes; with features alone some
    examples never come, and an error that features do not see grows."""
    features, unseen = population(2), torch.randn(ROWS, 40, generator=torch.Generator().manual_seed(8))
    weights, errors, owed = {}, {}, []
    for known in (True, False):
        step, trained, visits = step_with(0.99, start="cube"), torch.zeros(ROWS), 160
        for passed in range(visits):
            trained += series(step, features, ROWS // POOL, first=passed * ROWS // POOL, known=known)[1]
            if known:
                owed.append(float(step.feedback.state_dict()["owed"].abs().max()))
        weights[known] = trained / visits
        errors[known] = float(((weights[known] - 1) @ unseen / ROWS).norm())
    assert max(owed[80:]) < 1.2 * max(owed[:80])
    assert float((weights[True] - 1).abs().max()) < 0.2
    assert float((weights[False] - 1).abs().max()) > 0.4
    assert errors[True] < 0.2 * errors[False]


def test_a_first_pass_carries_nothing_for_examples():
    features = population()
    first, second = (series(step_with(0.99), features, ROWS // POOL, known=known)[0] for known in (True, False))
    assert torch.equal(first, second)


def test_an_example_that_comes_twice_is_counted_twice():
    feedback, features = ErrorFeedback(0.5, seed=0), torch.ones(4, 2)
    ids, ones = torch.tensor([7, 7, 2, 9]), torch.ones(4, dtype=torch.long)
    feedback.look(features, torch.zeros(4, dtype=torch.long), ones, ids=ids)
    feedback.update(Selection(indices=torch.tensor([0, 2]), weights=torch.tensor([1.5, 0.5])))
    owed = feedback.state_dict()["owed"]
    # E <- rho (E + 1 - w N / M) for each time: 7 came twice and was trained once, with 1.5 x 4 / 2
    torch.testing.assert_close(owed[[7, 2, 9]], 0.5 * torch.tensor([2 - 3.0, 1 - 1.0, 1.0]))
    assert not owed[[0, 1, 3, 4, 5, 6, 8]].any()
    carried = feedback.look(features, torch.zeros(4, dtype=torch.long), ones, ids=ids)[1]
    again = ErrorFeedback(0.5, seed=0, examples=0.0)
    again.load_state_dict({**feedback.state_dict(), "owed": torch.zeros(0)})
    without = again.look(features, torch.zeros(4, dtype=torch.long), ones, ids=ids)[1]
    torch.testing.assert_close(carried - without, -(2.0 / 4) * owed[ids].double())  # squared mean norm of a row: 2


def test_sum_of_errors_is_bounded():
    features = population()
    unit = features.norm(dim=1).mean()
    with_feedback, weights = series(step_with(0.99), features, 600)
    sums = with_feedback.cumsum(0).norm(dim=1) / unit
    assert sums[300:].max() < 1.5 * sums[:300].max() + 0.2
    assert sums.max() < 3.0
    without = series(step_with(None), features, 600)[0].cumsum(0).norm(dim=1) / unit
    cube = series(step_with(None, "cube"), features, 600)[0].cumsum(0).norm(dim=1) / unit
    assert sums[-1] < 0.5 * min(without[-1], cube.max())
    assert abs(float(weights[: ROWS // 8].mean()) - 1) < 0.05
    assert abs(float(weights.mean()) - 1) < 0.03


def test_rho_0_carries_nothing():
    """Every step is chosen by itself, with columns for the sources."""
    features, step = population(), step_with(0.0)
    series(step, features, 8)
    assert step.feedback.size == 0
    carried = step.feedback.look(features, torch.zeros(ROWS, dtype=torch.long), torch.ones(ROWS, dtype=torch.long))[1]
    assert not carried.any()


def test_every_source_keeps_its_weight():
    """What the features do not tell apart, the columns for sources do."""
    sources = torch.arange(POOL) % 5
    step, plain = step_with(0.99), step_with(None)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 60, (POOL,), generator=generator)
    got = {id(s): torch.zeros(5) for s in (step, plain)}
    for number in range(200):
        features = torch.randn(POOL, 8, generator=generator) * tokens.sqrt()[:, None]
        scores = Scores(features=features, losses=None, tokens=tokens)
        for s in (step, plain):
            chosen = s.choose(scores, sources, BUDGET, step=number).selection
            weighted = chosen.weights * tokens[chosen.indices]
            got[id(s)].index_add_(0, sources[chosen.indices], weighted * POOL / BUDGET)
    right = torch.zeros(5).index_add_(0, sources, tokens.float()) * 200
    assert (got[id(step)] / right - 1).abs().max() < 0.01
    assert (got[id(plain)] / right - 1).abs().max() > 0.02


def test_changes_choices():
    features = population()
    assert not torch.equal(series(step_with(0.9), features, 8)[0], series(step_with(None), features, 8)[0])


@pytest.mark.parametrize("start", ["systematic", "cube"])
def test_goes_on_from_its_state(start):
    features = population()
    whole = series(step_with(0.95, start=start), features, 20)[0]
    first = step_with(0.95, start=start)
    before = series(first, features, 11)[0]
    second = step_with(0.95, start=start)
    second.feedback.load_state_dict(first.feedback.state_dict())
    assert torch.equal(torch.cat([before, series(second, features, 9, first=11)[0]]), whole)


def test_scale_of_features_does_not_matter():
    features = population()
    small = series(step_with(0.95), features / 1024, 20)[0]
    assert torch.equal(small * 1024, series(step_with(0.95), features, 20)[0])


def test_drift_of_all_lengths_leaves_the_memory_of_errors():
    """E is kept relative to the level: gradients that halve halve what is carried."""
    feedback, features = ErrorFeedback(0.9, seed=0), population()
    selection = SELECTORS["balanced"]().select(features, 8)
    rows = torch.zeros(ROWS, dtype=torch.long), torch.ones(ROWS, dtype=torch.long)
    feedback.look(features, *rows)
    feedback.update(selection)
    before = feedback.look(features, *rows)[1]
    for _ in range(200):
        halved = feedback.look(features / 2, *rows)[1]
    torch.testing.assert_close(halved, before / 4, rtol=1e-3, atol=1e-6)


def test_features_of_another_width_after_a_resume():
    features = population()
    step = step_with(0.9)
    series(step, features, 2)
    other = step_with(0.9)
    other.feedback.load_state_dict(step.feedback.state_dict())
    with pytest.raises(CheckpointError, match=r"features with 12 columns\. Found features with 7"):
        series(other, population(7), 1)


def test_none_may_be_written_out():
    assert CoresetConfig.from_dict({"feedback": "none"}) == CoresetConfig(feedback=None)
    assert CoresetConfig(feedback=None).build().feedback is None


def test_a_mapping_has_both_parts():
    found = CoresetConfig.from_dict({"feedback": {"rho": 0.5, "examples": 0}}).build().feedback
    assert (found.rho, found.examples) == (0.5, 0.0)
    assert CoresetConfig(feedback={"examples": 2.0}).build().feedback.rho == 0.99


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"exampels": 1}, r"keys rho and examples\. Found 'exampels'"),
        ({"examples": -1}, r"feedback\.examples should be a number of at least 0\. Found -1"),
        ({"examples": float("nan")}, r"feedback\.examples should be .* Found nan"),
        ({"rho": 1.0}, r"at least 0 and below 1\. Found 1\.0"),
    ],
)
def test_a_mapping_out_of_range(given, message):
    with pytest.raises(ConfigError, match=message):
        CoresetConfig(feedback=given)


@pytest.mark.parametrize("rho", [1.0, -0.1, "a", True, float("nan")])
def test_rho_out_of_range(rho):
    with pytest.raises(ConfigError, match=r"coreset\.feedback should be none or a number of at least 0 and below 1"):
        CoresetConfig(selector="balanced", feedback=rho)


@pytest.mark.parametrize("selector", sorted(set(SELECTORS) - {"greats"}))
def test_selectors_that_follow(selector):
    if SELECTORS[selector]().follows:
        CoresetConfig(selector=selector, feedback=0.9)
        return
    with pytest.raises(ConfigError, match=rf"coreset\.feedback needs a selector .*: balanced.*Found '{selector}'"):
        CoresetConfig(selector=selector, feedback=0.9)
    with pytest.raises(InputError, match="cannot make up for earlier errors"):
        SELECTORS[selector]().select(torch.rand(6, 3), 2, losses=torch.rand(6), carried=torch.zeros(6))


def test_calibrated_weights_do_not_follow():
    with pytest.raises(ConfigError, match=r"coreset\.feedback needs"):
        CoresetConfig(selector="balanced", selector_options={"calibrate": True}, feedback=0.9)


@pytest.mark.parametrize("carried", [torch.zeros(5), torch.zeros(6, dtype=torch.long), [0.0] * 6])
def test_carried_of_another_shape(carried):
    with pytest.raises(InputError, match="`carried` should be a floating tensor"):
        SELECTORS["balanced"]().select(torch.rand(6, 3), 2, carried=carried)


def test_label_counts_add_up():
    """Counts of a batch's rows are sums of tokens' own columns, whatever the padding; a mean over examples divides."""
    scorer = make_scorer("label_counts", {"width": 16})
    labels = torch.tensor([[-100, -100, 5, 6, 5], [-100, 7, -100, -100, -100], [-100, 5, 6, 5, -100]])
    batch = {"input_ids": torch.zeros_like(labels), "labels": labels}
    made = scorer.run(torch.nn.Identity(), batch, seed=3)
    single = {t: scorer.run(torch.nn.Identity(), {k: v[:1] * 0 + t for k, v in batch.items()}, seed=3) for t in (5, 6)}
    wanted = 2 * single[5].features / 4 + single[6].features / 4  # four labels of one kind each
    torch.testing.assert_close(made.features[[0, 2]], wanted.expand(2, -1))
    assert made.features[1].abs().sum() == 1
    assert made.tokens.tolist() == [3, 1, 3]
    mean = scorer.run(torch.nn.Identity(), batch, loss="example_mean", seed=3)
    torch.testing.assert_close(mean.features[0], made.features[0] / 3)
    assert not torch.equal(scorer.run(torch.nn.Identity(), batch, seed=4).features, made.features)


def test_two_phases_do_not_follow():
    with pytest.raises(ConfigError, match="needs feedback none"):
        CoresetConfig(selector="balanced", feedback=0.9, scoring="two_phase")


def test_exact_and_remembered_features_are_carried_in_one_space():
    """A step whose features are wide and one whose are remembered, in the memory's columns, add to the same sum."""
    generator = torch.Generator().manual_seed(4)
    wide = torch.randn(POOL, 3000, generator=generator)
    memory, rows = FeatureMemory(seed=0), (torch.zeros(POOL, dtype=torch.long), torch.ones(POOL, dtype=torch.long))
    selection = SELECTORS["balanced"]().select(wide, BUDGET)
    carried = []
    for features in (wide, memory.narrow(wide)):
        feedback = ErrorFeedback(0.9, seed=0)
        feedback.look(features, *rows)
        feedback.update(selection)
        carried.append(feedback.look(memory.narrow(wide), *rows)[1])
    torch.testing.assert_close(*carried, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_part_makes_up_for_all_that_is_carried(share):
    """Where half of the rows are chosen apart, their errors count half, and the sum of errors is bounded as before."""
    features, step, sums = population(), step_with(0.99), []
    for number in range(200):
        pool = torch.randperm(ROWS, generator=torch.Generator().manual_seed(number))[:POOL].sort().values
        scores = Scores(features=features[pool], losses=None, tokens=torch.ones(POOL, dtype=torch.long))
        step.choose(scores, torch.zeros(POOL, dtype=torch.long), BUDGET, step=number, share=share)
        sums.append(step.feedback.size)
    assert max(sums[100:]) < 1.5 * share


def test_a_group_beside_one_that_is_kept_makes_up_for_all():
    """The rest's inner products grow as its share of the rows falls: its mean counts that much less."""
    generator = torch.Generator().manual_seed(0)
    features, carried = torch.randn(12, 4, generator=generator), torch.randn(12, generator=generator)
    rest = SourceGroup(name="rest", members=torch.arange(8), budget=3)
    problem = Problem(
        features=features.double(), budget=7, generator=generator, groups=(rest,), carried=carried.double()
    )
    torch.testing.assert_close(problem.within(rest).carried, carried[:8].double() * 12 / 8)


def test_at_a_random_step_rows_are_a_random_part_and_what_they_miss_is_carried():
    """Unbiased over draws, whatever was carried before; and what is carried is the whole of what was missed."""
    features = population()[:POOL]
    scores = Scores(features=features, losses=None, tokens=torch.ones(POOL, dtype=torch.long))
    ids, sources = torch.arange(POOL), torch.arange(POOL) % 2
    trained, draws = torch.zeros(POOL), 3000
    for seed in range(draws):
        step = CoresetStep(
            scorer=make_scorer("last_layer"), selector=make_selector("balanced", {}), seed=seed, random_every=2
        )
        made = step.choose(scores, sources, BUDGET, step=1, ids=ids)
        assert made.at_random
        assert made.selection.uniform
        trained[made.selection.indices] += POOL / BUDGET
    assert (trained / draws - 1).abs().max() < 5 * (3 / draws) ** 0.5  # variance (1 - pi) / pi = 3
    step = step_with(0.9)
    step.random_every = 2
    step.choose(scores, sources, BUDGET, step=0, ids=ids)
    before = {key: value.clone() for key, value in step.feedback.state_dict().items()}
    chosen = step.choose(scores, sources, BUDGET, step=1, ids=ids).selection.indices
    after = step.feedback.state_dict()
    weight = torch.zeros(POOL).index_fill(0, chosen, POOL / BUDGET)
    assert torch.allclose(after["owed"][:POOL], 0.9 * (before["owed"][:POOL] + 1 - weight))
    off = (features[chosen].mean(dim=0) - features.mean(dim=0)).double()
    level = after["levels"][0].exp()  # features are the same, so that the level is
    columns = features.shape[1]
    assert torch.allclose(after["error"][:columns], 0.9 * (before["error"][:columns] + off / level), atol=1e-6)
    assert not step.choose(scores, sources, BUDGET, step=2, ids=ids).at_random

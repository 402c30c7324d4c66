"""An online objective in a run: names and numbers of sources, weights of their tokens, gradients by source, state."""

import pytest
import torch

from corebatch.batch.online import OnlineObjective
from corebatch.batch.plan import Plan
from corebatch.batch.pool import Pool
from corebatch.sampling.online import make_online
from corebatch.scoring import Scores

NAMES = {7: "law", 2: "code", 4: "algebra"}
TOKENS = {7: 10.0, 2: 60.0, 4: 30.0}


def begun(name="odm", **options):
    made = OnlineObjective(make_online(name, {"floor": 0.0, **options}), 3)
    made.begin(NAMES, TOKENS)
    return made


def test_a_sources_weight_is_its_share_over_its_part_of_the_tokens():
    made = begun()
    assert made.shares == pytest.approx({"code": 1 / 3, "algebra": 1 / 3, "law": 1 / 3})
    assert made.weights == pytest.approx({2: 1 / 3 / 0.6, 4: 1 / 3 / 0.3, 7: 1 / 3 / 0.1})
    for step in range(1, 60):
        made.observe({7: (30.0, 10.0), 2: (10.0, 10.0)}, step)
    assert made.shares["law"] > made.shares["code"] > made.shares["algebra"]  # whose loss nobody has seen
    assert sum(made.weights[source] * TOKENS[source] / 100 for source in TOKENS) == pytest.approx(1)


def test_a_loss_is_that_of_a_token_and_absent_sources_have_none():
    one, other = begun(), begun()
    one.observe({7: (30.0, 10.0), 4: (4.0, 2.0)}, 1)
    other.method.observe(torch.tensor([torch.nan, 2.0, 3.0]), torch.tensor([0.0, 2.0, 10.0]), 1)
    assert one.shares == other.shares


def test_it_begins_once():
    made = begun()
    for step in range(1, 40):
        made.observe({7: (30.0, 10.0)}, step)
    before = made.shares
    made.begin(NAMES, TOKENS)
    assert made.shares == before


def test_a_state_is_taken_up_when_the_run_begins():
    one, other = begun(), OnlineObjective(make_online("odm", {"floor": 0.0}), 3)
    assert other.state_dict() == {}
    for step in range(1, 40):
        one.observe({7: (30.0, 10.0), 2: (10.0, 10.0)}, step)
    other.load_state_dict(one.state_dict())
    other.begin(NAMES, TOKENS)
    assert other.shares == one.shares


def test_only_a_method_for_a_second_run_has_an_average():
    made = begun("doremi", reference_losses={"code": 1.0, "algebra": 1.0, "law": 1.0})
    made.observe({7: (30.0, 10.0)}, 1)
    assert made.average == pytest.approx(made.shares)
    assert begun().average is None


def pool(eligible):
    sources = torch.tensor([2, 4, 7, 2, 2])
    zeros = torch.zeros(5, dtype=torch.long)
    return Pool(
        ids=torch.arange(5), sources=sources, lengths=torch.full((5,), 9), tokens=torch.tensor([1, 2, 3, 4, 5]),
        ranks=zeros, rows=torch.arange(5), batches=zeros, widths=zeros, eligible=torch.tensor(eligible),
    )  # fmt: skip


@pytest.mark.parametrize("eligible", [[True] * 5, [True, True, True, True, False]])
def test_gradients_by_source(eligible):
    """Of the rows that may be chosen: a copy that evens out ranks counts nothing."""
    made, seen = begun("doge"), {}
    made.method.observe_gradients = lambda *parts: seen.update(
        zip(("sums", "squares", "rows", "tokens"), parts, strict=True)
    )
    features = torch.arange(10.0).reshape(5, 2)
    large = pool(eligible)
    rows = large.eligible.nonzero().flatten()
    scores = Scores(features=features, losses=None, tokens=large.tokens)
    made.scored(large, Plan(candidates=rows, budget=2, exact=torch.arange(5)), scores)
    assert seen["rows"].tolist() == [2 + eligible[4], 1, 1]
    assert seen["tokens"].tolist() == [5 + 5 * eligible[4], 2, 3]
    code = features[[0, 3, 4] if eligible[4] else [0, 3]].double()
    torch.testing.assert_close(seen["sums"], torch.stack([code.sum(0), *features[1:3].double()]))
    squares = torch.stack([code.square().sum(), *features[1:3].double().square().sum(1)])
    torch.testing.assert_close(seen["squares"], squares)


def test_gradients_of_a_part_of_the_rows_are_left_alone():
    made = begun("doge")
    made.method.observe_gradients = lambda *_: pytest.fail("these are not of all rows")
    large, rows = pool([True] * 5), torch.arange(5)
    scores = Scores(features=torch.ones(3, 2), losses=None, tokens=large.tokens[:3])
    made.scored(large, Plan(candidates=rows, budget=2, exact=rows[:3]), scores)
    made.scored(large, Plan(candidates=rows, budget=2, exact=rows), None)
    begun("odm").scored(large, Plan(candidates=rows, budget=2, exact=rows[:3]), scores)

"""What a step claims of its large batch: u_i and a_i of every row, and the law of weights under each objective."""

import dataclasses

import pytest
import torch

from corebatch.batch.claims import Claim, Claims, TokenCounts, source_weights
from corebatch.batch.method import select
from corebatch.batch.pool import Pool, under
from corebatch.batch.weights import loss_weights
from corebatch.errors import ConfigError, InputError, NonFiniteError
from corebatch.objective import make_objective
from corebatch.seeds import seeded
from corebatch.selectors import make_selector

N, M, DRAWS = 24, 6, 800
NAMES = {0: "algebra", 1: "geometry", 2: "rare"}
COUNTS = TokenCounts(NAMES, {0: 600, 1: 300, 2: 100})
SCHEDULE = [{"until": 0.5, "is": "tokens"}, {"until": 1.0, "is": {"rare": 0.5, "algebra": 0.5}, "ramp": True}]
OBJECTIVES = ["tokens", "examples", "sources", {"rare": 0.7, "algebra": 0.3}, {"temperature": 0.5}, "drawn", SCHEDULE]
CORRECTIONS = {0: 0.5, 1: 2.0, 2: 3.0}


@pytest.fixture(scope="module")
def rows():
    """Gradients [N, 4] of summed losses, trained tokens, sources, ids."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 30, (N,), generator=generator)
    gradients = torch.randn(N, 4, generator=generator).double() * tokens.sqrt()[:, None]
    return gradients + tokens[:, None], tokens, torch.arange(N) % 3, torch.arange(N)


def pool_of(rows):
    """All rows as a pool on one rank."""
    _, tokens, sources, ids = rows
    zeros = torch.zeros(N, dtype=torch.long)
    return Pool(
        ids=ids, sources=sources, lengths=tokens, tokens=tokens, ranks=zeros, rows=ids, batches=zeros, widths=tokens,
        eligible=torch.ones(N, dtype=torch.bool),
    )  # fmt: skip


def claims_of(value, *, corrected=False, weighed=False):
    made = Claims(make_objective(value))
    made.counts, made.done = COUNTS, 0.7
    if corrected:
        made.corrections = lambda step: CORRECTIONS
    if weighed:
        made.row_weights = torch.linspace(0.5, 2, N).double()
    return made


def expected(value, tokens, sources, *, corrected=False, weighed=False, step=7):
    """a_i u_i v_i, and what the sum of losses is divided by, written out."""
    drawn = value != "drawn" and corrected
    a = torch.tensor([CORRECTIONS[s] if drawn else 1.0 for s in sources.tolist()]).double()
    v = torch.linspace(0.5, 2, N).double() if weighed else torch.ones(N).double()
    shares = {0: 0.6, 1: 0.3, 2: 0.1}
    wanted = {
        "sources": dict.fromkeys(shares, 1 / 3),
        str({"rare": 0.7, "algebra": 0.3}): {0: 0.3, 1: 0.0, 2: 0.7},
        str({"temperature": 0.5}): {
            s: share**0.5 / sum(x**0.5 for x in shares.values()) for s, share in shares.items()
        },
        str(SCHEDULE): {s: 0.6 * shares[s] + 0.4 * {0: 0.5, 1: 0.0, 2: 0.5}[s] for s in shares},  # at 7 of 10 steps
    }.get(str(value))
    if value == "examples":
        return a * v / tokens, a.sum()
    u = torch.ones(N).double()
    if wanted is not None:
        u = torch.tensor([wanted[s] / shares[s] for s in sources.tolist()]).double()
    return a * u * v, (a * tokens).sum()


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("value", OBJECTIVES, ids=str)
def test_all_rows_together_have_the_formula(rows, value, corrected, weighed):
    gradients, tokens, sources, ids = rows
    made = claims_of(value, corrected=corrected, weighed=weighed)
    claim, unit = made.of(ids, sources, tokens, 7), "example_mean" if value == "examples" else "token_mean"
    weights = loss_weights(torch.ones(N), ids, tokens, loss=unit, weighted=True, slots=N, claim=claim)
    factors, total = expected(value, tokens, sources, corrected=corrected, weighed=weighed)
    claimed = (factors[:, None] * gradients).sum(0) / total
    trained = (weights.rows.double()[:, None] * gradients).sum(0) / weights.denominator.double()
    torch.testing.assert_close(trained, claimed, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("corrected", [False, True])
@pytest.mark.parametrize("value", OBJECTIVES, ids=str)
def test_the_mean_of_what_is_trained_is_what_is_claimed(rows, value, corrected):
    gradients, tokens, sources, ids = rows
    claim = claims_of(value, corrected=corrected).of(ids, sources, tokens, 7)
    unit = "example_mean" if value == "examples" else "token_mean"
    pool = pool_of(rows)
    pool, claim = under(pool, claim, M, every_row=False)
    candidates, chooses = pool.eligible.nonzero().flatten(), make_selector("importance")
    size = tokens.double().sqrt() if claim.factors is None else tokens.double().sqrt() * claim.factors
    made = []
    for draw in range(DRAWS):
        selection = chooses.select(size[candidates, None], M, seeded(draw, "claims"))
        weights = loss_weights(
            selection.weights, selection.indices, tokens[candidates], loss=unit, weighted=True, slots=M,
            claim=claim.take(candidates),
        )  # fmt: skip
        chosen = candidates[selection.indices]
        made.append((weights.rows.double()[:, None] * gradients[chosen]).sum(0) / weights.denominator.double())
    factors, total = expected(value, tokens, sources, corrected=corrected)
    found, claimed = torch.stack(made), (factors[:, None] * gradients).sum(0) / total
    spread = found.std(0) / DRAWS**0.5
    assert bool(((found.mean(0) - claimed).abs() < 4.5 * spread + 1e-6).all())


def test_rows_that_count_nothing_are_chosen_only_where_others_do_not_suffice(rows):
    _, tokens, sources, ids = rows
    claim = claims_of({"rare": 1.0}).of(ids, sources, tokens, 0)
    pool = pool_of(rows)
    few, narrowed = under(pool, claim, M, every_row=False)
    assert set(sources[few.eligible].tolist()) == {2}
    assert narrowed.total == float(tokens.sum())
    for budget, every_row in ((9, False), (M, True)):
        whole, same = under(pool, claim, budget, every_row=every_row)
        assert bool(whole.eligible.all())
        assert same.total is None


def test_a_source_that_is_not_there_or_has_no_tokens_is_named():
    made = claims_of({"rare": 0.5, "logic": 0.5})
    with pytest.raises(ConfigError, match="Found 'logic'"):
        made.check()
    made = claims_of("sources")
    made.counts = dataclasses.replace(COUNTS, tokens={0: 600, 1: 300, 2: 0})
    with pytest.raises(ConfigError, match="Found none in 'rare'"):
        made.check()
    with pytest.raises(ConfigError, match="Found 'logic'"):
        claims_of([{"until": 0.5, "is": "tokens"}, {"is": {"logic": 1.0}}]).check()


def test_u_of_sources_is_the_share_wanted_over_the_share_there():
    found = source_weights(make_objective("sources"), COUNTS)
    assert found == pytest.approx({0: 1 / 3 / 0.6, 1: 1 / 3 / 0.3, 2: 1 / 3 / 0.1})


def test_claims_that_say_nothing_are_the_trainer_s_own(rows):
    _, tokens, sources, ids = rows
    claim = Claims().of(ids, sources, tokens, 0)
    assert isinstance(claim, Claim)
    assert claim.factors is None
    assert torch.equal(claim.parts, tokens.double())


# ---- select ---------------------------------------------------------------------------------------------------------


def test_select_chooses_by_what_rows_count(rows):
    gradients = rows[0]
    u = torch.where(rows[2] == 2, 10.0, 1.0)
    times = torch.zeros(N).double()
    total = torch.zeros(4).double()
    for seed in range(300):
        selection = select(gradients, M, seed=seed, objective_weights=u)
        assert float(selection.weights.mean()) > 0
        times[selection.indices] += 1
        total += (selection.weights.double() * u[selection.indices]) @ gradients[selection.indices] / M
    assert times[rows[2] == 2].mean() > 2 * times[rows[2] != 2].mean()
    claimed = (u.double()[:, None] * gradients).mean(0)
    torch.testing.assert_close(total / 300, claimed, rtol=0.06, atol=0.0)
    assert torch.equal(select(gradients, N, objective_weights=u).weights, torch.ones(N))
    plain, ones = select(gradients, M), select(gradients, M, objective_weights=torch.ones(N))
    assert torch.equal(plain.indices, ones.indices)


@pytest.mark.parametrize(
    "weights, error",
    [
        ([1.0] * N, InputError),
        (torch.ones(N - 1), InputError),
        (torch.ones(N, dtype=torch.long), InputError),
        (-torch.ones(N), InputError),
        (torch.full((N,), float("nan")), NonFiniteError),
    ],
    ids=["list", "short", "integers", "negative", "nan"],
)
def test_objective_weights_that_are_none(rows, weights, error):
    with pytest.raises(error, match="objective_weights"):
        select(rows[0], M, objective_weights=weights)

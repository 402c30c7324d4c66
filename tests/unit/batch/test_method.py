"""`corebatch.select` on plain tensors, and the one page that the trainer runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import corebatch
from corebatch import CorebatchError, Selection, select
from corebatch.batch.method import CoresetStep, check_finite
from corebatch.errors import ConfigError, NonFiniteError
from corebatch.scoring import Scores, Tokens
from corebatch.seeds import seeded
from corebatch.selectors import SELECTORS, make_selector
from corebatch.sources import Keeping, split
from corebatch.transforms import AdamHistory, OptimizerScale, Projection, TopK

N, P, M = 40, 6, 16
NAMES = ["algebra"] * 21 + ["geometry"] * 15 + ["rare"] * 3 + ["scarce"] * 1
EVERY = pytest.mark.parametrize("selector", SELECTORS)


def features(seed: int = 0, rows: int = N) -> Tensor:
    return torch.randn(rows, P, generator=torch.Generator().manual_seed(seed))


def choose(selector: Any, **settings: Any) -> Selection:
    given: dict[str, Any] = {
        "features": features(),
        "budget": M,
        "losses": torch.linspace(0.0, 1.0, N),
        "validation": features(7, rows=3),
    }
    return select(selector=selector, **{**given, **settings})


def same(one: Selection, other: Selection) -> bool:
    return torch.equal(one.indices, other.indices) and torch.equal(one.weights, other.weights)


@EVERY
@pytest.mark.parametrize("small", [None, "auto", ["rare"]], ids=str)
def test_every_selector_with_sources(selector: str, small: Any) -> None:
    """Names, their numbers as a tensor, and as a list say the same; small sources are kept where asked."""
    numbers = [["algebra", "geometry", "rare", "scarce"].index(name) for name in NAMES]
    policy = [2] if isinstance(small, list) else small
    found = choose(selector, source_ids=NAMES, small_sources=small)
    for ids in (torch.tensor(numbers), torch.tensor(numbers, dtype=torch.int32), numbers):
        assert same(choose(selector, source_ids=ids, small_sources=policy), found)
    assert found.indices.shape == found.weights.shape == (M,)
    chosen = found.indices.tolist()
    assert chosen == sorted(set(chosen))
    kept = {"rare", "scarce"} if small == "auto" else set(small or [])
    weighted = make_selector(selector).weighted
    for row, name in enumerate(NAMES):
        if name in kept:
            assert row in chosen
            weight = float(found.weights[chosen.index(row)])
            assert weight == pytest.approx(M / N if weighted else 1.0)
    if not weighted:
        assert found.uniform
    if make_selector(selector).per_source and small == "auto":
        shares = [sum(NAMES[row] == name for row in chosen) for name in ("algebra", "geometry")]
        assert shares == [7, 5]  # 12 of 36: 7 and 5


@EVERY
def test_a_budget_of_all_returns_all_in_order(selector: str) -> None:
    for settings in ({}, {"source_ids": NAMES}, {"source_ids": NAMES, "small_sources": "auto"}):
        found = choose(selector, budget=N, **settings)
        assert found.indices.tolist() == list(range(N))
        assert found.uniform


@EVERY
def test_the_seed_decides_and_the_global_state_does_not(selector: str) -> None:
    settings = {"source_ids": NAMES, "small_sources": "auto"}
    state = torch.get_rng_state()
    first = choose(selector, seed=5, **settings)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        assert same(choose(selector, seed=5, **settings), first)
    if selector in ("random", "importance", "pivotal", "balanced", "stratified"):
        assert any(not same(choose(selector, seed=seed, **settings), first) for seed in range(6, 12))


def test_the_default_is_cube_without_small_sources() -> None:
    rows = features()
    assert same(select(rows, M), select(rows, M, selector="cube", seed=0))
    assert same(select(rows, budget=M, source_ids=NAMES), select(rows, M, NAMES, "cube", small_sources=None))
    assert corebatch.select is select


def test_names_options_and_instances() -> None:
    by_name = choose("facility_location", selector_options={"metric": "l2"})
    assert same(by_name, choose(SELECTORS["facility_location"](metric="l2")))  # type: ignore[call-arg]
    assert not same(by_name, choose("facility_location", selector_options={"metric": "cosine"}))


def test_importance_weights_are_m_over_n_pi() -> None:
    """With rows of two lengths above the floor pi is known: M f_i / sum f."""
    length = torch.tensor([1.0] * 30 + [3.0] * 10)
    rows = torch.nn.functional.normalize(features(), dim=1) * length[:, None]
    found = choose("importance", features=rows, selector_options={"floor": 0.001})
    pi = M * length / length.sum()
    torch.testing.assert_close(found.weights, (M / (N * pi))[found.indices])


@pytest.mark.parametrize(
    "selector, small",
    [("random", None), *((selector, small) for selector in ("importance", "pivotal") for small in (None, "auto"))],
)
def test_the_weighted_mean_is_unbiased(selector: str, small: Any) -> None:
    """With small sources too, unless weights are uniform: kept rows have M/N, the others the weight of their group."""
    rows = features() * torch.linspace(0.3, 2.0, N)[:, None]
    means = []
    for seed in range(600):
        found = choose(selector, features=rows, source_ids=NAMES, small_sources=small, seed=seed)
        means.append((found.weights[:, None] * rows[found.indices]).sum(dim=0) / M)
    draws = torch.stack(means)
    error, spread = draws.mean(dim=0) - rows.mean(dim=0), draws.std(dim=0) / len(draws) ** 0.5
    assert bool((error.abs() <= 4 * spread).all())


@pytest.mark.parametrize(
    "settings, found",
    [
        ({"budget": -1}, "-1"),
        ({"budget": N + 1}, "41"),
        ({"budget": -1, "source_ids": NAMES}, "-1"),
        ({"budget": True, "source_ids": NAMES}, "True"),
        ({"budget": 2.0}, "2.0"),
        ({"budget": None}, "None"),
        ({"features": [[1.0]]}, "'list'"),
        ({"features": torch.zeros(N)}, "(40,)"),
        ({"features": torch.zeros(0, P), "budget": 0}, "(0, 6)"),
        ({"features": torch.zeros(0, P), "budget": 0, "source_ids": []}, "(0, 6)"),
        ({"features": torch.zeros(N, 0)}, "(40, 0)"),
        ({"features": torch.zeros(N, P, dtype=torch.long)}, "torch.int64"),
        ({"features": features().index_fill(0, torch.tensor(3), float("nan"))}, "rows 3"),
        ({"features": features().index_fill(0, torch.tensor(3), float("inf")), "source_ids": NAMES}, "rows 3"),
        ({"source_ids": NAMES[1:]}, "Found 39"),
        ({"source_ids": "algebra"}, "the string 'algebra'"),
        ({"source_ids": torch.zeros(N)}, "torch.float32"),
        ({"source_ids": [None, *NAMES[1:]]}, "None in row 0"),
        ({"selector": "pivotl"}, "'pivotl'"),
        ({"selector": 3}, "3"),
        ({"selector_options": {"flor": 0.1}}, "'flor'"),
        ({"selector_options": {"floor": "x"}}, "'x'"),
        ({"selector": SELECTORS["random"](), "selector_options": {"a": 1}}, "a"),
        ({"small_sources": "rare"}, "'rare'"),
        ({"small_sources": 3}, "3"),
        ({"small_sources": "rare", "source_ids": NAMES}, "'rare'"),
        ({"losses": torch.zeros(N - 1)}, "(39,)"),
        ({"losses": [0.0] * N}, "list"),
        ({"selector": "hard", "losses": None}, "`losses`"),
        ({"losses": torch.zeros(N).index_fill(0, torch.tensor(9), float("nan"))}, "rows 9"),
        ({"validation": torch.zeros(2, P + 1)}, "(2, 7)"),
    ],
    ids=lambda value: str(list(value)) if isinstance(value, dict) else value,
)
def test_bad_input_is_a_value_error_that_says_what_was_found(settings: dict[str, Any], found: str) -> None:
    with pytest.raises(CorebatchError) as caught:
        choose(**{"selector": "pivotal", **settings})
    assert isinstance(caught.value, ValueError)
    assert found in str(caught.value)


@pytest.mark.parametrize("seed", [0, 2**63, -4])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert same(choose("random", seed=seed), choose("random", seed=seed))


def test_hard_takes_a_one_column_feature_as_the_loss() -> None:
    losses = features()[:, :1]
    found = select(losses, M, selector="hard")
    assert found.indices.tolist() == sorted(losses.flatten().topk(M).indices.tolist())


# The records


@pytest.mark.parametrize(
    "fields, found",
    [
        ({"indices": torch.tensor([0.0, 1.0])}, "torch.float32"),
        ({"indices": torch.tensor([1, 0])}, "strictly ascending"),
        ({"indices": torch.tensor([1, 1])}, "strictly ascending"),
        ({"indices": torch.tensor([-1, 1])}, "-1"),
        ({"weights": torch.ones(2, dtype=torch.float64)}, "torch.float64"),
        ({"weights": torch.ones(3)}, "(3,)"),
        ({"weights": torch.tensor([1.0, float("nan")])}, "finite"),
        ({"weights": torch.tensor([1.0, -1.0])}, "not negative"),
        ({"gains": torch.ones(1)}, "(1,)"),
    ],
)
def test_a_selection_is_checked_where_it_is_made(fields: dict[str, Any], found: str) -> None:
    with pytest.raises(CorebatchError) as caught:
        Selection(**{"indices": torch.tensor([0, 4]), "weights": torch.ones(2), **fields})
    assert found in str(caught.value)


# The step


def made(**settings: Any) -> CoresetStep:
    defaults = {"scorer": Tokens(), "selector": make_selector("facility_location"), "source_names": list("abcd")}
    return CoresetStep(**{**defaults, **settings})


def scores(rows: Tensor) -> Scores:
    return Scores(features=rows, losses=torch.zeros(len(rows)), tokens=torch.ones(len(rows), dtype=torch.long))


SOURCES = torch.tensor([["algebra", "geometry", "rare", "scarce"].index(name) for name in NAMES])


def test_the_stages_in_order() -> None:
    """Normalise, sparsify by source, select in groups; as if done by hand."""
    normalise = OptimizerScale()
    moments = torch.linspace(0.01, 4.0, P)
    step = made(normalise=normalise, sparsify=TopK(h=2), small_sources=frozenset({2, 3}))
    choice = step.choose(scores(features()), SOURCES, M, step=4, second_moments=moments)
    groups = split(
        SOURCES, M, keeping=Keeping(frozenset({2, 3})), names=list("abcd"), per_source=True,
        generator=seeded(0, 4, "split"),
    )  # fmt: skip
    by_hand = TopK(h=2)(normalise(features(), moments), SOURCES)
    assert same(choice.selection, step.selector.select(by_hand, M, groups=groups))
    assert [(g.name, g.budget, g.keep) for g in choice.groups] == [
        ("d", 1, True),
        ("c", 3, True),
        ("a", 7, False),
        ("b", 5, False),
    ]


@pytest.mark.parametrize("selector", [name for name in SELECTORS if "validation" not in SELECTORS[name].requires])
def test_a_step_is_determined_by_seed_and_number(selector: str) -> None:
    def choice(number: int, seed: int = 0) -> Selection:
        step = made(selector=make_selector(selector), seed=seed)
        return step.choose(scores(features()), SOURCES, M, step=number).selection

    state = torch.get_rng_state()
    assert same(choice(3), choice(3))
    assert torch.equal(torch.get_rng_state(), state)
    if selector in ("random", "importance", "pivotal", "balanced", "stratified"):
        assert any(not same(choice(3), choice(number)) for number in range(4, 9))
        assert any(not same(choice(3), choice(3, seed=seed)) for seed in range(1, 6))


def test_the_history_takes_the_raw_mean_over_the_chosen_of_large_sources() -> None:
    history = AdamHistory()
    step = made(normalise=history, small_sources=frozenset({2, 3}))
    rows = features()
    for number in (1, 2):
        before = history.state_dict()
        chosen = step.choose(scores(rows), SOURCES, M, step=number).selection.indices
        large = chosen[SOURCES[chosen] < 2]
        assert len(large) == 12
        mean = rows[large].mean(dim=0)
        expected = 0.1 * mean + (0.9 * before["m"] if before else 0)
        torch.testing.assert_close(history.state_dict()["m"], expected)
        assert history.steps == number


def test_whether_scores_are_needed() -> None:
    assert made().scores
    assert made(selector=make_selector("hard")).scores
    assert not made(selector=make_selector("random")).scores
    assert not made(selector=make_selector("stratified")).scores


@pytest.mark.parametrize("selector", ["importance", "pivotal", "balanced"])
def test_settings_that_do_not_go_together(selector: str) -> None:
    with pytest.raises(ConfigError, match=rf"normalise 'adam' .*{selector}"):
        made(selector=make_selector(selector), normalise=AdamHistory())
    with pytest.raises(ConfigError, match=rf"sparsify 'topk' .*{selector}"):
        made(selector=make_selector(selector), sparsify=TopK())
    made(selector=make_selector(selector), normalise=OptimizerScale(), sparsify=Projection())


@pytest.mark.parametrize("what", ["feature", "loss"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(what: str, bad: float) -> None:
    rows, losses = features(), torch.zeros(N)
    (rows if what == "feature" else losses)[10:20] = bad
    given = Scores(features=rows, losses=losses, tokens=torch.ones(N, dtype=torch.long))
    with pytest.raises(NonFiniteError, match=rf"{what} .* 10 rows: 10, 11, 12, 13, 14, 15, 16, 17, \.\.\."):
        made().choose(given, SOURCES, M, step=1)
    check_finite(features().T, None)  # not contiguous

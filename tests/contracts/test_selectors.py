"""What every selector promises, over every family of inputs. New selectors are found through SELECTORS."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from corebatch.errors import CorebatchError
from corebatch.selectors import SELECTORS, Selector, make_selector
from corebatch.selectors.kernels import blocks
from corebatch.types import Selection, SourceGroup

N, P, M = 24, 7, 9

# Selectors whose choice does not depend on the generator: permuting the rows permutes their choice.
DETERMINISTIC = {
    "facility_location",
    "hard",
    "herding",
    "k_medoids",
    "craig",
    "gradient_matching",
    "greats",
}
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, {}) for name in sorted(SELECTORS)),
    ("facility_location", {"metric": "l2"}),
    ("facility_location", {"metric": "cosine"}),
    ("facility_location", {"weights": "cluster_size"}),
    ("facility_location", {"stochastic": 0.1}),
    ("facility_location", {"joint": True}),
    ("importance", {"floor": 1.0}),
    ("balanced", {"max_swaps": 1}),
    ("importance", {"calibrate": True}),
    ("pivotal", {"calibrate": 0.1}),
    ("balanced", {"calibrate": True}),
    ("cube", {"dimensions": 40}),
    ("greats", {"interaction": 0.0}),
    ("greats", {"learning_rate": 0.05}),
    ("gradient_matching", {"scale": "average"}),
]
EVERY = pytest.mark.parametrize("name, options", VARIANTS, ids=lambda value: str(value))


@pytest.fixture(autouse=True, params=["whole", "blocks"])
def _how_many_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every promise holds for few rows and for many: "blocks" makes `N` rows many."""
    if request.param == "blocks":
        monkeypatch.setattr(blocks, "BLOCK", 5)
        monkeypatch.setattr(blocks, "FEW", 2)


def _normal(seed: int = 0, rows: int = N, columns: int = P) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _one_nonzero_row() -> Tensor:
    features = torch.zeros(N, P)
    features[5] = 1.0
    return features


FAMILIES: dict[str, Callable[[], Tensor]] = {
    "normal": _normal,
    "float64": lambda: _normal().double(),
    "bfloat16": lambda: _normal().bfloat16(),
    "float16": lambda: _normal().half(),
    "mixed norms": lambda: _normal() * torch.logspace(-4, 4, N)[:, None],
    "duplicates": lambda: _normal(rows=N // 3).repeat(3, 1),
    "ties": lambda: torch.randint(0, 2, (N, P), generator=torch.Generator().manual_seed(1)).float(),
    "zeros": lambda: torch.zeros(N, P),
    "one nonzero row": _one_nonzero_row,
    "rank one": lambda: _normal(columns=1) * _normal(seed=1, rows=1),
    "tiny": lambda: _normal() * 1e-10,
    "huge": lambda: _normal() * 1e15,
    "smallest float64": lambda: _normal().double() * 1e-300,
    "largest float64": lambda: _normal().double() * 1e300,
    "one column": lambda: _normal(columns=1),
    "positive": lambda: _normal().abs() + 1.0,
    "not contiguous": lambda: _normal(rows=P, columns=N).T,
}


def choose(
    selector: Selector,
    features: Tensor,
    budget: int = M,
    seed: int = 3,
    groups: list[SourceGroup] | None = None,
    losses: Tensor | None = None,
) -> Selection:
    """Select with everything that any selector may require."""
    if losses is None:
        losses = torch.linspace(0.0, 1.0, len(features))
    return selector.select(
        features,
        budget,
        torch.Generator().manual_seed(seed),
        groups=groups,
        losses=losses,
        validation=features[:2].roll(1, dims=1) + features.mean(0),
    )


def assert_sound(selection: Selection, selector: Selector, features: Tensor, budget: int) -> None:
    indices, weights = selection.indices, selection.weights
    assert indices.shape == weights.shape == (budget,)
    assert indices.dtype == torch.long
    assert weights.dtype == torch.float32
    assert indices.device == weights.device == features.device
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert all(0 <= index < len(features) for index in indices.tolist())
    assert bool(torch.isfinite(weights).all())
    assert bool((weights >= 0).all())
    if not selector.weighted:
        assert bool((weights == 1).all())
    if selection.gains is not None:
        assert selection.gains.shape == (budget,)
        assert selection.gains.dtype == torch.float32
        assert bool(torch.isfinite(selection.gains).all())


def assert_same(one: Selection, other: Selection) -> None:
    assert one.indices.tolist() == other.indices.tolist()
    assert torch.equal(one.weights, other.weights)


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
def test_selection_is_sound(name: str, options: dict[str, object], family: str) -> None:
    selector = make_selector(name, options)
    for budget in (1, M, N - 1):
        features = FAMILIES[family]()
        before = features.clone()
        assert_sound(choose(selector, features, budget), selector, features, budget)
        assert torch.equal(features, before), "the features were modified"


@EVERY
@pytest.mark.parametrize("family", FAMILIES)
def test_budget_zero_and_all(name: str, options: dict[str, object], family: str) -> None:
    selector, features = make_selector(name, options), FAMILIES[family]()
    nothing = choose(selector, features, 0)
    assert_sound(nothing, selector, features, 0)
    everything = choose(selector, features, N)
    assert_sound(everything, selector, features, N)
    assert everything.indices.tolist() == list(range(N))
    assert everything.uniform


@EVERY
def test_one_row(name: str, options: dict[str, object]) -> None:
    selection = choose(make_selector(name, options), _normal(rows=2)[:1].clone(), 1)
    assert selection.indices.tolist() == [0]
    assert selection.uniform


@EVERY
def test_same_seed_same_choice(name: str, options: dict[str, object]) -> None:
    selector, features = make_selector(name, options), _normal()
    assert_same(choose(selector, features, seed=7), choose(selector, features, seed=7))
    assert_same(choose(selector, features, seed=7), choose(make_selector(name, options), features, seed=7))


@EVERY
def test_no_generator_is_seed_zero_and_the_global_state_is_untouched(name: str, options: dict[str, object]) -> None:
    selector, features = make_selector(name, options), _normal()
    losses, validation = features[:, 0].clone(), _normal(seed=4, rows=2)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        state = torch.get_rng_state()
        first = selector.select(features, M, losses=losses, validation=validation)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(12)
        second = selector.select(features, M, losses=losses, validation=validation)
    seeded = selector.select(features, M, torch.Generator().manual_seed(0), losses=losses, validation=validation)
    assert_same(first, second)
    assert_same(first, seeded)


@EVERY
@pytest.mark.parametrize("exponent", [-33, 50, -900, 900])
def test_a_power_of_two_changes_nothing(name: str, options: dict[str, object], exponent: int) -> None:
    selector, features = make_selector(name, options), _normal().double()
    assert_same(choose(selector, features), choose(selector, features * 2.0**exponent))


@EVERY
@pytest.mark.parametrize("scale", [1e-10, 1e15])
def test_scale_does_not_change_the_choice(name: str, options: dict[str, object], scale: float) -> None:
    selector, features = make_selector(name, options), _normal()
    one, other = choose(selector, features), choose(selector, features * scale)
    assert one.indices.tolist() == other.indices.tolist()
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-4, atol=1e-5)


@EVERY
def test_precision_of_storage_does_not_change_the_choice(name: str, options: dict[str, object]) -> None:
    selector, features = make_selector(name, options), _normal().bfloat16()
    assert_same(choose(selector, features), choose(selector, features.double()))


@EVERY
def test_zeros_behave_as_uniform(name: str, options: dict[str, object]) -> None:
    selection = choose(make_selector(name, options), torch.zeros(N, P), losses=torch.zeros(N))
    torch.testing.assert_close(selection.weights, torch.ones(M))


@EVERY
def test_weights_average_one(name: str, options: dict[str, object]) -> None:
    """Over draws, since a single draw of a sampling selector only does so in expectation. `gradient_matching` solves
    for the mean itself, with less weight on rows that point along it, unless it is told to average 1."""
    features = _normal() * torch.linspace(0.2, 2.0, N)[:, None]
    selector = make_selector(name, options)
    means = torch.stack([choose(selector, features, seed=seed).weights.mean() for seed in range(100)])
    if name == "gradient_matching" and options == {}:
        assert 0.0 < float(means.mean()) < 0.95
    else:
        assert abs(float(means.mean()) - 1.0) < 0.05


@pytest.mark.parametrize(
    "name, options", [each for each in VARIANTS if each[0] in DETERMINISTIC and "stochastic" not in each[1]]
)
@pytest.mark.parametrize("seed", range(5))
def test_permuting_rows_permutes_the_choice(name: str, options: dict[str, object], seed: int) -> None:
    """With a small budget: two rows left in a pair of their own tie as medoids, whatever the features."""
    if not blocks.fits(N) and name in ("facility_location", "craig", "k_medoids"):
        pytest.skip("such pairs are left in blocks of 5")
    selector, features = make_selector(name, options), _normal(seed)
    validation, losses = _normal(seed=seed + 50, rows=2), features[:, 0].clone()
    order = torch.randperm(N, generator=torch.Generator().manual_seed(seed))
    one = selector.select(features, 3, losses=losses, validation=validation)
    other = selector.select(features[order], 3, losses=losses[order], validation=validation)
    weight_of = dict(zip(one.indices.tolist(), one.weights.tolist(), strict=True))
    assert sorted(order[other.indices].tolist()) == one.indices.tolist()
    expected = [weight_of[row] for row in order[other.indices].tolist()]
    assert other.weights.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", [each for each in SELECTORS if each in DETERMINISTIC])
def test_deterministic_selectors_ignore_the_seed(name: str) -> None:
    selector, features = make_selector(name), _normal()
    assert_same(choose(selector, features, seed=1), choose(selector, features, seed=2))


# Groups


def _groups() -> list[SourceGroup]:
    """A kept one of 3, a full one of 2 (not kept), one of 12 of which 5, one of 7 of which none."""
    rows = torch.randperm(N, generator=torch.Generator().manual_seed(8))
    sizes = {"small": (3, 3, True), "full": (2, 2, False), "rest": (12, 5, False), "none": (7, 0, False)}
    groups, start = [], 0
    for group, (size, budget, keep) in sizes.items():
        members = rows[start : start + size].sort().values
        groups.append(SourceGroup(name=group, members=members, budget=budget, keep=keep))
        start += size
    return groups


@EVERY
@pytest.mark.parametrize("family", ["normal", "zeros", "duplicates", "huge"])
def test_groups_get_their_budgets_and_weights(name: str, options: dict[str, object], family: str) -> None:
    selector, features, groups = make_selector(name, options), FAMILIES[family](), _groups()
    total = sum(group.budget for group in groups)
    selection = choose(selector, features, total, groups=groups)
    assert_sound(selection, selector, features, total)
    for group in groups:
        inside = torch.isin(selection.indices, group.members)
        assert int(inside.sum()) == group.budget
        if group.budget == len(group.members) and selector.weighted:
            torch.testing.assert_close(selection.weights[inside], torch.full((group.budget,), total / N))


@EVERY
def test_a_group_is_chosen_as_if_alone(name: str, options: dict[str, object]) -> None:
    """And its weights are multiplied by (M/N)(N_g/M_g)."""
    if "joint" in options:
        pytest.skip("which is what `joint` is not")
    selector, features, groups = make_selector(name, options), _normal(), _groups()
    rest, losses, total = groups[2], torch.linspace(0.0, 1.0, N), 10
    validation = _normal(seed=4, rows=2)
    joint = selector.select(features, total, groups=groups, losses=losses, validation=validation)
    alone = selector.select(features[rest.members], rest.budget, losses=losses[rest.members], validation=validation)
    inside = torch.isin(joint.indices, rest.members)
    assert joint.indices[inside].tolist() == rest.members[alone.indices].tolist()
    factor = (total / N) * (len(rest.members) / rest.budget) if selector.weighted else 1.0
    torch.testing.assert_close(joint.weights[inside], alone.weights * factor)


@EVERY
def test_one_group_of_all_is_no_group(name: str, options: dict[str, object]) -> None:
    selector, features = make_selector(name, options), _normal()
    whole = SourceGroup(name="rest", members=torch.arange(N), budget=M)
    assert_same(choose(selector, features, groups=[whole]), choose(selector, features))


# Errors


def assert_refuses(found: str, name: str, features: object, budget: object, **more: object) -> None:
    with pytest.raises(CorebatchError) as caught:
        make_selector(name).select(features, budget, **more)  # type: ignore[arg-type]
    assert isinstance(caught.value, ValueError)
    assert found in str(caught.value)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(
    "features, found",
    [
        (torch.zeros(0, P), "(0, 7)"),
        (torch.zeros(N, 0), "(24, 0)"),
        (torch.zeros(N), "(24,)"),
        (torch.zeros(N, P, 2), "(24, 7, 2)"),
        (torch.zeros(N, P, dtype=torch.long), "torch.int64"),
        (torch.zeros(N, P, dtype=torch.complex64), "torch.complex64"),
        ([[1.0, 2.0]], "list"),
    ],
    ids=["no rows", "no columns", "1-D", "3-D", "integers", "complex", "list"],
)
def test_refuses_features(name: str, features: object, found: str) -> None:
    assert_refuses(found, name, features, 0)
    assert_refuses("[N, P]", name, features, 0)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("budget", [-1, N + 1, True, 2.0, None, "3"])
def test_refuses_budgets(name: str, budget: object) -> None:
    assert_refuses(repr(budget), name, _normal(), budget)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("budget", [0, M, N])
def test_refuses_what_is_not_finite_and_names_the_rows(name: str, bad: float, budget: int) -> None:
    features = _normal()
    features[[4, 11], 2] = bad
    given = {"losses": torch.zeros(N), "validation": torch.zeros(1, P)}
    assert_refuses("rows 4, 11", name, features, budget, **given)
    features[5:15] = bad
    assert_refuses("rows 4, 5, 6, 7, 8 and 6 more", name, features, budget, **given)
    assert_refuses("rows 3", name, _normal(), budget, losses=torch.ones(N).index_fill(0, torch.tensor(3), bad))
    assert_refuses("rows 0", name, _normal(), budget, validation=torch.full((1, P), bad))


@pytest.mark.parametrize("name", SELECTORS)
def test_refuses_losses_and_validation_of_another_shape(name: str) -> None:
    assert_refuses("(23,)", name, _normal(), M, losses=torch.zeros(N - 1))
    assert_refuses("torch.int64", name, _normal(), M, losses=torch.zeros(N, dtype=torch.long))
    assert_refuses("list", name, _normal(), M, losses=[0.0] * N)
    assert_refuses("(2, 6)", name, _normal(), M, validation=torch.zeros(2, P - 1))
    assert_refuses("(7,)", name, _normal(), M, validation=torch.zeros(P))


@pytest.mark.parametrize("name", SELECTORS)
def test_names_what_is_missing(name: str) -> None:
    for needed in SELECTORS[name].requires - {"features"}:
        given = {"losses": torch.zeros(N), "validation": torch.zeros(1, P)}
        del given[needed]
        assert_refuses(f"`{name}` needs `{needed}`", name, _normal(), M, **given)


def _group(rows: list[int], budget: int) -> SourceGroup:
    return SourceGroup(name="g", members=torch.tensor(rows, dtype=torch.long), budget=budget)


@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(
    "groups, found",
    [
        ([], "row 0 0 times"),
        ([_group([0, 1], 2)], "row 2 0 times"),
        ([_group([0, 1, 2, 3], 1), _group([1], 1)], "row 1 2 times"),
        ([_group([0, 1, 2, 4], 2)], "Found 4"),
        ([_group([-1, 0, 1, 2], 2)], "Found -1"),
        ([_group([0, 1], 1), _group([2, 3], 2)], "Found 3"),
        (["a"], "Found str"),
    ],
)
def test_refuses_groups(name: str, groups: list[SourceGroup], found: str) -> None:
    given = {"losses": torch.zeros(4), "validation": torch.zeros(1, P)}
    assert_refuses(found, name, _normal(rows=4), 2, groups=groups, **given)


@pytest.mark.parametrize("name", SELECTORS)
def test_class_attributes(name: str) -> None:
    selector = make_selector(name)
    assert selector.name == name
    assert selector.requires <= {"features", "losses", "validation"}
    assert isinstance(selector.weighted, bool)
    assert isinstance(selector.per_source, bool)
    assert not (selector.weighted and selector.per_source), "weighted selectors choose over all rows"
    with pytest.raises(CorebatchError, match="no_such_option"):
        make_selector(name, {"no_such_option": 1})
    with pytest.raises(TypeError, match="no_such_option"):
        SELECTORS[name](no_such_option=1)

"""What every method of `SUBSETS` promises. New methods are found there; what they require is made here."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corebatch.errors import ConfigError, InputError, NonFiniteError
from corebatch.subset import SUBSETS, Subset, keep_rows, make_subset

N, P = 60, 5
FEW: dict[str, dict[str, object]] = {"ccs": {"strata": 10}}
"""Options with which a method can do with so few rows."""
VARIANTS: list[tuple[str, dict[str, object]]] = [
    *((name, FEW.get(name, {})) for name in sorted(SUBSETS)),
    ("ccs", {"strata": 4, "hardest": 0.0}),
    ("difficulty", {"part": "middle", "by_source": True}),
    ("difficulty", {"part": "easy"}),
    ("facility_location", {"weights": "cluster_size"}),
    ("facility_location", {"block": 8}),
    ("facility_location", {"block": 8, "metric": "l1", "weights": "cluster_size"}),
    ("balanced", {"floor": 1.0}),
    ("simcore", {"stop": None, "centers": 3}),
    ("goracs", {"gradient_weight": 0.0, "exchanges": 3}),
    ("autocoreset", {"summary": "median_of_means"}),
    ("autocoreset", {"summary": "importance"}),
    ("near_duplicates", {"by": "embedding", "threshold": 0.8}),
    ("near_duplicates", {"scope": "local", "priority": ["tiny", "big"]}),
    ("relevance", {"rule": "mean"}),
    ("relevance", {"by": "words"}),
]
EVERY = pytest.mark.parametrize("name, options", VARIANTS, ids=lambda value: str(value))


def _given(seed: int = 0) -> dict[str, object]:
    """All that a method may require."""
    generator = torch.Generator().manual_seed(seed)
    words = [f"w{i}" for i in range(40)]

    def texts(count: int) -> list[str]:
        picks = torch.randint(len(words), (count, 12), generator=generator).tolist()
        return [" ".join(words[i] for i in row) for row in picks]

    return {
        "features": torch.randn(N, P, generator=generator),
        "target": torch.randn(7, P, generator=generator),
        "scores": torch.rand(N, generator=generator),
        "losses": torch.rand(N, 4, generator=generator) + 0.1,
        "texts": texts(N),
        "target_texts": texts(7),
        "sources": ["big"] * 40 + ["small"] * 15 + ["tiny"] * 5,
        "tokens": torch.randint(1, 9, (N,), generator=generator),
    }


def _kept(name: str, options: dict[str, object], keep: float = 0.3, seed: int = 0, **other: object) -> Subset:
    return keep_rows(N, keep, name, options=options, seed=seed, **{**_given(), **other})  # type: ignore[arg-type]


@EVERY
def test_rows_and_weights(name: str, options: dict[str, object]) -> None:
    method, kept = make_subset(name, options), _kept(name, options)
    assert kept.rows.dtype == torch.long
    assert bool((kept.rows.diff() > 0).all())
    assert 0 <= int(kept.rows[0]) <= int(kept.rows[-1]) < N
    assert len(kept.rows) == 18 if method.exact else 1 <= len(kept.rows) <= 18
    assert kept.ones.dtype == torch.float64
    assert float(kept.ones.mean()) == pytest.approx(1)
    assert bool((kept.ones >= 0).all())
    assert method.weighted or kept.weights is None


@EVERY
def test_the_same_seed_keeps_the_same(name: str, options: dict[str, object]) -> None:
    first, second = _kept(name, options, seed=3), _kept(name, options, seed=3)
    assert torch.equal(first.rows, second.rows)
    assert torch.equal(first.ones, second.ones)


@EVERY
def test_keeping_all_keeps_all(name: str, options: dict[str, object]) -> None:
    if make_subset(name, options).exact:
        kept = _kept(name, options, keep=1)
        assert torch.equal(kept.rows, torch.arange(N))
        assert kept.weights is None


@EVERY
def test_one_row_at_least(name: str, options: dict[str, object]) -> None:
    assert len(_kept(name, options, keep=0.001).rows) == 1


@EVERY
def test_global_generators_and_arguments_are_left_alone(name: str, options: dict[str, object]) -> None:
    state, numbers, given = torch.get_rng_state(), np.random.get_state()[1].copy(), _given()  # noqa: NPY002
    keep_rows(N, 0.3, name, options=options, **given)  # type: ignore[arg-type]
    assert torch.equal(state, torch.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002
    for key, value in _given().items():
        assert torch.equal(value, given[key]) if isinstance(value, torch.Tensor) else value == given[key]


@EVERY
def test_identical_rows_are_valid(name: str, options: dict[str, object]) -> None:
    same = {
        "features": torch.ones(N, P),
        "target": torch.ones(3, P),
        "losses": torch.ones(N, 4),
        "scores": torch.ones(N),
        "texts": ["one text of several words"] * N,
        "target_texts": ["one text of several words"] * 3,
    }
    kept = _kept(name, options, **same)
    assert len(kept.rows) == 18 if make_subset(name, options).exact else len(kept.rows) >= 1


@EVERY
def test_what_is_required_and_missing_is_named(name: str, options: dict[str, object]) -> None:
    for what in make_subset(name, options).requires:
        with pytest.raises(InputError, match=f"`{name}` needs `{what}`"):
            _kept(name, options, **{what: None})


@pytest.mark.parametrize("keep", [0, -0.1, 1.1, float("nan"), True, "half"])
def test_keep_is_a_share(keep: object) -> None:
    with pytest.raises(InputError, match=r"`keep` should be a share of the rows in \(0, 1\]"):
        keep_rows(N, keep, "random")  # type: ignore[arg-type]


def test_names_and_options() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'random'"):
        keep_rows(N, 0.5, "randon")
    with pytest.raises(ConfigError, match="takes no options"):
        keep_rows(N, 0.5, "random", options={"floor": 1})
    with pytest.raises(InputError, match="`count` should be the number of rows"):
        keep_rows(0, 0.5, "random")


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"features": torch.randn(N - 1, P)}, "`features` should have a row for each of the 60 rows. Found 59"),
        ({"features": torch.randn(N)}, r"`features` should be a floating matrix .* shape \(60,\)"),
        ({"features": torch.ones(N, P, dtype=torch.long)}, "dtype torch.int64"),
        ({"features": [[1.0]]}, "Found list"),
        ({"target": torch.randn(7, P + 1)}, "`target` should have as many columns as `features`, 5. Found 6"),
        ({"target": torch.zeros(0, P)}, r"`target` .* shape \(0, 5\)"),
        ({"scores": torch.rand(N, 1)}, "`scores` should be a floating tensor"),
        ({"texts": ["a"]}, "a text for each of the 60 rows. Found 1"),
        ({"target_texts": []}, "`target_texts` should be at least one text. Found 0"),
        ({"sources": ["a"]}, "`source_ids`"),
        ({"tokens": torch.rand(N)}, "`tokens` should be an integer tensor"),
    ],
)
def test_arguments_of_another_shape_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _kept("random", {}, **wrong)


@pytest.mark.parametrize("what", ["features", "target", "losses", "scores"])
def test_numbers_that_are_none_are_named(what: str) -> None:
    values = _given()[what].clone()  # type: ignore[attr-defined]
    values[3] = float("nan")
    with pytest.raises(NonFiniteError, match=rf"`{what}` should be finite. Found NaN or inf in rows? 3"):
        _kept("random", {}, **{what: values})

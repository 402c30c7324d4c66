"""Methods that choose once, against their twins."""

import random

import naive_targets as naive
import numpy as np
import pytest
import torch

from corebatch.subset import Matrix, keep_rows
from corebatch.subset.banding import repeats_nearly
from corebatch.subset.goracs import added, exchange, nearest_start, transport
from corebatch.subset.near_duplicates import pieces
from corebatch.subset.nearest import cosines, directions, round_robin, windows
from corebatch.subset.relevance import bm25


def drawn(seed, *shape, whole=False):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(-2, 3, shape, generator=generator).float() if whole else torch.randn(*shape, generator=generator)
    )


def similarities(rows, queries):
    return [[naive.cosine(query, row) for row in rows.double().tolist()] for query in queries.double().tolist()]


@pytest.mark.parametrize("whole", [False, True], ids=["", "ties"])
@pytest.mark.parametrize("wanted", [1, 500, 40_000], ids=["windows of 32", "some", "one window"])
def test_windows_are_the_sorted_lists(whole, wanted, monkeypatch):
    monkeypatch.setattr("corebatch.subset.nearest.TILE", 100)
    rows, queries = drawn(0, 90, 3, whole=whole), drawn(1, 7, 3, whole=whole)
    found = list(windows(cosines(directions(queries), Matrix(rows)), 7, 90, wanted))
    expected = [naive.falling(query) for query in similarities(rows, queries)]
    assert torch.cat([window for window, _ in found], dim=1).tolist() == expected
    values = torch.cat([values for _, values in found], dim=1)
    torch.testing.assert_close(
        values, (directions(queries) @ directions(rows).T).float().sort(dim=1, descending=True)[0]
    )


@pytest.mark.parametrize("whole", [False, True], ids=["", "ties"])
def test_relevance_by_embedding(whole):
    rows, queries = drawn(2, 80, 4, whole=whole), drawn(3, 6, 4, whole=whole)
    for budget in (1, 7, 40, 79):
        expected = naive.round_robin(similarities(rows, queries), budget)
        turns = windows(cosines(directions(queries), Matrix(rows)), 6, 80, budget)
        assert round_robin(turns, 80, budget).tolist() == expected
        kept = keep_rows(80, budget / 80, "relevance", features=rows, target=queries)
        assert kept.rows.tolist() == sorted(expected)
    mean = np.mean(similarities(rows, queries), axis=0)
    kept = keep_rows(80, 0.25, "relevance", options={"rule": "mean"}, features=rows, target=queries)
    assert kept.rows.tolist() == sorted(naive.falling(mean)[:20])


def test_relevance_by_words():
    dice = random.Random(0)
    words = [f"word{i}" for i in range(30)]
    texts = [" ".join(dice.choices(words, k=dice.randint(0, 25))) for _ in range(60)]
    queries = [dice.choices([*words[:8], "unseen"], k=6) for _ in range(5)]
    documents = [text.split() for text in texts]
    expected = [naive.bm25(documents, query) for query in queries]
    tiles, asked = bm25(texts, [*queries, ["unseen"]])
    assert asked == 5
    found = torch.cat([tile for _, _, tile in tiles()]).tolist()
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    kept = keep_rows(
        60, 0.2, "relevance", options={"by": "words"}, texts=texts, target_texts=[" ".join(query) for query in queries]
    )
    assert kept.rows.tolist() == sorted(naive.round_robin(found, 12))


@pytest.mark.parametrize(
    ("budget", "stop", "patience"), [(30, None, 20), (30, 0.95, 20), (60, 0.9, 3), (60, 0.99, 2), (119, 1.0, 5)]
)
def test_simcore(budget, stop, patience):
    rows, target = drawn(4, 120, 3), drawn(5, 6, 3)
    rounds, stopped = naive.simcore(similarities(rows, target), budget, stop, patience)
    options = {"stop": stop, "patience": patience}
    kept = keep_rows(120, budget / 120, "simcore", options=options, features=rows, target=target)
    found = set(kept.rows.tolist())
    assert kept.told["stopped"] == stopped
    if stopped:
        assert found == set().union(*rounds)
    else:  # of the last round so many as fit
        whole = set().union(*rounds[:-1])
        assert len(found) == budget
        assert whole <= found <= whole | rounds[-1]


def test_pieces_of_text():
    for text in ("", "a", "Hello,   World!", "twelve marks", "A longer text,\n\twith 漢字 and 😀 and more of it."):
        found = {piece.decode("utf-32-le") for piece in pieces(text, 13)}
        assert found == naive.pieces(text)


def test_near_duplicates_by_text():
    dice = random.Random(1)
    words = [f"w{dice.randrange(10**6)}" for _ in range(400)]
    texts = [" ".join(dice.choices(words, k=40)) for _ in range(60)]
    texts += [naive.edited(texts[i], i) for i in range(0, 40, 2)] + texts[10:20] + [f"  {texts[3].upper()}. "]
    sources = ["b"] * 60 + ["a"] * 31
    sets = [naive.pieces(text) for text in texts]
    near = [[naive.jaccard(a, b) for b in sets] for a in sets]
    # MinHash is an estimate: nothing near the threshold here, so that it cannot err.
    assert all(value < 0.4 or value > 0.6 for line in near for value in line)
    for scope, priority in (("global", ()), ("global", ("a",)), ("local", ())):
        order = sorted(range(91), key=lambda row: ([*priority, "a", "b"].index(sources[row]), row))
        together = lambda a, b, scope=scope: near[a][b] > 0.5 and (scope == "global" or sources[a] == sources[b])  # noqa: E731
        repeats = naive.first_of_near(order, together)
        kept = keep_rows(
            91,
            1.0,
            "near_duplicates",
            options={"threshold": 0.5, "scope": scope, "priority": priority},
            texts=texts,
            sources=sources,
        )
        assert kept.rows.tolist() == sorted(row for row, other in repeats.items() if other is None)
        crossing = sum(other is not None and sources[row] != sources[other] for row, other in repeats.items())
        assert kept.told["across_sources"] == crossing
        assert kept.told["exact"] == (0 if scope == "local" else 10)


def test_rows_that_share_a_band_are_compared():
    keys = np.random.default_rng(0).integers(0, 12, (150, 3))
    near = np.random.default_rng(1).random((150, 150)) < 0.3
    found = repeats_nearly(keys, lambda row, others: near[others, row])
    twin = naive.first_of_near(range(150), lambda a, b: near[a, b] and bool((keys[a] == keys[b]).any()))
    assert found.tolist() == [-1 if other is None else other for other in twin.values()]


def test_the_start_of_goracs():
    for seed, (rows, columns, budget) in enumerate([(30, 12, 5), (30, 12, 11), (12, 40, 6), (20, 5, 15), (25, 25, 24)]):
        costs = np.random.default_rng(seed).random((rows, columns))
        assert sorted(nearest_start(costs, budget).tolist()) == sorted(naive.greedy_start(costs, budget))


def test_what_a_row_adds_to_the_dual():
    numbers = np.random.default_rng(2)
    for columns, count in ((12, 4), (10, 3), (7, 9), (5, 1)):
        excess = numbers.normal(size=(6, columns))
        np.testing.assert_allclose(added(excess, count), [naive.added(row, count) for row in excess], atol=1e-12)


def test_the_distance_of_goracs():
    costs = np.random.default_rng(3).random((3, 6))
    value, dual = transport(costs)
    assert value == pytest.approx(naive.transport(costs))
    assert dual.mean() + (costs - dual[:, None]).min(axis=0).mean() == pytest.approx(value)


def test_exchanges_end_where_none_helps():
    """With all rows as candidates and nothing but hopeless pairs left out, no exchange of one row is any better."""
    for seed in range(3):
        costs = np.random.default_rng(seed).random((14, 10))
        kept, start, end, times = exchange(costs, np.arange(4), 1000, 14)
        assert end <= start
        assert end == pytest.approx(transport(costs[kept])[0])
        assert 0 < times < 1000
        for place in range(4):
            for row in set(range(14)) - set(kept.tolist()):
                changed = kept.copy()
                changed[place] = row
                assert transport(costs[changed])[0] >= end - 1e-9

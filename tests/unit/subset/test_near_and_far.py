"""Methods that look at a target, at repetitions, or at losses of several states."""

import builtins
import math

import numpy as np
import pytest
import torch

from corebatch.errors import ConfigError, InputError, MissingExtraError
from corebatch.subset import keep_rows
from corebatch.subset.autocoreset import caratheodory, merged
from corebatch.subset.banding import COMPARED, repeats_nearly
from corebatch.subset.k_means import k_means
from corebatch.subset.matrix import Matrix
from corebatch.subset.near_duplicates import bits_and_bands, hyperplanes


def numbers(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_k_means_ends_where_centers_are_means():
    points, generator = numbers(0, 300, 4).double(), torch.Generator().manual_seed(0)
    centers = k_means(points, 7, generator)
    nearest = torch.cdist(points, centers).argmin(dim=1)
    for center in range(7):
        torch.testing.assert_close(points[nearest == center].mean(dim=0), centers[center])
    blobs = torch.cat([points[:20] * 0.01 + 10 * k for k in range(3)])
    found = k_means(blobs, 3, generator)
    torch.testing.assert_close(found[:, 0].sort().values, torch.tensor([0.0, 10, 20]).double(), atol=0.1, rtol=0)
    assert torch.equal(k_means(torch.ones(5, 2).double(), 3, generator), torch.ones(3, 2).double())


def test_simcore_leaves_what_is_far():
    near, far = numbers(1, 300, 8) + 6, numbers(2, 300, 8) - 6
    target = numbers(3, 150, 8) + 6
    kept = keep_rows(600, 0.9, "simcore", features=torch.cat([near, far]), target=target)
    assert kept.told["centers"] == 100
    assert kept.told["stopped"] is False  # too few rounds for its patience
    kept = keep_rows(
        600, 0.9, "simcore", options={"centers": 10, "patience": 4}, features=torch.cat([near, far]), target=target
    )
    assert kept.told["stopped"]
    assert int(kept.rows.max()) < 300
    assert kept.told["last_similarity"] < 0.95 * kept.told["first_similarity"]


def test_goracs_is_nearer_to_the_target_than_random_rows_and_has_larger_gradients():
    features, target = numbers(4, 200, 6), 0.7 * numbers(5, 40, 6) + 0.5
    scores = torch.rand(200, generator=torch.Generator().manual_seed(6))
    given = {"features": features, "target": target, "scores": scores}
    told, sizes = {}, {}
    for name, options in {
        "start": {"exchanges": 0},
        "exchanged": {"exchanges": 20},
        "distance alone": {"gradient_weight": 0.0, "exchanges": 20},
    }.items():
        kept = keep_rows(200, 0.1, "goracs", options=options, **given)
        told[name], sizes[name] = kept.told, float(scores[kept.rows].mean())
    assert told["start"]["cost"] == told["start"]["cost_of_start"] == told["exchanged"]["cost_of_start"]
    assert told["exchanged"]["cost"] < told["start"]["cost"]
    assert told["exchanged"]["exchanges"] > 0
    assert sizes["exchanged"] > sizes["distance alone"]
    with pytest.raises(InputError, match="`scores` of `goracs` should be sizes of gradients, not negative"):
        keep_rows(200, 0.1, "goracs", features=features, target=target, scores=scores - 0.5)


def test_goracs_deals_a_large_pool_into_parts(monkeypatch):
    monkeypatch.setattr("corebatch.subset.goracs.PART", 50)
    monkeypatch.setattr("corebatch.subset.goracs.TARGET", 20)
    kept = keep_rows(
        220, 0.1, "goracs", options={"gradient_weight": 0.0}, features=numbers(7, 220, 3), target=numbers(8, 60, 3)
    )
    assert len(kept.rows) == 22
    assert kept.told["parts"] == 5
    assert kept.told["target_rows"] == 20


@pytest.mark.parametrize(("count", "queries", "budget"), [(500, 1, 2), (500, 9, 10), (700, 9, 200), (64, 30, 63)])
def test_caratheodory_keeps_every_total(count, queries, budget):
    vectors = np.random.default_rng(0).random((count, queries))
    rows, weights = caratheodory(vectors, np.random.default_rng(1).permutation(count), budget)
    assert len(rows) == len(set(rows)) == budget
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(count)
    np.testing.assert_allclose(weights @ vectors[rows], vectors.sum(axis=0), rtol=1e-9)


def test_merging_groups_that_are_alike():
    factors, left = merged(np.ones((3, 9)))
    assert len(left) == 3
    assert factors.sum() == pytest.approx(9)
    assert factors[np.setdiff1d(np.arange(9), left)].tolist() == [0.0] * 6


@pytest.mark.parametrize("summary", ["caratheodory", "median_of_means", "importance"])
def test_autocoreset_stands_for_all_rows_in_states_it_was_not_asked(summary):
    state = torch.Generator().manual_seed(9)
    hard = torch.rand(2000, 1, generator=state) * 4
    losses = hard + 0.3 * torch.rand(2000, 30, generator=state)
    kept = keep_rows(2000, 0.1, "autocoreset", options={"summary": summary}, losses=losses)
    weighted = (kept.ones[:, None] * losses[kept.rows].double()).mean(dim=0)
    worst = float((weighted / losses.double().mean(dim=0) - 1).abs().max())
    assert worst < 0.03
    assert worst == pytest.approx(kept.told["worst_relative_error"], abs=0.02 if summary == "importance" else 1e-6)
    assert kept.told["queries"] == 30
    assert 3 <= kept.told["asked"] < 30
    assert len(kept.rows) == 200


def test_autocoreset_asks_more_where_it_is_wrong():
    """Two kinds of states: with those of one kind alone, the totals of the other are far off."""
    kind = (torch.arange(400) % 20 == 0).float()
    first, second = torch.rand(400, 1, generator=torch.Generator().manual_seed(0)) + 1, 50 * kind[:, None]
    losses = torch.cat([first, first + 1, first * 2, second, second + first], dim=1)
    kept = keep_rows(400, 0.05, "autocoreset", options={"tolerance": 1e-6, "queries": 1}, losses=losses)
    assert kept.told["worst_relative_error"] < 1e-6
    assert kept.told["asked"] > 1


def test_importance_of_autocoreset_estimates_what_it_did_not_look_at():
    generator = torch.Generator().manual_seed(1)
    losses = torch.rand(300, 2, generator=generator) ** 3
    other = losses[:, 0].double() + torch.rand(300, generator=generator)
    options = {"summary": "importance", "queries": 2}
    found = []
    for seed in range(300):
        kept = keep_rows(300, 0.3, "autocoreset", options=options, losses=losses, seed=seed)
        found.append(float((kept.ones * other[kept.rows]).mean()))
    deviations = np.std(found) / 300**0.5
    assert abs(np.mean(found) - float(other.mean())) < 3 * deviations
    assert float(other[losses.norm(dim=1).argsort()[-90:]].mean()) > float(other.mean()) + 50 * deviations


@pytest.mark.parametrize("threshold", [0.6, 0.8, 0.95])
def test_buckets_hold_nearly_all_pairs_at_the_threshold(threshold):
    rows = numbers(10, 400, 40)
    rows -= rows.mean(dim=0)
    twins = numbers(11, 400, 40)
    unit = rows / rows.norm(dim=1, keepdim=True)
    twins -= (twins * unit).sum(dim=1, keepdim=True) * unit
    angle = math.acos(threshold)
    twins = math.cos(angle) * unit + math.sin(angle) * twins / twins.norm(dim=1, keepdim=True)
    both = torch.cat([unit, twins])
    keys, similar = hyperplanes(Matrix(both), torch.arange(800), threshold, False, torch.Generator().manual_seed(0))
    met = (keys[:400] == keys[400:]).any(axis=1)
    assert 0.9 < met.mean() <= 1
    assert all(similar(400 + row, np.array([row]))[0] for row in range(400))
    bits, bands = bits_and_bands(threshold, 800)
    assert keys.shape == (800, bands)
    assert keys.max() < 2**bits


def test_near_duplicates_by_embedding():
    rows = numbers(12, 300, 32) + 20  # a narrow cone: all cosines are above 0.99
    rows = torch.cat([rows, rows[:50] + 0.05 * numbers(13, 50, 32), rows[100:120]])
    kept = keep_rows(370, 1.0, "near_duplicates", options={"by": "embedding"}, features=rows)
    assert kept.rows.tolist() == list(range(300))
    assert kept.told == {"exact": 20, "near": 50, "across_sources": 0, "repeat_nothing": 300}
    options = {"by": "embedding", "center": False}
    assert len(keep_rows(370, 1.0, "near_duplicates", options=options, features=rows).rows) < 10


def test_repetitions_are_the_first_to_go():
    texts = [f"the text of number {i // 2} says {i // 2} times {i // 2 * 7}" for i in range(40)]
    found = set()
    for seed in range(20):
        kept = keep_rows(40, 0.25, "near_duplicates", texts=texts, seed=seed)
        assert len(kept.rows) == 10
        assert kept.told["exact"] == 20
        found |= set(kept.rows.tolist())
    assert found == set(range(0, 40, 2))  # uniform over what repeats nothing


def test_a_bucket_of_thousands_that_are_not_near_is_looked_at_in_part():
    looked = []
    found = repeats_nearly(
        np.zeros((1000, 1), dtype=np.int64), lambda row, others: looked.append(len(others)) or others < 0
    )
    assert found.tolist() == [-1] * 1000
    assert max(looked) == COMPARED


def test_relevance_by_words_needs_a_word():
    with pytest.raises(InputError, match="No word of `target_texts` is in `texts`"):
        keep_rows(3, 0.5, "relevance", options={"by": "words"}, texts=["one", "two", ""], target_texts=["three"])


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("simcore", {"centers": 0}, "centers should be an integer of at least 1"),
        ("simcore", {"stop": 1.5}, "`stop` should be"),
        ("simcore", {"patience": 2.5}, "patience should be"),
        ("goracs", {"gradient_weight": -1}, "`gradient_weight` should be"),
        ("goracs", {"exchanges": -1}, "exchanges should be"),
        ("goracs", {"candidates": 0}, "candidates should be"),
        ("autocoreset", {"summary": "frank_wolfe"}, "`summary` should be"),
        ("autocoreset", {"queries": 0}, "queries should be"),
        ("autocoreset", {"tolerance": float("nan")}, "`tolerance` should be"),
        ("near_duplicates", {"by": "words"}, "`by` should be"),
        ("near_duplicates", {"threshold": 0}, "`threshold` should be"),
        ("near_duplicates", {"scope": "both"}, "`scope` should be"),
        ("near_duplicates", {"hashes": 8}, "hashes should be an integer of at least 16"),
        ("near_duplicates", {"ngram": 0}, "ngram should be"),
        ("near_duplicates", {"center": 1}, "`center` should be"),
        ("near_duplicates", {"priority": "gsm"}, "`priority` should be a list of names"),
        (
            "near_duplicates",
            {"priority": ["al"]},
            r"`priority` should name sources: all. Found 'al' \(did you mean 'all'",
        ),
        ("relevance", {"by": "text"}, "`by` should be"),
        ("relevance", {"rule": "max"}, "`rule` should be"),
    ],
)
def test_options_out_of_range(name, options, said):
    with pytest.raises(ConfigError, match=said):
        keep_rows(3, 0.5, name, options=options, texts=["one", "two", "three"])


@pytest.mark.parametrize(
    ("missing", "name", "given"),
    [
        ("datasketch", "near_duplicates", {"texts": ["one", "two", "three"]}),
        ("bm25s", "relevance", {"options": {"by": "words"}, "texts": ["one", "two", "three"], "target_texts": ["one"]}),
        ("ot", "goracs", {"features": torch.eye(3), "target": torch.eye(3), "options": {"gradient_weight": 0}}),
    ],
)
def test_a_missing_extra_is_named(missing, name, given, monkeypatch):
    real = builtins.__import__

    def without(module, *args, **kwargs):
        if module == missing:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'corebatch\[subset\]'"):
        keep_rows(3, 0.5, name, **given)

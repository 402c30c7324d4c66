"""Replay: a source has its share of each step's trained rows, and what is trained stays what is claimed."""

import json
from collections import Counter

import pytest
import torch

from corebatch.errors import ConfigError
from corebatch.seeds import seeded
from corebatch.selectors import make_selector
from corebatch.sources import with_shares
from corebatch.trainer import CoresetConfig
from training import mixture, run, same, tiny_model, trainer, weights

SHARE = 0.3


def chosen(folder):
    return [json.loads(line)["chosen"] for line in (folder / "chosen.jsonl").read_text().splitlines()]


def test_budgets_have_the_share_as_expectation():
    ids = torch.tensor([0] * 10 + [1] * 5 + [2] * 1)
    counts = Counter()
    for seed in range(400):
        groups = with_shares(ids, 6, {1: 0.2, 2: 0.1}, ["a", "b", "c"], seeded(seed, "split"))
        assert [group.name for group in groups] == ["b", "c", "rest"]
        assert sum(group.budget for group in groups) == 6
        assert groups[0].budget in (1, 2)
        assert groups[1].budget in (0, 1)
        counts.update({group.name: group.budget for group in groups})
    assert counts["b"] / 400 == pytest.approx(1.2, abs=0.1)
    assert counts["c"] / 400 == pytest.approx(0.6, abs=0.1)


@pytest.mark.parametrize(
    "shares, budgets",
    [({1: 0.9}, {"1": 5, "rest": 1}), ({2: 0.5}, {"2": 1, "rest": 5}), ({3: 0.5}, {"rest": 6})],
    ids=["most", "few rows", "no rows"],
)
def test_a_source_has_no_more_than_its_rows(shares, budgets):
    groups = with_shares(torch.tensor([0] * 10 + [1] * 5 + [2]), 6, shares, None, seeded(0))
    assert {group.name: group.budget for group in groups} == budgets


def test_where_others_are_few_the_source_has_more():
    groups = with_shares(torch.tensor([0, 0, 1, 1, 1, 1]), 4, {1: 0.25}, None, seeded(0))
    assert {group.name: group.budget for group in groups} == {"1": 2, "rest": 2}


def test_weights_are_by_the_expected_number_of_rows():
    """A source of which less than a row is due is missing in most draws, and counts the more in the others."""
    features, ids = torch.arange(1.0, 17).unsqueeze(1), torch.tensor([0] * 12 + [1] * 4)
    sums = torch.zeros(2)
    for seed in range(3000):
        groups = with_shares(ids, 4, {1: 0.1}, None, seeded(seed, "split"))
        found = make_selector("importance").select(features, 4, seeded(seed), groups=groups)
        each = found.weights * features[found.indices, 0]
        sums += torch.stack([each[ids[found.indices] == source].sum() for source in (0, 1)]) / 4
    wanted = torch.stack([features[ids == source].sum() for source in (0, 1)]) / 16
    assert torch.allclose(sums / 3000, wanted, rtol=0.05)


@pytest.mark.parametrize(
    "settings", [{}, {"selector": "importance", "scorer": "tokens"}, {"selector": "random"}], ids=str
)
def test_each_step_trains_the_share(tmp_path, settings):
    coreset = CoresetConfig(pool_factor=4, replay={"rare": SHARE}, **settings)
    assert coreset.objective == {"rare": SHARE}
    data = mixture()
    run(trainer(tmp_path, tiny_model(lora=False), coreset, train_dataset=data, max_steps=40))
    counts = [sum(data[row]["source"] == "rare" for row in rows) for rows in chosen(tmp_path)]
    assert all(2 <= count <= 3 for count in counts)  # 8 rows of 0.3
    assert sum(counts) / len(counts) == pytest.approx(8 * SHARE, abs=0.25)


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    coreset = CoresetConfig(pool_factor=3, replay={"rare": 0.1, "logic": 0.2})
    common = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
    whole = run(trainer(tmp_path, tiny_model(), coreset, **common))
    part = run(
        trainer(tmp_path, tiny_model(), coreset, **common), resume_from_checkpoint=str(tmp_path / "checkpoint-4")
    )
    assert same(weights(whole), weights(part))


def test_what_is_said_of_objective_and_drawing_stands():
    coreset = CoresetConfig(replay={"rare": 0.1}, objective="sources", sampling={"shares": {"logic": 0.5}})
    assert coreset.objective == "sources"
    assert coreset.sampling.shares == {"rare": 0.1, "logic": 0.5}
    assert coreset.changed(seed=4).sampling == coreset.sampling
    again = CoresetConfig(replay={"rare": 0.1}).changed(replay={"logic": 0.2})
    assert (again.objective, dict(again.sampling.shares)) == ({"logic": 0.2}, {"logic": 0.2})
    assert CoresetConfig.from_dict(coreset.to_dict()).to_dict() == coreset.to_dict()


@pytest.mark.parametrize(
    "settings, told",
    [
        ({"replay": {}}, "should map sources"),
        ({"replay": {"rare": 1.5}}, "Found 1.5"),
        ({"replay": {"rare": 0.5, "logic": 0.5}}, "leave a share"),
        ({"replay": {"rare": 0.1}, "small_sources": "auto"}, "Found small_sources"),
        ({"replay": {"rare": 0.1}, "selector": "stratified", "scorer": "tokens"}, "Found selector stratified"),
        ({"replay": {"rare": 0.1}, "selector": "cube", "scoring": "remembered"}, "Found scoring remembered"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings, told):
    with pytest.raises(ConfigError, match=told):
        CoresetConfig(**settings)


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"Found 'rar'. Did you mean 'rare'"):
        run(trainer(tmp_path, tiny_model(), CoresetConfig(replay={"rar": 0.1})))

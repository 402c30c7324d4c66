"""A pass over a data set: each row's numbers are its own, whatever block and forward it came in."""

import json

import numpy as np
import pytest
import torch

from corebatch.errors import ConfigError, NonFiniteError
from corebatch.launch import subset_scoring
from corebatch.launch.subset_scoring import ScoredRows, key_of, score_rows
from corebatch.scoring import make_scorer
from corebatch.types import IGNORED
from training import VOCABULARY, tiny_model


class Rows:
    """A data set of rows of very different length."""

    def __init__(self, count=23):
        generator = torch.Generator().manual_seed(0)
        self.rows = []
        for number in range(count):
            ids = torch.randint(3, VOCABULARY, (3 + number * 7 % 19,), generator=generator).tolist()
            self.rows.append({"input_ids": ids, "labels": [IGNORED, *ids[1:]]})

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, places):
        return {key: [row[key] for row in self.rows[places]] for key in ("input_ids", "labels")}


def collate(rows):
    width = max(len(row["input_ids"]) for row in rows)
    padded = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}
    values = [{**row, "attention_mask": [1] * len(row["input_ids"])} for row in rows]
    return {
        key: torch.tensor([row[key] + [fill] * (width - len(row[key])) for row in values])
        for key, fill in padded.items()
    }


def scored(folder, scorer, monkeypatch, *, block=5, positions=30, width=1024):
    monkeypatch.setattr(subset_scoring, "BLOCK", block)
    model, rows = tiny_model("llama"), Rows()
    found = ScoredRows(folder, key_of(model, rows, scorer, width, 0), len(rows))
    score_rows(found, model, rows, collate, scorer, positions=positions, width=width, seed=0)
    return found


@pytest.mark.parametrize("name", ["representation", "last_layer", "loss", "el2n", "tokens"])
def test_each_row_has_the_numbers_that_it_has_alone(tmp_path, monkeypatch, name):
    scorer, model = make_scorer(name), tiny_model("llama")
    found = scored(tmp_path / "a", scorer, monkeypatch)
    features = torch.cat([block for _, block in found.features.blocks()])
    for number, row in enumerate(Rows().rows):
        alone = scorer.run(model, collate([row]), loss="example_mean")
        torch.testing.assert_close(features[number], alone.features[0].float(), rtol=1e-4, atol=1e-6)
        if alone.losses is not None:
            mean = float(alone.losses[0] / alone.tokens[0])
            assert float(found.losses[number]) == pytest.approx(mean, rel=1e-4)
    assert (found.losses is None) == (name == "tokens")


def test_wide_features_are_projected_alike_in_every_block(tmp_path, monkeypatch):
    scorer = make_scorer("last_layer")
    whole = scored(tmp_path / "whole", scorer, monkeypatch)
    narrow = scored(tmp_path / "narrow", scorer, monkeypatch, width=16)
    other = scored(tmp_path / "other", scorer, monkeypatch, width=16, block=11, positions=100)
    wide, few, again = (torch.cat([b for _, b in each.features.blocks()]) for each in (whole, narrow, other))
    assert wide.shape[1] > few.shape[1] == 16
    torch.testing.assert_close(few, again, rtol=1e-3, atol=1e-6)
    gram, kept = wide @ wide.T, few @ few.T
    assert float(torch.corrcoef(torch.stack([gram.flatten(), kept.flatten()]))[0, 1]) > 0.8


def test_a_number_that_is_none_names_its_row_and_leaves_the_others(tmp_path):
    rows = ScoredRows(tmp_path, {"data": 1}, 6)
    rows.add(torch.ones(3, 2), torch.ones(3), 0.5)
    with pytest.raises(NonFiniteError, match="Row 4 of the data should have a finite loss"):
        rows.add(torch.ones(3, 2), torch.tensor([1.0, float("inf"), 1]), 0.5)
    again = ScoredRows(tmp_path, {"data": 1}, 6)
    assert (again.done, again.seconds) == (3, 0.5)
    again.add(torch.full((3, 2), 2.0), torch.full((3,), 2.0), 0.5)
    assert again.losses.tolist() == [1, 1, 1, 2, 2, 2]
    assert again.features.take(torch.tensor([5, 0])).tolist() == [[2, 2], [1, 1]]


def test_numbers_of_another_key_are_refused_or_begun_anew(tmp_path):
    ScoredRows(tmp_path, {"data": {"rows": 2}, "width": 4}, 2).add(torch.ones(2, 1), None, 0.1)
    with pytest.raises(ConfigError, match=r"Found data \{'rows': 2\} and not \{'rows': 3\}"):
        ScoredRows(tmp_path, {"data": {"rows": 3}, "width": 4}, 3)
    assert json.loads((tmp_path / "scored.json").read_text())["done"] == 2
    assert np.load(tmp_path / "features.npy").shape == (2, 1)
    assert ScoredRows(tmp_path, {"data": {"rows": 3}, "width": 4}, 3, anew=True).done == 0
    assert ScoredRows(tmp_path, {"data": {"rows": 2}, "width": 4}, 2).done == 0  # what was discarded is not believed

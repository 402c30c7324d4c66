"""Numbers and rows that no training can use: a clear error with the step and the rows, and nothing is lost."""

import copy
import json

import pytest
import torch
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from transformers import TrainerCallback

from corebatch.errors import DataError, NonFiniteError
from corebatch.record.checkpoint import last_complete
from corebatch.trainer import CoresetConfig
from training import mixture, run, same, tiny_model, trainer, weights

SAVING = {"max_steps": 6, "save_strategy": "steps", "save_steps": 2}
FULL = CoresetConfig(scoring="full")
TOKEN = 7
pytestmark = pytest.mark.usefixtures("one_thread")


class Poison(TrainerCallback):
    """One token's embedding becomes NaN, before the given step's pool is scored or before it is trained."""

    def __init__(self, model, step, when):
        self.rows, self.step, self.when = model.get_input_embeddings().weight, step, when

    def poison(self):
        with torch.no_grad():
            self.rows[TOKEN] = float("nan")

    def on_step_begin(self, args, state, control, **_):
        if self.when == "training" and state.global_step + 1 == self.step:
            self.poison()

    def on_step_end(self, args, state, control, **_):
        if self.when == "scoring" and state.global_step + 1 == self.step:
            self.poison()


@pytest.mark.parametrize("when", ["scoring", "training"])
def test_losses_that_are_not_finite(tmp_path, whole, when):
    model = tiny_model()
    made = trainer(tmp_path / "run", model, FULL, **SAVING)
    made.add_callback(Poison(model, 5, when))
    with pytest.raises(NonFiniteError, match=r"At step 5.* examples? ") as caught:
        run(made)
    named = str(caught.value).split("examples ")[1].split(" of the train set")[0].split(", ")
    rows = mixture()["input_ids"]
    bad = [TOKEN in rows[int(number)] for number in named if number != "..."]
    assert all(bad) if when == "scoring" else any(bad)
    assert len((tmp_path / "run" / "selection.jsonl").read_text().splitlines()) == 4
    assert last_complete(tmp_path / "run").name == "checkpoint-4"
    resumed = run(trainer(tmp_path / "run", coreset=FULL, **SAVING), resume_from_checkpoint=True)
    assert same(whole, weights(resumed))


def test_rows_without_a_trained_token_are_no_harm(tmp_path):
    rows = mixture().to_list()
    for row in rows[::3]:
        row["labels"] = [-100] * len(row["labels"])
    made = run(trainer(tmp_path, coreset=FULL, train_dataset=Dataset.from_list(rows), **SAVING))
    assert all(torch.isfinite(value).all() for value in weights(made).values())
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line["train_loss"] > 0 for line in lines)


def test_no_row_with_a_trained_token(tmp_path):
    rows = [{**row, "labels": [-100] * len(row["labels"])} for row in mixture().to_list()]
    model = tiny_model()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(NonFiniteError, match=r"At step 1 .* examples .*none of which has a trained token"):
        run(trainer(tmp_path, model, FULL, train_dataset=Dataset.from_list(rows), **SAVING))
    assert same(before, model.state_dict())


class Rows(TorchDataset):
    def __init__(self, rows):
        self.rows = rows

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, one_thread):
    return weights(run(trainer(tmp_path_factory.mktemp("whole"), coreset=FULL, **SAVING)))


@pytest.mark.parametrize(
    "damage, workers",
    [
        ({"input_ids": ["three", "words", "here"], "labels": [1, 2, 3]}, 0),
        ({"labels": None}, 1),
        ({"input_ids": [[3, 4], [5, 6]], "labels": [3, 4]}, 0),
    ],
    ids=["text", "none", "nested"],
)
def test_a_row_that_no_batch_can_be_made_of_is_named(tmp_path, whole, damage, workers):
    rows = mixture().to_list()
    number = drawn_last(tmp_path / "whole", rows)
    broken = [{**row, **damage} if i == number else row for i, row in enumerate(rows)]
    settings = {**SAVING, "dataloader_num_workers": workers}
    with pytest.raises(DataError, match=f"examples {number} of the train set. Found"):
        run(trainer(tmp_path / "run", coreset=FULL, train_dataset=Rows(broken), **settings))
    assert last_complete(tmp_path / "run").name in ("checkpoint-2", "checkpoint-4")
    made = trainer(tmp_path / "run", coreset=FULL, train_dataset=Rows(rows), **settings)
    assert same(whole, weights(run(made, resume_from_checkpoint=True)))


def drawn_last(folder, rows):
    """A row that is drawn in the last step of a first epoch of six."""
    made = trainer(folder / "order", coreset=FULL, train_dataset=Rows(rows), **SAVING)
    return int(list(made.get_train_dataloader())[-1]["corebatch_id"][-1])


def test_a_source_that_is_not_there_changes_nothing(tmp_path, caplog):
    none = run(trainer(tmp_path / "none", coreset=FULL, max_steps=3))
    absent = run(
        trainer(tmp_path / "absent", coreset=CoresetConfig(scoring="full", small_sources=("nowhere",)), max_steps=3)
    )
    assert same(weights(none), weights(absent))
    assert "small_sources names nowhere, which no example has. The sources are algebra" in caplog.text


@pytest.mark.parametrize("coreset", [CoresetConfig(small_sources="auto"), CoresetConfig.colm()], ids=["auto", "colm"])
def test_one_source_only(tmp_path, coreset):
    rows = [{**row, "source": "only"} for row in mixture().to_list()]
    made = run(trainer(tmp_path, coreset=coreset, train_dataset=Dataset.from_list(rows), max_steps=3))
    lines = [json.loads(line) for line in (tmp_path / "selection.jsonl").read_text().splitlines()]
    assert [line["drawn"] for line in lines] == [{"only": 16}] * 3
    assert [line["chosen"] for line in lines] == [{"only": 8}] * 3
    assert made.state.global_step == 3


def test_a_source_that_is_no_name_is_found_before_training(tmp_path):
    rows = mixture().to_list()
    rows[5]["source"] = 3.5
    with pytest.raises(DataError, match=r"Found 3\.5 in row 5"):
        run(trainer(tmp_path, coreset=FULL, train_dataset=Rows(rows), **SAVING))
    assert not (tmp_path / "selection.jsonl").exists()

"""Two ranks over gloo put the rows of a step together anew, and train the plain Trainer's update on two ranks."""

import json

import pytest
import torch
from worker import EVERY_ROW, UPDATES

from training import largest_difference, same

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("by", ["length", "positions", "parts"])
@pytest.mark.parametrize("update", UPDATES)
def test_the_update_is_the_plain_trainer_s(trained, update, by):
    folder = trained(2, "ddp", tuple(EVERY_ROW))
    plain, ours = (torch.load(folder / f"{update}_{how}.pt") for how in ("plain", by))
    assert largest_difference(plain, ours) < 1e-12 * max(float(value.abs().max()) for value in plain.values())
    lines = json.loads((folder / f"{update}_{by}.json").read_text())
    assert all(line["chosen"] == line["drawn"] for line in lines)
    assert (sum(line["rows_moved"] for line in lines) > 0) == (update != "own_denominators")
    assert max(line["largest_micro_batch"] for line in lines) <= (20 if by == "parts" else 80)
    if update == "uneven":
        assert [line["chosen_examples"] for line in lines] == [8, 8, 8, 8, 4] * 2


@pytest.mark.parametrize("update", UPDATES)
def test_told_of_by_source_it_is_bit_for_bit(trained, update):
    folder = trained(2, "ddp", tuple(EVERY_ROW))
    plain, ours = (torch.load(folder / f"{update}_{how}.pt") for how in ("plain", "told"))
    assert same(plain, ours)
    lines = json.loads((folder / f"{update}_told.json").read_text())
    for line in lines:
        assert line["loss_by_source"].keys() == line["loss_tokens"].keys() <= line["drawn"].keys()
        assert sum(line["loss_tokens"].values()) == line["labels_trained"]
        if update != "own_denominators":
            total = sum(line["loss_by_source"][name] * count for name, count in line["loss_tokens"].items())
            assert total / line["labels_trained"] == pytest.approx(line["train_loss"], rel=1e-5)


def test_a_batch_grows_by_the_noise_of_both_ranks(trained):
    """They agree on it at every step, or the run would end with an error."""
    sizes = [
        line["chosen_examples"] for line in json.loads((trained(2, "ddp", tuple(EVERY_ROW)) / "grown.json").read_text())
    ]
    assert sum(sizes) == 16 * 8
    assert sizes[0] == 8
    assert max(sizes) > 16

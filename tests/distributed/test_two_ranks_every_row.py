"""Two ranks over gloo put the rows of a step together anew, and train the plain Trainer's update on two ranks."""

import json

import pytest
import torch
from worker import EVERY_ROW, UPDATES

from training import largest_difference

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

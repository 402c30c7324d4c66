"""Runs on two ranks in which something goes wrong on one of them; each leaves RANK.json with how it ended.

Jobs of the server of forks have a "case".
"""

import datetime
import json
import os
import signal
import time
from pathlib import Path

import torch
from torch.utils.data import DataLoader
from transformers import Trainer
from worker import Stream, watch_choices

from corebatch.scoring.last_layer import LastLayer
from corebatch.trainer import CoresetConfig, CoresetMixin
from training import Collator, arguments, largest_difference, mixture, tiny_model, trainer, weights

RANK = -1
"""Of this process; set in each fork."""
TIMEOUT = 6
"""Seconds after which a collective gives up."""


class Spoilt(Collator):
    """Calls `spoil(batch)` for the first batch that is collated after so many."""

    def __init__(self, after, spoil):
        self.after, self.spoil, self.count = after, spoil, 0

    def __call__(self, rows):
        self.count += 1
        batch = super().__call__(rows)
        return self.spoil(batch) if self.count == self.after + 1 and RANK == 1 else batch


def raises(batch):
    raise ValueError("this row is damaged")


def sleeps(batch):
    time.sleep(2.5 * TIMEOUT)
    return batch


def dies(batch):
    os.kill(os.getpid(), signal.SIGKILL)


def without_labels(batch):
    return {key: value for key, value in batch.items() if key != "labels"}


def another_type(batch):
    return {**batch, "attention_mask": batch["attention_mask"].float()}


def beyond_the_vocabulary(batch):
    batch["input_ids"][0, 0] = 1000
    return batch


class Failing(LastLayer):
    name = "failing"

    def _run(self, model, batch, loss, seed):
        if RANK == 1:
            raise RuntimeError("this forward is not for me")
        return super()._run(model, batch, loss, seed)


class OwnLoader(Trainer):
    """A loader of one's own, which does not even out its ranks."""

    rows: list[list[int]] | None = None
    stream = False

    def get_train_dataloader(self):
        part = [self.train_dataset[i] for i in self.rows[RANK]]
        data = Stream(part) if self.stream else part
        return DataLoader(data, batch_size=self._train_batch_size, collate_fn=self.data_collator)


class OwnTrainer(CoresetMixin, OwnLoader):
    pass


def own(folder, rows, stream):
    """A trainer whose ranks read the rows given, in that order."""
    settings = {"max_steps": 4, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    made = OwnTrainer(
        model=tiny_model(dtype=torch.float64),
        args=arguments(folder, ddp_backend="gloo", **settings),
        train_dataset=mixture(64),
        data_collator=Collator(),
        coreset=CoresetConfig(scoring="full"),
    )
    made.rows, made.stream = rows, stream
    return made


def made_for(case, folder):
    collators = {
        "bad_row": Spoilt(6, raises),
        "no_labels": Spoilt(6, without_labels),
        "other_type": Spoilt(6, another_type),
        "vocabulary": Spoilt(6, beyond_the_vocabulary),
        "hangs": Spoilt(8, sleeps),
        "dies": Spoilt(8, dies),
        "first_row": Spoilt(0, raises),
    }
    if case in ("uneven", "empty", "nothing_at_first"):
        # Two batches of four rows a step and rank; of 48 rows rank 1 has 16, 17 or none of the first step's.
        rows = {
            "uneven": [list(range(0, 24)), list(range(24, 34))],
            "empty": [list(range(0, 32)), list(range(32, 49))],
            "nothing_at_first": [list(range(0, 32)), []],
        }[case]
        return own(folder, rows, stream=case != "uneven")
    coreset = CoresetConfig(scorer=Failing(), scoring="full") if case == "scorer" else CoresetConfig(pool_factor=2)
    return trainer(
        folder,
        tiny_model(dtype=torch.float64),
        coreset,
        per_device_train_batch_size=2,
        max_steps=8,
        ddp_backend="gloo",
        ddp_timeout=TIMEOUT,
        data_collator=collators.get(case, Collator()),
    )


def main(job, rank):
    global RANK
    RANK = rank
    case, folder = job["case"], Path(job["folder"])
    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=TIMEOUT))
    began, result = time.monotonic(), {"error": None, "message": None}
    made = made_for(case, folder / "run")
    before, choices = weights(made), watch_choices(made)
    try:
        made.train()
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error), "value": isinstance(error, ValueError)}
    result |= {"step": made.state.global_step, "seconds": time.monotonic() - began, "choices": choices}
    result["moved"] = largest_difference(before, weights(made))
    result["weights"] = torch.cat([value.flatten() for value in weights(made).values()]).tolist()
    (folder / f"{rank}.json").write_text(json.dumps(result))

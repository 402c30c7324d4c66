"""Ranks train one run: the same data, model and settings, compared before the first step.

A node with an old copy of a file would otherwise train other rows to a healthy end: every rank reads the data set by
itself and takes its own rows of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from corebatch.distributed.ranks import Ranks
from corebatch.errors import DataError
from corebatch.record.data_identity import describe_evaluation
from corebatch.sampling.tagged import SEEN_ROWS

LENGTH = ("max_steps", "num_train_epochs", "eval_strategy", "eval_steps", "save_strategy", "save_steps")
"""Training arguments by which all ranks stop, evaluate and save together."""
NAMES = {"data": "train_dataset", "evaluation": "eval_dataset"}


def check_agreement(trainer: Any, ranks: Ranks, run: Mapping[str, Any], *, sharded: bool) -> None:
    """Compares what each rank says of its run; a few kilobytes travel.

    Args:
        run: of `run_identity.describe_run`.
        sharded: whether an engine divides the weights, which then need not be on every rank yet.

    Raises:
        DataError: on every rank alike, two ranks have other data, models or settings; names ranks, and what each has.
    """
    if ranks.count == 1:
        return
    args = trainer.args
    mine: dict[str, Any] = {key: value for key, value in run.items() if value}
    if sharded:
        mine["model"] = {key: value for key, value in run["model"].items() if key != "weights"}
    mine["coreset"] = trainer.coreset.to_dict()
    mine["length"] = {key: str(getattr(args, key, None)) for key in LENGTH}
    if trainer.eval_dataset is not None:
        mine["evaluation"] = describe_evaluation(trainer.eval_dataset)
    texts = [json.loads(text) for text in ranks.gather_texts(json.dumps(mine, default=str))]
    ranks.take_sent()  # what travels before the first step is none of the steps' own
    for rank, other in enumerate(texts):
        differing = [
            f"{NAMES.get(name, name)}: {_words(texts[0].get(name), other.get(name), rank)}"
            for name in {**texts[0], **other}
            if texts[0].get(name) != other.get(name)
        ]
        if differing:
            raise DataError(
                "All ranks should train the same data with the same settings. Found other ones on rank "
                f"{rank} than on rank 0: {'; '.join(differing)}. A machine with an old copy of a file is the likely "
                "cause."
            )


def _words(first: Any, other: Any, rank: int) -> str:
    """What two parts of a description have differently, or all of them if little is there."""
    if not isinstance(first, Mapping) or not isinstance(other, Mapping):
        return f"{first!r} on rank 0 and {other!r} on rank {rank}"
    keys = [key for key in {**first, **other} if first.get(key) != other.get(key)]
    one, two = (", ".join(f"{key} {part.get(key)!r}" for key in keys) for part in (first, other))
    return f"{one} on rank 0 and {two} on rank {rank}"


def check_streams(ranks: Ranks, dataset: Any) -> None:
    """Compares the first rows that ranks have read of a stream: each reads all of it and takes its own rows. `dataset`:
    the tagged train set; data with a length were compared before. Raises DataError: on every rank alike, two ranks have
    read other rows; names the row and the ranks."""
    seen = getattr(dataset, "seen", None)
    if ranks.count == 1 or seen is None:
        return
    every = ranks.gather(seen.clone()).reshape(ranks.count, SEEN_ROWS).cpu()
    known = (every != 0).all(dim=0)
    wrong = ((every != every[0]) & known).nonzero().tolist()
    if wrong:
        rank, row = min(wrong, key=lambda pair: pair[1])
        raise DataError(
            f"All ranks should read the same stream. Found another row {row} on rank {rank} (digest "
            f"{int(every[rank, row]):x}) than on rank 0 (digest {int(every[0, row]):x}). Every rank reads the whole "
            "stream and takes its own rows: do not divide it before."
        )

"""A seeded training comparison of the GPU check: a small model from a carried checkpoint, by `training.py`."""

from __future__ import annotations

import json
import math
import os
import random
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from corebatch.scratch import temporary_folder
from small_llama import configuration, texts, tokenizer_for
from training import run

ARMS, SEEDS, BASE = ("plain 16", "plain 64", "none 16 of 64", "default 16 of 64"), (0, 1, 2), "plain 16"


def training(setup: Any) -> Iterator[tuple[dict[str, Any], Any]]:
    """A line a run: held-out loss by three means, all arms from one start on the same rows; and a line an arm: how far
    it is from the plain small batch, over seeds."""
    arms, seeds = (ARMS[-1:], SEEDS[:1]) if setup.dry else (ARMS, SEEDS)
    with temporary_folder("corebatch-gpu-") as folder:
        carried = setup.carried
        if setup.dry:
            carried = Path(folder)
            make_up(carried)
        common = {
            "model": str(carried / "model"), "data": str(carried / "data"), "learning_rate": 1e-3, "examples": 0,
            "steps": 2 if setup.dry else 60, "every": 1 if setup.dry else 30,
        }  # fmt: skip
        jobs = [{**common, "arm": arm, "seed": seed} for seed in seeds for arm in arms]
        if setup.dry:
            lines = [run(job) for job in jobs]
        else:
            workers = max(1, min(4, (os.cpu_count() or 1) // 2))
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                lines = list(pool.map(run, jobs))
    for line in lines:
        line["model"], line["data"] = "carried", "carried"
        yield {"check": "held-out loss falls", **line}, partial(falls, line)
    for arm in arms:
        if arm != BASE and BASE in arms:
            yield {"check": f"held-out loss less {BASE}'s", "arm": arm}, partial(paired, lines, arm)


def falls(line: dict[str, Any]) -> dict[str, Any]:
    losses = [point["token"] for point in line["curve"]]
    return {"holds": all(map(math.isfinite, losses)) and losses[-1] < losses[0]}


def paired(lines: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    """Mean and standard deviation over seeds, of every mean of the loss; a measurement, which always holds."""
    of = {(line["arm"], line["seed"]): line for line in lines}
    found: dict[str, Any] = {"holds": True, "seeds": list(SEEDS)}
    for mean in ("token", "example", "source"):
        values = [of[arm, seed][f"final_{mean}"] - of[BASE, seed][f"final_{mean}"] for seed in SEEDS]
        found[mean], found[f"{mean}_deviation"] = statistics.mean(values), statistics.stdev(values)
    return found


def make_up(folder: Path) -> None:
    """A tiny model with its tokenizer, and sums by source, in the place of what is carried."""
    from transformers import LlamaForCausalLM

    drawn = random.Random(0)
    (folder / "data").mkdir()
    for split, count in (("train", 192), ("test", 24)):
        rows = []
        for number in range(count):
            one, other = drawn.randrange(100), drawn.randrange(100)
            answer = {"prompt": f"{one} and {other}", "completion": str(one + other), "source": "abc"[number % 3]}
            rows.append(json.dumps(answer) + "\n")
        (folder / "data" / f"{split}.jsonl").write_text("".join(rows))
    tokenizer_for(texts(folder / "data"), 300).save_pretrained(folder / "model")
    LlamaForCausalLM(configuration(300, 64, 2)).save_pretrained(folder / "model")

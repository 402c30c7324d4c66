"""Trains a few steps with a tracker and prints what the tracker has kept, as JSON: {step: {name: value}}.

Usage: tracker_run.py FOLDER TRACKER. A process of its own, since trackers read their settings where they are imported.
"""

import json
import sys
from pathlib import Path

import torch

from corebatch.trainer import CoresetConfig
from training import run, tiny_model, trainer


def of_tensorboard(folder: Path) -> dict[int, dict[str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[int, dict[str, float]] = {}
    for place in {path.parent for path in folder.rglob("events.out.tfevents.*")}:
        events = EventAccumulator(str(place), size_guidance={"scalars": 0})
        events.Reload()
        for name in events.Tags()["scalars"]:
            for event in events.Scalars(name):
                found.setdefault(event.step, {})[name] = event.value
    return found


def of_trackio(folder: Path) -> dict[int, dict[str, float]]:
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("corebatch-test")
    found: dict[int, dict[str, float]] = {}
    for entry in SQLiteStorage.get_logs("corebatch-test", name):
        numbers = {key: value for key, value in entry.items() if isinstance(value, int | float)}
        found.setdefault(int(entry["train/global_step"]), {}).update(numbers)
    return found


READERS = {"tensorboard": of_tensorboard, "trackio": of_trackio}


def main(folder: Path, tracker: str) -> None:
    torch.set_num_threads(1)
    settings = {"project": "corebatch-test", "run_name": "one"} if tracker == "trackio" else {}
    made = trainer(
        folder / "run",
        tiny_model(),
        CoresetConfig(track_error=2, scoring="full"),
        max_steps=4,
        logging_steps=2,
        report_to=[tracker],
        **settings,
    )
    run(made)
    logged = {entry["step"]: entry for entry in made.state.log_history if "loss" in entry}
    print(json.dumps({"logged": logged, "kept": READERS[tracker](folder)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])

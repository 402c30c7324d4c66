"""The runs that are killed, starved and fed with nonsense; and how one process lives through them."""

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainingArguments

from corebatch.trainer import CoresetConfig
from training import mixture, tiny_model, trainer, weights

SAVING: dict[str, Any] = {"max_steps": 14, "save_strategy": "steps", "save_steps": 3}  # 6 steps an epoch
BEST = {"eval_strategy": "steps", "eval_steps": 3, "load_best_model_at_end": True, "save_total_limit": 1}
NEW = "train_sampling_strategy" in {field.name for field in fields(TrainingArguments)}  # transformers 5
BY_LENGTH: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if NEW else {"group_by_length": True}
EVENTS = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree")
CASES: dict[str, dict[str, Any]] = {
    "recommended": {},
    "colm": {"coreset": CoresetConfig.colm()},
    "limit": {"save_total_limit": 1},
    "workers": {"dataloader_num_workers": 2, "save_total_limit": 2},
    "by_length": BY_LENGTH,
    "remembered": {"coreset": CoresetConfig(scoring="remembered"), "kind": "gpt2"},
    "auto": {"coreset": CoresetConfig(scoring="auto"), "kind": "gpt2", "lora": False},
    "best": BEST,
    "float64": {"dropout": 0.0, "dtype": torch.float64},
    "float64_by_length": {"dropout": 0.0, "dtype": torch.float64, **BY_LENGTH},
}


def make(run: dict[str, Any]) -> Any:
    """The trainer of a case, with the run's own settings on top."""
    settings = {"coreset": CoresetConfig(), "kind": "llama", "lora": True, "dropout": 0.1, "dtype": torch.float32}
    settings |= {**SAVING, **CASES[run["case"]], **run.get("settings", {})}
    if isinstance(settings["coreset"], dict):
        settings["coreset"] = CoresetConfig(**settings["coreset"])
    model = tiny_model(
        settings.pop("kind"), lora=settings.pop("lora"), dropout=settings.pop("dropout"), dtype=settings.pop("dtype")
    )
    if settings.get("load_best_model_at_end"):
        settings["extra"] = {"eval_dataset": mixture(8, seed=5)}
    if run.get("world", 1) > 1:
        settings["ddp_backend"] = "gloo"
    settings["train_dataset"] = mixture(settings.pop("rows", 96), seed=settings.pop("rows_seed", 0))
    if settings.pop("stream", False):
        settings["train_dataset"] = settings["train_dataset"].to_iterable_dataset()
    if settings.pop("other_base", False):
        next(each for each in model.parameters() if not each.requires_grad).data[0, 0] += 1
    if "eval_rows" in settings:
        settings["extra"] = {"eval_dataset": mixture(settings.pop("eval_rows"), seed=5)}
    return trainer(run["folder"], model, optim="adamw_torch", **settings)


def fill_the_disk(most: int) -> None:
    """From here on no file can be larger than so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


class Moment(TrainerCallback):
    """Acts when a step begins: tells the parent, limits the size of files, or counts what happens to files.

    Args:
        run: may have `moment` (a step), with `event` (from there, the process kills itself at the so-many-th time that
            something in its folder is opened, moved or deleted; else the parent is told), and `limit` ({"step",
            "bytes"}: the disk is full from there; 0: before training), and `killed`: it does not outlive its last
            step.
        tell: the pipe to the parent.
    """

    def __init__(self, run: dict[str, Any], tell: int) -> None:
        self.run, self.tell, self.events = run, tell, []

    def on_step_begin(self, args, state, control, **_):
        if state.global_step + 1 == self.run.get("moment"):
            if "event" in self.run:
                sys.addaudithook(self.count)
            else:
                os.write(self.tell, b"!")
        limit = self.run.get("limit")
        if limit is not None and state.global_step + 1 == limit["step"]:
            fill_the_disk(limit["bytes"])

    def on_step_end(self, args, state, control, **_):
        if self.run.get("killed") and state.global_step == state.max_steps:
            time.sleep(60)

    def count(self, event: str, args: tuple) -> None:
        if event in EVENTS and self.run["folder"] in str(args[0]):
            self.events.append(f"{event} {args[0]}")
            if len(self.events) == self.run["event"]:
                os.kill(os.getpid(), signal.SIGKILL)


def live(run: dict[str, Any], tell: int) -> int:
    """One life of a run; leaves the final weights, or the error, and returns the exit code."""
    rank, world = run.get("rank", 0), run.get("world", 1)
    if world > 1 and "port" in run:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1"}
        os.environ["MASTER_PORT"] = str(run["port"])
    torch.set_num_threads(1)
    outcome: dict[str, Any] = {"error": None, "steps": None}
    try:
        made = make(run)
        if run.get("limit", {}).get("step") == 0:
            fill_the_disk(run["limit"]["bytes"])
        made.add_callback(Moment(run, tell))
        made.train(resume_from_checkpoint=run.get("resume") or None)
        outcome["steps"] = made.state.global_step
        if rank == 0:
            torch.save(weights(made), run["result"] + ".pt")
        del made
    except BaseException as error:
        traceback.print_exc()
        outcome |= {"error": type(error).__name__, "message": str(error)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Path(run["result"]).write_text(json.dumps(outcome))
    if world > 1 and outcome["error"] is None:
        # Gloo's threads may abort a process that is taken down while they run: all are done first.
        torch.distributed.barrier()
        gc.collect()
        torch.distributed.destroy_process_group()
    return 0 if outcome["error"] is None else 3


def main(run: dict[str, Any]) -> int:
    """One life under torchrun, which says in the environment which rank this process is."""
    run |= {"rank": int(os.environ["RANK"]), "world": int(os.environ["WORLD_SIZE"])}
    if run["rank"] != run.pop("killed_rank", None):
        run.pop("moment", None)
    if run["rank"] > 0:
        run["result"] += str(run["rank"])
    return live(run, tell=-1)


if __name__ == "__main__":
    code = main(json.loads(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

"""Trains with several methods, alone or under DeepSpeed; rank 0 leaves weights and choices.

Usage: deepspeed_worker.py FOLDER STAGE, alone with STAGE 0 or under torch.distributed.run with STAGE 2 or 3.
"""

import gc
import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers.trainer_utils import get_last_checkpoint

from corebatch.errors import NonFiniteError, UnsupportedModelError
from corebatch.model import head_loss
from corebatch.trainer import CoresetConfig, mixin
from training import mixture, run, tiny_model, trainer

METHODS = {
    "recommended": (CoresetConfig(), {}),
    "quarter_lora": (CoresetConfig(pool_factor=4, scoring="full"), {"lora": True}),
    "colm": (CoresetConfig.colm(), {}),
    "random": (CoresetConfig(selector="random"), {}),
    "example_mean": (CoresetConfig(loss="example_mean"), {}),
    "remembered": (CoresetConfig(scoring={"way": "remembered", "unknown": "score"}), {"kind": "gpt2"}),
    "two_phase": (CoresetConfig(scoring={"way": "two_phase", "proxy": "norm"}, pool_factor=4), {"kind": "gpt2"}),
    "first_blocks": (CoresetConfig(scoring={"way": "first_blocks", "blocks": 1}), {}),
    "padding_free": (CoresetConfig(padding_free=True), {}),
    "checkpointing": (  # scoring forwards are reused without DeepSpeed alone; the gradients are the same
        CoresetConfig(scoring={"way": "full", "reuse": True}),
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
    ),
    "optimizer_scale": (CoresetConfig(normalise="optimizer"), {}),
    "optimizer_scale_tied": (CoresetConfig(normalise="optimizer"), {"kind": "gpt2"}),
    "uneven": (CoresetConfig(scoring="full"), {"rows": 35, "num_train_epochs": 2, "max_steps": -1}),
    "few_labels": (CoresetConfig(scoring="full"), {"labels": 1}),
}
STEPS = 5
LINE = ("drawn", "chosen", "pool_examples", "chosen_examples", "examples_scored", "labels_trained", "train_loss")


def config(stage):
    """No weight stays on every rank (the threshold), and torch's own optimizers are taken as they are."""
    zero = {"stage": stage, "stage3_param_persistence_threshold": 0}
    auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "train_batch_size", "gradient_clipping")
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        **dict.fromkeys(auto, "auto"),
    }


def made(folder, stage, coreset, settings):
    settings = {"max_steps": STEPS, "optim": "adamw_torch", **settings}
    data = mixture(settings.pop("rows", 96))
    if (labels := settings.pop("labels", None)) is not None:  # the last tokens alone are trained
        data = data.map(lambda row: {"labels": [-100] * (len(row["labels"]) - labels) + row["labels"][-labels:]})
    if stage:
        settings |= {"deepspeed": config(stage), "ddp_backend": "gloo"}
    model = tiny_model(settings.pop("kind", "llama"), lora=settings.pop("lora", False))
    size = 4 // int(os.environ.get("WORLD_SIZE", "1"))
    return trainer(folder, model, coreset, per_device_train_batch_size=size, train_dataset=data, **settings)


def whole(trained):
    """All weights, on every rank."""
    model = trained.accelerator.unwrap_model(trained.model_wrapped)
    parameters = list(model.parameters())
    context = nullcontext()
    if hasattr(parameters[0], "ds_id"):
        import deepspeed

        context = deepspeed.zero.GatheredParameters(parameters)
    with context:
        return {name: value.detach().float().clone() for name, value in model.named_parameters()}


def main(folder, stage):
    torch.set_num_threads(1)
    head_loss.CHUNK_ELEMENTS = 48 * 8  # several chunks, on ranks of unequal tokens unequally many
    for name, (coreset, settings) in METHODS.items():
        trained = run(made(folder / name, stage, coreset, settings))
        found = whole(trained)
        if trained.is_world_process_zero():
            torch.save(found, folder / f"{name}.pt")
            lines = [json.loads(line) for line in (folder / name / "selection.jsonl").read_text().splitlines()]
            (folder / f"{name}.json").write_text(json.dumps([{key: line[key] for key in LINE} for line in lines]))
    if stage:
        resumed(folder / "resumed", stage)
        refused(folder / "refused", stage)
        not_finite(folder / "not_finite", stage)


def resumed(folder, stage):
    settings = {"save_strategy": "steps", "save_steps": 3}
    found = [whole(run(made(folder, stage, CoresetConfig(), settings)))]
    assert get_last_checkpoint(str(folder)).endswith(f"-{STEPS}")
    trained = run(made(folder, stage, CoresetConfig(), settings), resume_from_checkpoint=str(folder / "checkpoint-3"))
    found.append(whole(trained))
    if trained.is_world_process_zero():
        torch.save(found, folder / "weights.pt")


def refused(folder, stage):
    """An optimizer without second moments is named, also below DeepSpeed's wrappers."""
    trained = made(folder, stage, CoresetConfig(normalise="optimizer"), {"optim": "sgd"})
    try:
        run(trained)
        message = "it ran"
    except UnsupportedModelError as error:
        message = str(error)
    if trained.is_world_process_zero():
        (folder / "message.txt").write_text(message)


def not_finite(folder, stage):
    """A loss of one rank's second micro-batch; DeepSpeed's step is part of its backward."""
    original, calls = mixin.weighted_loss, []

    def broken(*args):
        loss, outputs = original(*args)
        calls.append(None)
        bad = len(calls) == 2 and os.environ["RANK"] == "1"
        return (loss * float("nan") if bad else loss), outputs

    mixin.weighted_loss = broken
    trained, message = made(folder, stage, CoresetConfig(), {}), "it ran"
    before = {name: value.detach().clone() for name, value in trained.model.named_parameters()}
    try:
        run(trained)
    except NonFiniteError as error:
        message = str(error)
    found = whole(trained)
    if not all(torch.equal(value, found[name]) for name, value in before.items()):
        message += " Weights were moved."
    (folder / f"message-{os.environ['RANK']}.txt").write_text(message)
    mixin.weighted_loss = original


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # see tests/distributed/worker.py
        gc.collect()
        torch.distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)

"""Trains with several methods, on however many ranks a job asks for; rank 0 leaves weights and choices.

Jobs of the server of forks have an "engine", `ddp` or `fsdp2`, and "names" of methods.
"""

import gc
import json
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType

from corebatch.selectors import SELECTORS
from corebatch.trainer import CoresetConfig
from training import SOURCES, held_out, mixture, run, tiny_model, trainer, weights

CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
METHODS = {
    "recommended": (CoresetConfig(), {}),
    "quarter": (CoresetConfig(pool_factor=4), {}),
    "scored": (CoresetConfig(scoring="full", pool_factor=4), {}),
    "colm": (CoresetConfig.colm(), {}),
    "balanced": (CoresetConfig(selector="balanced"), {}),
    "importance": (CoresetConfig(scorer="tokens", selector="importance"), {}),
    "optimizer_scale": (CoresetConfig(normalise="optimizer"), {}),
    "small_kept": (CoresetConfig(small_sources="auto"), {}),
    "example_mean": (CoresetConfig(loss="example_mean"), {}),
    "random": (CoresetConfig(selector="random"), {}),
    "following": (CoresetConfig.following(), {}),
    "following_features": (CoresetConfig(selector="balanced", feedback=0.9, scoring="full"), {"kind": "gpt2"}),
    "hard": (CoresetConfig(scorer="loss", selector="hard"), {}),
    "full_tied": (CoresetConfig(scoring="full"), {"lora": False, "kind": "gpt2"}),
    # gpt2's norms are in float64 like the model; float32 norms of weighted gradients differ in what is remembered
    "remembered": (CoresetConfig(scoring="remembered"), {"kind": "gpt2"}),
    "remembered_scored": (
        CoresetConfig(scoring={"way": "remembered", "unknown": "score", "max_age": 5}),
        {"kind": "gpt2", "lora": False},
    ),
    "every": (CoresetConfig(scoring={"way": "every", "steps": 3}), {"kind": "gpt2"}),
    "two_phase": (CoresetConfig(scoring={"way": "two_phase", "proxy": "norm"}, pool_factor=4), {"kind": "gpt2"}),
    "window": (CoresetConfig(scoring={"way": "window", "tokens": 6}), {}),
    "first_blocks": (CoresetConfig(scoring={"way": "first_blocks", "blocks": 1}), {}),
    "reuse": (CoresetConfig(scoring={"way": "full", "reuse": True}), CHECKPOINTING),
    "reuse_full": (
        CoresetConfig(scoring={"way": "full", "reuse": True}, padding_free=True),
        {**CHECKPOINTING, "kind": "gpt2", "lora": False},
    ),
    "padding_free": (CoresetConfig(padding_free=True, scoring="full"), {}),
    "tracked": (CoresetConfig(track_error=3, scoring="full"), {}),
    # 35 rows: the last pool is short, and a loader of two ranks fills it up from the start
    "uneven": (CoresetConfig(scoring="full"), {"rows": 35, "num_train_epochs": 2, "max_steps": -1}),
    "uneven_random": (
        CoresetConfig(selector="random", pool_factor=3),
        {"rows": 35, "num_train_epochs": 2, "max_steps": -1},
    ),
    "uneven_remembered": (
        CoresetConfig(scoring={"way": "remembered", "unknown": "score"}, padding_free=True),
        {"rows": 35, "num_train_epochs": 3, "max_steps": -1, "kind": "gpt2"},
    ),
    "uneven_grown": (
        CoresetConfig(budget={"ramp": {"most": 3}}),
        {"rows": 35, "num_train_epochs": 4, "max_steps": -1},
    ),
    "uneven_grown_every_row": (
        CoresetConfig(budget={"ramp": {"most": 3, "learning_rate": "sqrt"}}, pool_factor=1, objective="sources"),
        {"rows": 36, "num_train_epochs": 2, "max_steps": -1, "kind": "gpt2"},
    ),
    "cut_plain": (CoresetConfig(micro_batches="plain"), {}),
    "cut_by_length": (CoresetConfig(micro_batches="length"), {}),
    "cut_by_flops": (CoresetConfig(micro_batches="flops", padding_free=True), {}),
    "cut_capped": (CoresetConfig(micro_batches={"by": "positions", "most": 24}), {}),
    "one_micro_batch": (CoresetConfig(selector="importance", scorer="tokens"), {"gradient_accumulation_steps": 1}),
    "ramp": (CoresetConfig(objective=[{"until": 0.25, "is": "tokens"}, {"is": "sources", "ramp": True}]), {}),
    "online_trained": (
        CoresetConfig(objective={"online": "doremi", "reference_losses": dict.fromkeys(SOURCES, 3)}),
        {},
    ),
    "online_gradients": (CoresetConfig(objective={"online": "doge", "eta": 0.5}, scoring="full"), {}),
    # sets of 10 and of 2 rows: the loaders of two ranks even them out
    "online_held_out": (
        CoresetConfig(objective={"online": "skill_it", "graph": "identity", "period": 2}),
        {"extra": {"eval_dataset": held_out(32)}, "per_device_eval_batch_size": 2},
    ),
    "every_row": (
        CoresetConfig(pool_factor=1, micro_batches="positions", noise_scale=2),
        {"kind": "gpt2", "gradient_accumulation_steps": 8},
    ),
    "random_steps": (CoresetConfig(micro_batches="plain", noise_scale=2), {"kind": "gpt2"}),
    "every_row_told": (CoresetConfig(pool_factor=1, loss_by_source=True, noise_scale=2), {"kind": "gpt2"}),
    # 35 rows, of which two are of the source that half of the draws are of
    "shares": (
        CoresetConfig(sampling={"shares": {"rare": 0.5}}),
        {"rows": 35, "num_train_epochs": 3, "max_steps": -1},
    ),
    "shares_every_row": (
        CoresetConfig(sampling={"shares": {"rare": 0.5}, "epochs": "fixed"}, pool_factor=1),
        {"rows": 35, "num_train_epochs": 2, "max_steps": -1, "kind": "gpt2"},
    ),
    "learnt": (
        CoresetConfig(sampling={"learnt": {"method": "infobatch", "prune": 0.8}}),
        {"rows": 35, "num_train_epochs": 4, "max_steps": -1, "kind": "gpt2"},
    ),
    "learnt_every_row": (
        CoresetConfig(sampling={"learnt": "by_size"}, objective="sources", pool_factor=1),
        {"rows": 35, "num_train_epochs": 4, "max_steps": -1, "kind": "gpt2"},
    ),
    "excess_base": (CoresetConfig(scorer="excess_loss", scorer_options={"reference": "base"}, selector="hard"), {}),
    "excess_average": (
        CoresetConfig(
            scorer="excess_loss", scorer_options={"reference": "average", "decay": 0.5, "refresh": 3}, selector="hard"
        ),
        {"kind": "gpt2", "lora": False},
    ),
    "target": (
        CoresetConfig(selector="greats", target={"every": 2, "rows": 5}),
        {"extra": {"target_dataset": mixture(9, seed=7)}},
    ),
    "target_of_one_row": (  # which the other rank has no part of
        CoresetConfig(selector="greats", target={"every": 3, "rows": 1}),
        {"extra": {"target_dataset": mixture(4, seed=7)}},
    ),
    "own_loss": (CoresetConfig(), {"own_loss": True}),
    "own_loss_of_ranks": (CoresetConfig(scoring="full"), {"own_loss": True, "average_tokens_across_devices": False}),
}
STEPS = 8
LONG = 50
SELECTED = {  # every selector that a trainer takes; gpt2 and a loss of our own are in float64 throughout
    f"long_{name}": (
        CoresetConfig(selector=name, scorer="loss" if name == "hard" else "last_layer", loss="example_mean"),
        {"kind": "gpt2", "layers": 1, "max_steps": LONG, "learning_rate": 1e-3},
    )
    for name, selector in SELECTORS.items()
    if "validation" not in selector().requires
}
SINGLE = {  # in float32
    "float32": (CoresetConfig(), {"dtype": torch.float32}),
    "float32_full": (CoresetConfig(scoring="full"), {"dtype": torch.float32, "lora": False}),
}
STREAMS = {
    "stream": (CoresetConfig(), {"stream": True, "max_steps": 5}),
    "stream_ends": (CoresetConfig(scoring="full"), {"stream": True, "rows": 35, "max_steps": 6}),
}
UPDATES = {  # transformers' own loss is in float32; gpt2 has no angles in it
    "two": {"kind": "gpt2"},
    "one": {"kind": "gpt2", "gradient_accumulation_steps": 1, "per_device_train_batch_size": 4},
    # 35 rows: the plain Trainer trains the rows by which its loader evens out two ranks, and so do we
    "uneven": {"kind": "gpt2", "rows": 35, "num_train_epochs": 2, "max_steps": -1},
    "lora": {"kind": "gpt2", "lora": True},
    "own_denominators": {"kind": "gpt2", "average_tokens_across_devices": False},
}
CUTS = {
    "plain": None,
    "told": "plain",
    "length": "length",
    "positions": "positions",
    "parts": {"by": "positions", "most": 20},
}
EVERY_ROW = {
    f"{name}_{by}": (
        None if cut is None else CoresetConfig(pool_factor=1, micro_batches=cut, loss_by_source=True),
        {"lora": False, "optim": "sgd", "learning_rate": 2e-2, **settings},
    )
    for name, settings in UPDATES.items()
    for by, cut in CUTS.items()
}
EVERY_ROW["grown"] = (
    CoresetConfig(pool_factor=1, budget={"adadagrad": {"every": 1, "eta": 0.6}}, noise_scale=True),
    {"lora": False, "kind": "gpt2", "max_steps": 16},
)
ALL = METHODS | SELECTED | SINGLE | STREAMS | EVERY_ROW
FSDP2 = (
    *("recommended", "colm", "optimizer_scale", "random", "full_tied", "remembered_scored", "padding_free", "every"),
    *("llama_full", "uneven", "own_loss"),
)
ALL["llama_full"] = (CoresetConfig(scoring="full"), {"lora": False})


def focal(self, model, inputs, return_outputs=False, num_items_in_batch=None):
    """A `compute_loss` of one's own, by docs/running/trainer.md."""
    weights = self.row_weights(inputs)
    labels = inputs.pop("labels")[:, 1:]
    logits = model(**inputs).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
    loss = (weights * ((1 - (-losses).exp()) ** 2 * losses).sum(dim=1)).sum() / num_items_in_batch
    return loss * self.accelerator.num_processes if self.args.average_tokens_across_devices else loss


class Stream(torch.utils.data.IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return iter(self.rows)


def take_for_an_accelerator() -> None:
    """Accelerate offers FSDP on accelerators alone; its code for them runs on a CPU as well."""
    original = PartialState.__init__

    def init(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_XPU

    PartialState.__init__ = init


def watch_choices(made) -> list[list[int]]:
    """Ids of the examples chosen at each step, as they come."""
    choices, note = [], made._recorder.note

    def watched(small):
        choices.append(small.chosen)
        note(small)

    made._recorder.note = watched
    return choices


def whole(value: torch.Tensor) -> torch.Tensor:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def main(job: dict[str, Any], rank: int) -> None:
    folder, world = Path(job["folder"]), job["world"]
    sharded = job["engine"] == "fsdp2" and world > 1
    if sharded:
        take_for_an_accelerator()
    for name in job["names"]:
        coreset, settings = ALL[name]
        settings = dict(settings)
        lora, rows = settings.pop("lora", True), settings.pop("rows", 96)
        kind, dtype = settings.pop("kind", "llama"), settings.pop("dtype", torch.float64)
        stream, own_loss = settings.pop("stream", False), settings.pop("own_loss", False)
        model = tiny_model(kind, lora=lora, dtype=dtype, layers=settings.pop("layers", 2))
        if sharded:
            block = {"gpt2": "GPT2Block", "llama": "LlamaDecoderLayer"}[kind]
            settings |= {"fsdp": True, "fsdp_config": {"version": 2, "transformer_layer_cls_to_wrap": [block]}}
        made = trainer(
            folder / name,
            model,
            coreset,
            plain=coreset is None,
            train_dataset=Stream(list(mixture(rows))) if stream else mixture(rows),
            ddp_backend="gloo" if world > 1 else None,
            **{"optim": "adamw_torch", "max_steps": STEPS, "per_device_train_batch_size": 4 // world, **settings},
        )
        if own_loss:
            made.compute_loss = MethodType(focal, made)
        choices = [] if coreset is None else watch_choices(made)
        run(made)
        assert sharded == (made.accelerator.distributed_type == DistributedType.FSDP)
        found = {key: whole(value) for key, value in weights(made).items()}
        if made.is_world_process_zero():
            torch.save(found, folder / f"{name}.pt")
        if made.is_world_process_zero() and coreset is not None:
            lines = [json.loads(line) for line in (folder / name / "selection.jsonl").read_text().splitlines()]
            kept = ("drawn", "chosen", "pool_examples", "chosen_examples", "examples_scored", "labels_trained")
            kept += (
                "train_loss",
                "pool_loss",
                "reuse_mb",
                "rows_moved",
                "positions_trained",
                "positions_plain",
                "largest_micro_batch",
                "largest_plain",
                "token_imbalance",
                "bytes_sent",
                "gradient_error",
                "shares",
                "loss_by_source",
                "loss_tokens",
                "drawn_loss_by_source",
                "noise_signal",
                "noise_trace",
                "noise_scale",
            )
            short = [{key: line.get(key) for key in kept} for line in lines]
            for line, ids in zip(short, choices, strict=True):
                line["ids"] = ids
            (folder / f"{name}.json").write_text(json.dumps(short))

    if torch.distributed.is_initialized():
        # Gloo's and DDP's threads may abort a process that is taken down while they run: everybody is done first, the
        # trainers go while the group is there, and nothing is left to the interpreter's exit.
        torch.distributed.barrier()
        del made, model
        gc.collect()
        torch.distributed.destroy_process_group()

"""How each host is started: its files and its own command, for one run."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

ROWS, SEQUENCE = 4, 512
"""Rows of a micro-batch; tokens that a row may have."""


class Run(NamedTuple):
    """One run: two passes over the data.

    Attributes:
        factor: pool_factor. ranks: processes, which together have the batches of one. resume: the step of a checkpoint.
        more: options of the host beside those that every run has.
    """

    name: str
    factor: int = 2
    ranks: int = 1
    resume: int | None = None
    more: Mapping[str, Any] = {}

    @property
    def coreset(self) -> dict[str, Any]:
        return {"pool_factor": self.factor}

    @property
    def accumulation(self) -> int:
        return 2 // self.ranks


@dataclass(frozen=True)
class Host:
    """A host.

    Attributes:
        title: its name in messages. package, pins: on PyPI.
        command: writes what a run needs into a folder and gives the words that start it there.
        refused: options that have to be refused, with a value.
        removed: packages that the host asks for, whose wheels go with a torch for CUDA alone.
        empty: those of them that it imports, for rows other than text: empty modules in their places.
    """

    name: str
    title: str
    package: str
    pins: tuple[str, ...]
    command: Callable[[Path, Path, Run], list[str]]
    refused: Mapping[str, Any] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()


def torchrun(ranks: int) -> list[str]:
    return [f"--nproc_per_node={ranks}", f"--master_port={29500 + os.getpid() % 1000}"]


def write(folder: Path, name: str, values: dict[str, Any]) -> str:
    """A YAML file, as JSON, which YAML contains."""
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(values, indent=1))
    return str(path)


def axolotl(folder: Path, output: Path, run: Run) -> list[str]:
    """The folder says which rows are whose: `source` of one data set, the file's name of the others."""
    values = {
        "base_model": str(folder / "model"),
        "plugins": [
            "corebatch.integrations.axolotl.CorebatchPlugin",
            *(["hosts.on_cpu.OnCpu"] if run.ranks > 1 else []),
        ],
        "coreset": run.coreset,
        "datasets": [
            {"path": str(folder / "algebra.jsonl"), "type": "alpaca"},
            {"path": str(folder / "shapes.jsonl"), "type": "alpaca", "source": "shapes"},
            {"path": str(folder / "rare.jsonl"), "type": "alpaca"},
        ],
        "dataset_prepared_path": str(folder / "prepared"),
        "dataset_num_proc": 1,
        "num_dataset_shards_to_save": 1,
        "output_dir": str(output),
        "resume_from_checkpoint": str(output / f"checkpoint-{run.resume}") if run.resume else None,
        "sequence_len": SEQUENCE,
        "micro_batch_size": ROWS,
        "gradient_accumulation_steps": run.accumulation,
        "num_epochs": 2,
        "learning_rate": 1e-3,
        "optimizer": "adamw_torch",
        "attn_implementation": "sdpa",
        "bf16": False,
        "fp16": False,
        "tf32": False,
        "save_steps": 3,
        "save_total_limit": 20,
        "seed": 0,
        **run.more,
    }
    config = write(folder, run.name, {key: value for key, value in values.items() if value is not None})
    if run.ranks > 1:
        return ["axolotl", "train", config, "--launcher", "torchrun", "--", *torchrun(run.ranks)]
    return ["axolotl", "train", config, "--launcher", "python"]


def llamafactory(folder: Path, output: Path, run: Run) -> list[str]:
    """dataset_info.json names the data sets, and so their rows' sources."""
    info = {name: {"file_name": f"{name}.jsonl"} for name in ("algebra", "shapes", "rare")}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    values = {
        "model_name_or_path": str(folder / "model"),
        "coreset": run.coreset,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "full",
        "dataset": "algebra,shapes,rare",
        "dataset_dir": str(folder),
        "template": "alpaca",
        "overwrite_cache": True,
        "output_dir": str(output),
        "resume_from_checkpoint": str(output / f"checkpoint-{run.resume}") if run.resume else None,
        "cutoff_len": SEQUENCE,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": run.accumulation,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "seed": 0,
        **run.more,
    }
    config = write(folder, run.name, {key: value for key, value in values.items() if value is not None})
    start = ["torchrun", *torchrun(run.ranks)] if run.ranks > 1 else ["python"]
    return [*start, "-m", "corebatch.integrations.llamafactory", config]


def swift(folder: Path, output: Path, run: Run) -> list[str]:
    """Rows say by `channel` whose they are."""
    plugin = folder / f"{run.name}.py"
    settings = ", ".join(f"{key}={value!r}" for key, value in run.coreset.items())
    plugin.write_text(f"from corebatch.integrations.swift import use_coresets\n\nuse_coresets({settings})\n")
    values = {
        "model": folder / "model",
        "model_type": "llama",
        "template": "default",
        "external_plugins": plugin,
        "tuner_type": "full",
        "torch_dtype": "float32",
        "attn_impl": "sdpa",
        "gradient_checkpointing": False,
        "output_dir": output,
        "add_version": False,
        "resume_from_checkpoint": output / f"checkpoint-{run.resume}" if run.resume else None,
        "max_length": SEQUENCE,
        "per_device_train_batch_size": ROWS,
        "gradient_accumulation_steps": run.accumulation,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "save_steps": 3,
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "use_hf": True,
        "check_model": False,
        "dataloader_num_workers": 0,
        "seed": 0,
        **run.more,
    }
    words = [word for key, value in values.items() if value is not None for word in (f"--{key}", str(value))]
    files = [str(folder / f"{name}.jsonl") for name in ("algebra", "shapes", "rare")]
    start = ["env", f"NPROC_PER_NODE={run.ranks}"] if run.ranks > 1 else []
    return [*start, "swift", "sft", "--dataset", *files, *words]


HOSTS = {
    host.name: host
    for host in (
        Host("axolotl", "Axolotl", "axolotl", ("axolotl==0.19.0",), axolotl, {"sample_packing": True}),
        Host("swift", "ms-swift", "ms-swift", ("ms-swift==4.6.0",), swift, {"group_by_length": True}),
        Host(
            "llamafactory", "LLaMA-Factory", "llamafactory", ("llamafactory==0.9.5",), llamafactory, {"packing": True},
            removed=("torchvision", "torchaudio"), empty=("torchaudio",),
        ),
    )
}  # fmt: skip

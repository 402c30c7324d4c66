"""A run's report, on the terminal and as a page; and the model card: what was trained, on what, how it was chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from corebatch.errors import ConfigError
from corebatch.files import write_text
from corebatch.report import print_summary, read_run, summarise, write_report
from corebatch.text import markdown, markdown_code, say


def report_run(run: Path, console: Console, output: Path | None = None, against: Sequence[str] = ()) -> Path:
    """Prints the run's tables and writes its page; returns the page's path.

    Args:
        output: the page's file or a folder for it, instead of the run's folder.
        against: what a comparison found against plain training.

    Raises:
        DataError: the run cannot be read.
        ConfigError: the page cannot be written; the tables were printed.
    """
    summary = replace(summarise(read_run(run)), against=tuple(against))
    print_summary(summary, console)
    with page_written(run):
        page = write_report(run, output, against)
    say(console, f"The report is in {page}")
    return page


@contextmanager
def page_written(run: Path) -> Iterator[None]:
    """What goes wrong with the disk within is a ConfigError that names the folder of a run or a comparison."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"The page of {run} could not be written: {type(error).__name__}: {error}. "
            f"`corebatch report {run} --output PATH` writes it to another place."
        ) from error


_COLM = "[CoLM](https://arxiv.org/abs/2407.19580)"


def _method(trainer: Any, made: Mapping[str, Any]) -> str:
    """What was trained at each step, and for what, in sentences.

    Args:
        made: the run's record.
    """
    args, coreset = trainer.args, made["coreset"]
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
    if coreset["pool_factor"] > 1:
        follows = "" if coreset.get("feedback") is None else f" with error feedback {coreset['feedback']}"
        method = (
            f"At each optimizer step up to {batch * coreset['pool_factor']} examples were drawn and {batch} of them "
            f"trained, chosen by corebatch {made['corebatch']}: scorer {markdown_code(coreset['scorer'])}, "
            f"selector {markdown_code(coreset['selector'])}{follows}. Scored: {markdown(made['scored'])}. "
            f"{markdown(made['method_note'])} "
            f"Choosing a mini-batch coreset at every step is {_COLM}'s idea."
        )
    elif trainer.coreset.takes_part:
        method = (
            f"At each optimizer step up to {batch} examples were drawn and all of them trained, with corebatch "
            f"{made['corebatch']}."
        )
        if trainer.coreset.cut.regroups:
            method += (
                f" Rows were put together in micro-batches by {trainer.coreset.cut.by}, which leaves the update as it "
                "is."
            )
    else:
        method = f"Plain training with corebatch {made['corebatch']} (pool_factor 1), {batch} examples a step."
    claimed = markdown(made["claimed"])
    told = claimed in method or not trainer.coreset.takes_part
    return method if told else f"{method} Trained for {claimed}."


def write_card(folder: Path, trainer: Any, *, base_model: str, lora: bool) -> None:
    """Writes README.md into the folder of a trained model, in place of the template that peft leaves."""
    made = trainer._run.record()
    coreset = made["coreset"]
    head: dict[str, Any] = {
        "base_model": base_model,
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["corebatch", "data-selection"] + (["lora"] if lora else []),
    }
    method = _method(trainer, made)
    sources = "\n".join(f"- {markdown(name)}: {row['examples']} examples" for name, row in made["sources"].items())
    text = f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {markdown(folder.resolve().name)}

{"LoRA adapters for" if lora else "A fine-tune of"} {markdown_code(base_model)}.

## Method

{method}

## Data

{sources}

## Settings

```json
{json.dumps({"coreset": coreset, "training": made["training"]}, indent=1, default=str)}
```

Steps: {trainer.state.global_step}. Versions: {", ".join(f"{k} {v}" for k, v in made["versions"].items())}.
"""
    write_text(folder / "README.md", text)

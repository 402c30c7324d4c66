"""`corebatch demo`: the whole way on one small machine, without a hub."""

from __future__ import annotations

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import TrainingArguments, set_seed

from corebatch.cli.card import write_card
from corebatch.cli.progress import show_progress
from corebatch.cli.report import report
from corebatch.cli.tables import table
from corebatch.demo import DemoSettings, load_smollm2, make_mixture
from corebatch.errors import ConfigError
from corebatch.evaluation import (
    EvaluationResult,
    ReasoningGymTask,
    accuracy_record,
    comparison_rows,
    evaluate,
    write_json,
)
from corebatch.mixture import PaddingCollator, load_mixture, parse_specs
from corebatch.record.folder_lock import LOCK, OWNER, owned
from corebatch.text import say
from corebatch.trainer import CoresetConfig, CoresetTrainer

MARKER = ".corebatch-demo"
"""Lies in a demo's folder, so that the next demo replaces what a demo made and nothing else."""


def demo(output_dir: Path, console: Console, *, steps: int | None = None, seed: int = 0) -> Path:
    """Fine-tunes SmolLM2-135M with LoRA on an imbalanced mixture, and answers held-out items before and after.

    Args:
        output_dir: where everything goes; replaced if it holds an earlier demo.
        steps: optimizer steps; a few minutes' worth by default.
        seed: of data, training and selection.

    Raises:
        ConfigError: the folder holds something else, another process is at work there, or the model's or the tasks'
            package is missing.
    """
    with owned(output_dir):
        _demo(output_dir, console, steps, seed)
    return output_dir


def _demo(output_dir: Path, console: Console, steps: int | None, seed: int) -> None:
    began = time.perf_counter()
    settings = DemoSettings(seed=seed)
    if steps is not None:
        settings = dataclasses.replace(settings, steps=steps)
    prepare(output_dir)
    console.print("[bold]1/4[/bold] SmolLM2-135M and the mixture", highlight=False)
    set_seed(seed)
    model, tokenizer = load_smollm2()
    files = make_mixture(output_dir / "data", seed=seed, heldout_per_source=settings.heldout_per_source)
    mixture = load_mixture(
        parse_specs([{"path": str(files.train)}]), tokenizer, max_length=settings.max_length, separator="", seed=seed
    )
    fields = ("rows", "tokens", "trained_tokens")
    small = set(files.small_sources)
    console.print(
        table(
            "Mixture",
            [
                {"source": row["source"], **{key: row[key] for key in fields}, "small": row["source"] in small}
                for row in mixture.summary()
            ],
        )
    )
    task = ReasoningGymTask.from_jsonl(files.heldout)
    before = _evaluate(model, tokenizer, task, settings, "2/4", "held-out items before training", console)

    coreset = CoresetConfig(pool_factor=settings.pool_factor, seed=seed)
    trainer = _trainer(model, tokenizer, mixture, settings, coreset, output_dir)
    batch = settings.train_batch_size
    console.print(
        f"[bold]3/4[/bold] {settings.steps} steps: each draws {batch * settings.pool_factor} examples, "
        f"chooses {batch} ({coreset.selector} on {coreset.scorer}) and trains on them",
        highlight=False,
    )
    show_progress(trainer, console)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    after = _evaluate(trainer.model, tokenizer, task, settings, "4/4", "the same items after training", console)
    both = {name: accuracy_record([result]) for name, result in (("before", before), ("after", after))}
    write_json(both, output_dir / "evaluation.json")
    after.write_json(output_dir / "answers.json")
    write_card(output_dir, trainer, base_model="SmolLM2-135M-Instruct", lora=True)

    columns = ("source", "before", "after", "change in points")
    rows = [dict(zip(columns, row, strict=True)) for row in comparison_rows(before, after)]
    console.print(table("Exact answers on held-out items", rows))
    console.print()
    report(output_dir, console)
    say(console, f"The adapter is in {output_dir}. {(time.perf_counter() - began) / 60:.1f} minutes in all.")


def prepare(output_dir: Path) -> None:
    """Makes the folder; removes an earlier demo, and nothing else.

    Raises:
        ConfigError: there is something that no demo made.
    """
    there = list(output_dir.iterdir()) if output_dir.is_dir() else [output_dir] * output_dir.exists()
    if not {path.name for path in there} <= {LOCK, OWNER}:
        if not (output_dir / MARKER).is_file():
            raise ConfigError(f"--output-dir: {output_dir} holds something that no demo made. Choose another folder.")
        for path in there:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name not in (LOCK, OWNER):
                path.unlink()
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / MARKER).touch()


def _evaluate(
    model: Any, tokenizer: Any, task: ReasoningGymTask, settings: DemoSettings, part: str, what: str, console: Console
) -> EvaluationResult:
    console.print(f"[bold]{part}[/bold] {len(task.items())} {what}", highlight=False)
    result = evaluate(
        model,
        tokenizer,
        task,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.eval_batch_size,
        progress=console.is_terminal,
        description=what,
    )
    console.print(f"    {result.overall.correct} of {result.overall.total} right", highlight=False)
    return result


def _trainer(
    model: Any, tokenizer: Any, mixture: Any, settings: DemoSettings, coreset: CoresetConfig, output_dir: Path
) -> Any:
    adapters = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        target_modules=list(settings.lora_target_modules),
    )
    args = TrainingArguments(
        output_dir=str(output_dir),
        per_device_train_batch_size=settings.train_batch_size,
        max_steps=settings.steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=min(settings.warmup_steps, settings.steps // 2),
        logging_steps=5,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(),
        seed=settings.seed,
    )
    made = CoresetTrainer(
        model=get_peft_model(model, adapters),
        args=args,
        train_dataset=mixture.dataset,
        data_collator=PaddingCollator(tokenizer),
        processing_class=tokenizer,
        coreset=coreset,
    )
    made.handle_signals = False  # a demo is begun anew, and does not go on
    return made

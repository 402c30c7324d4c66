"""The demo's folder, its trainer and its held-out items."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from transformers import TrainingArguments

from corebatch.demo.settings import DemoSettings
from corebatch.errors import ConfigError
from corebatch.evaluation import EvaluationResult, ReasoningGymTask, evaluate
from corebatch.mixture import PaddingCollator
from corebatch.record.folder_lock import LOCK, OWNER
from corebatch.trainer import CoresetConfig, CoresetTrainer

MARKER = ".corebatch-demo"
"""Lies in a demo's folder, so that the next demo replaces what a demo made and nothing else."""


def prepare(output_dir: Path) -> None:
    """Makes the folder; removes an earlier demo, and nothing else. Raises ConfigError: there is something that no demo
    made."""
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


def make_trainer(
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


def answer(
    model: Any, tokenizer: Any, task: ReasoningGymTask, settings: DemoSettings, part: str, what: str, console: Console
) -> EvaluationResult:
    """The task's items as the model answers them."""
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

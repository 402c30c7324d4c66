"""`corebatch demo`: the whole way on one small machine, without a hub."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

from rich.console import Console
from transformers import set_seed

from corebatch.demo import DemoSettings, load_smollm2, make_mixture, smollm2_folder
from corebatch.demo.next_steps import write_next
from corebatch.demo.training import answer, make_trainer, prepare
from corebatch.evaluation import ReasoningGymTask, accuracy_record, comparison_rows, write_json
from corebatch.launch.progress import show_progress
from corebatch.launch.reporting import report_run, write_card
from corebatch.mixture import load_mixture, parse_specs
from corebatch.record.folder_lock import owned
from corebatch.rendering.sheet import table
from corebatch.text import say
from corebatch.trainer import CoresetConfig


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
    before = answer(model, tokenizer, task, settings, "2/4", "held-out items before training", console)

    coreset = CoresetConfig(pool_factor=settings.pool_factor, seed=seed)
    trainer = make_trainer(model, tokenizer, mixture, settings, coreset, output_dir)
    batch = settings.train_batch_size
    console.print(
        f"[bold]3/4[/bold] {settings.steps} steps: each draws {batch * settings.pool_factor} examples, "
        f"chooses {batch} and trains on them. Scored: {trainer._run.scored}",
        highlight=False,
    )
    show_progress(trainer, console)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    after = answer(trainer.model, tokenizer, task, settings, "4/4", "the same items after training", console)
    both = {name: accuracy_record([result]) for name, result in (("before", before), ("after", after))}
    write_json(both, output_dir / "evaluation.json")
    after.write_json(output_dir / "answers.json")
    write_card(output_dir, trainer, base_model="SmolLM2-135M-Instruct", lora=True)
    commands = write_next(output_dir, smollm2_folder(), files, settings)

    columns = ("source", "before", "after", "change in points")
    rows = [dict(zip(columns, row, strict=True)) for row in comparison_rows(before, after)]
    console.print(table("Exact answers on held-out items", rows))
    console.print()
    report_run(output_dir, console)
    say(console, f"The adapter is in {output_dir}. {(time.perf_counter() - began) / 60:.1f} minutes in all.")
    for each in commands:
        say(console, f"Next. {each['what']}\n  {each['command']}")

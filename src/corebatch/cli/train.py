"""`corebatch train`: from a config to a trained model and its record."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from corebatch.cli.building import load_model, load_tokenizer, read_mixture
from corebatch.cli.card import write_card
from corebatch.cli.evaluate_run import BeforeAndAfter
from corebatch.cli.progress import show_progress
from corebatch.cli.settings import Settings
from corebatch.cli.tables import source_rows, table
from corebatch.errors import ConfigError
from corebatch.mixture import PaddingCollator
from corebatch.trainer import CoresetTrainer


def train(settings: Settings, console: Console) -> Path:
    """Trains, saves model, tokenizer, model card and report into `output_dir`, and returns that folder.

    Raises:
        ConfigError: the folder is not empty and nothing is resumed; all other settings are checked before as well.
    """
    output_dir = Path(settings.training["output_dir"])
    resume = settings.training.get("resume_from_checkpoint") or None
    check_output(output_dir, resume)
    tasks = BeforeAndAfter(settings.data.eval_tasks, output_dir, console)
    if tasks.tasks and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ConfigError(
            "eval_tasks are measured in one process. Found several: leave them out, and run `corebatch evaluate` on "
            "the trained model."
        )
    args = settings.training_arguments()
    first = int(os.environ.get("RANK", "0")) == 0
    tokenizer = load_tokenizer(settings.model)
    mixture = read_mixture(settings, tokenizer)
    held_out = read_mixture(settings, tokenizer, evaluation=True) if settings.data.eval_datasets else None
    if first:
        print_mixture(mixture, console)
    set_seed(args.seed)  # adapters are drawn before the Trainer seeds: the same config is the same run in any process
    trainer: Any = TrainerBySource(
        model=load_model(settings),
        args=args,
        train_dataset=mixture.dataset,
        eval_dataset=_eval_sets(held_out.dataset, settings) if held_out is not None else None,
        data_collator=PaddingCollator(tokenizer),
        processing_class=tokenizer,
        coreset=settings.coreset,
    )
    show_progress(trainer, console)
    tasks.before(trainer.model, tokenizer)
    result = trainer.train(resume_from_checkpoint=resume)
    trainer.save_model()
    trainer.save_state()
    if held_out is not None:
        metrics = trainer.evaluate()
        if first:
            trainer.save_metrics("eval", metrics, combined=False)
            console.print(f"held-out loss {metrics['eval_loss']:.4f} (mean of batches)", highlight=False)
    tasks.after(trainer.model, tokenizer)
    if first:
        trainer.save_metrics("train", result.metrics, combined=False)
        write_card(output_dir, trainer, base_model=settings.model.model_name_or_path, lora=settings.lora)
        finish(output_dir, settings, console)
    return output_dir


class TrainerBySource(CoresetTrainer):
    """Held-out sets by name have an overall loss beside their own ones.

    It is the mean of the sets' losses by their number of rows, so that no row is evaluated twice. The Trainer's losses
    are means over batches, here as there.
    """

    control: Any

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The parent's; with several sets, `eval_loss` is added, logged, and told to callbacks such as early
        stopping."""
        metrics: dict[str, float] = super().evaluate(
            eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
        )
        sets = self.eval_dataset if eval_dataset is None else eval_dataset
        if not isinstance(sets, dict):
            return metrics
        sizes = {name: len(rows) for name, rows in sets.items()}
        total = sum(metrics[f"{metric_key_prefix}_{name}_loss"] * size for name, size in sizes.items())
        overall = {f"{metric_key_prefix}_loss": total / sum(sizes.values())}
        self.log(dict(overall))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, dict(overall))
        return metrics | overall


def _eval_sets(dataset: Any, settings: Settings) -> Any:
    """The held-out rows by source, or all together where there is one source, or where that is asked for."""
    sources = dataset.with_format(None)["source"]
    rows: dict[str, list[int]] = {}
    for number, source in enumerate(sources):
        rows.setdefault(source, []).append(number)
    if len(rows) == 1 or not settings.data.eval_by_source:
        return dataset
    return {source: dataset.select(numbers) for source, numbers in rows.items()}


def check_output(output_dir: Path, resume: Any) -> None:
    """Raises ConfigError if the folder holds something and the run does not go on from it."""
    if output_dir.exists() and not output_dir.is_dir():
        raise ConfigError(f"output_dir: {output_dir} is a file. Expected a folder.")
    if resume is None and output_dir.is_dir() and any(output_dir.iterdir()):
        raise ConfigError(
            f"output_dir: {output_dir} is not empty, and nothing in it is overwritten. Choose another folder, or go on "
            "from its last checkpoint with --resume_from_checkpoint true."
        )


def print_mixture(mixture: Any, console: Console) -> None:
    """The sources of a mixture, a row each."""
    console.print(table("Mixture (lengths in tokens)", source_rows(mixture.summary())))


def finish(output_dir: Path, settings: Settings, console: Console) -> None:
    """The run's report, on the terminal and as a page; plain training has none."""
    if settings.coreset.pool_factor > 1:
        from corebatch.cli.report import report

        report(output_dir, console)
    console.print(f"The model is in {output_dir}", highlight=False, soft_wrap=True)

"""The Trainer of the command line: held-out sets by source, and refusals that name the settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from corebatch.config.settings import Settings
from corebatch.errors import ConfigError, CorebatchError
from corebatch.mixture import row_sources
from corebatch.trainer import CoresetTrainer


class TrainerBySource(CoresetTrainer):
    """Held-out sets by name have an overall loss beside their own ones.

    It is the mean of the sets' losses by their number of rows, so that no row is evaluated twice. The Trainer's losses
    are means over batches, here as there.
    """

    control: Any

    def get_train_dataloader(self) -> Any:
        """The parent's. Raises ConfigError with torch's words if it refuses how rows are to be loaded."""
        with refused("The keys that begin with dataloader_", (ValueError,)):
            return super().get_train_dataloader()

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's. Raises ConfigError with its words if it refuses `optim` or its options."""
        with refused("optim and optim_args"):
            return super().create_optimizer(*args, **kwargs)

    def create_scheduler(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's. Raises ConfigError with its words if it refuses the schedule or its options."""
        with refused("lr_scheduler_type and lr_scheduler_kwargs"):
            return super().create_scheduler(*args, **kwargs)

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


class CheckGeneration(TrainerCallback):
    """Before the first step: transformers reads generation settings that it then refuses to save with the model, once
    the Trainer has put the tokenizer's special tokens into them."""

    def on_train_begin(self, args: Any, state: Any, control: Any, *, model: Any = None, **_: Any) -> None:
        generation = getattr(model, "generation_config", None)
        if generation is None or hasattr(model, "peft_config") or not state.is_world_process_zero:
            return
        with tempfile.TemporaryDirectory(prefix="corebatch-") as folder, refused("The model's generation_config.json"):
            generation.save_pretrained(folder)


_REFUSALS = (ValueError, TypeError, ImportError, RuntimeError, KeyError, AttributeError, OSError)


@contextmanager
def refused(what: str, kinds: tuple[type[Exception], ...] = _REFUSALS) -> Iterator[None]:
    """What transformers, Accelerate and what they use say against settings, as a ConfigError; our own errors stay."""
    try:
        yield
    except CorebatchError:
        raise
    except kinds as error:
        raise ConfigError(f"{what} cannot be used: {type(error).__name__}: {error}") from error


def sets_by_source(dataset: Any, settings: Settings) -> Any:
    """The held-out rows by source, or all together where there is one source, or where that is asked for."""
    rows: dict[str, list[int]] = {}
    for number, source in enumerate(row_sources(dataset)):
        rows.setdefault(source, []).append(number)
    if len(rows) == 1 or not settings.data.eval_by_source:
        return dataset
    return {source: dataset.select(numbers) for source, numbers in rows.items()}

"""EleutherAI's lm-evaluation-harness around a loaded model, with task files of the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

from corebatch.errors import ConfigError, DataError
from corebatch.files import plain
from corebatch.model.modes import evaluating


@dataclass(frozen=True, kw_only=True)
class HarnessResult:
    """What the harness found.

    Attributes:
        results: task or group -> metric -> value, in the harness's own names ("acc,none", "acc_stderr,none", ...).
        record: the same with configs, versions and counts, as plain JSON.
    """

    columns: ClassVar[tuple[str, ...]] = ("task", "metric", "value", "standard error")
    results: dict[str, dict[str, Any]]
    record: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return self.record

    def rows(self) -> list[tuple[str, ...]]:
        made: list[tuple[str, ...]] = []
        for task, metrics in self.results.items():
            for key, value in metrics.items():
                name, _, kind = key.partition(",")
                if not isinstance(value, int | float) or name.endswith("_stderr") or not kind:
                    continue
                error = metrics.get(f"{name}_stderr,{kind}")
                made.append((task, name, f"{value:.4f}", f"{error:.4f}" if isinstance(error, int | float) else ""))
        return made


def run_lm_eval(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include_path: str | PathLike[str] | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    max_length: int | None = None,
) -> HarnessResult:
    """Runs the harness's tasks on a loaded model. Prompts, metrics and few-shot examples are the harness's.

    Args:
        model: a causal language model of transformers, or a PEFT model around one.
        tasks: names; those in `include_path` are known first, and the harness's own only if need be.
        include_path: a folder with the harness's task files (YAML).
        limit: the first so many documents of each task.
        max_length: tokens; None: as the model's config says.

    Raises:
        ConfigError: lm-eval is not installed, or knows no such task.
        DataError: no such folder, or data that a task cannot load.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError("Tasks of the lm-evaluation-harness need it: pip install 'corebatch[lm-eval]'.") from error
    if include_path is not None and not Path(include_path).is_dir():
        raise DataError(f"{include_path} should be a folder with task files. Found none.")
    if not tasks:
        raise ConfigError("lm-eval should be given a task. Found no task.")
    folder = str(include_path) if include_path is not None else None
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if folder is not None and not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder, include_defaults=True)  # several seconds: an index of thousands
    unknown = sorted(set(tasks) - set(manager.all_tasks))
    if unknown:
        where = f", nor is there one in {folder}" if folder else ""
        raise ConfigError(f"lm-eval knows no task {', '.join(map(repr, unknown))}{where}.")
    with evaluating(model):  # HFLM itself switches the model
        wrapped = HFLM(
            pretrained=model,
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            device=str(next(model.parameters()).device),
        )
        try:
            found = lm_eval.simple_evaluate(
                model=wrapped, tasks=list(tasks), task_manager=manager, limit=limit, log_samples=False
            )
        except (FileNotFoundError, ValueError, KeyError) as error:
            raise DataError(f"lm-eval cannot run {', '.join(tasks)}: {type(error).__name__}: {error}") from error
    if found is None:
        raise DataError("lm-eval should give results. Found none: it gives them on the first process alone.")
    kept = ("results", "groups", "configs", "versions", "n-shot", "n-samples", "higher_is_better", "lm_eval_version")
    record = {key: plain(found[key]) for key in kept if key in found}
    return HarnessResult(results=record["results"], record=record)

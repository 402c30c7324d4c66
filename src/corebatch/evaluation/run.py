"""Evaluation of a model on a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from corebatch.evaluation.tasks import R, Task


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task[R],
    *,
    max_new_tokens: int | None = None,
    batch_size: int | None = None,
    stop: Sequence[str] | None = None,
    limit: int | None = None,
    progress: bool = True,
    description: str | None = None,
) -> R:
    """Runs `task` and counts; arguments as in `RunOptions`, where None leaves it to the task. Raises InputError: an
    option out of range, or data that the model or its tokenizer cannot take."""
    options = task.options(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        stop=stop,
        limit=limit,
        progress=progress,
        description=description,
    )
    return task.run(model, tokenizer, options)

"""Evaluation of a model on a task: generate, check, count."""

from collections.abc import Sequence
from typing import Any

from corebatch.evaluation.generate import generate_answers
from corebatch.evaluation.result import Answer, EvaluationResult
from corebatch.evaluation.tasks import Task


def evaluate(
    model: Any,
    tokenizer: Any,
    task: Task,
    *,
    max_new_tokens: int = 32,
    batch_size: int = 16,
    stop: Sequence[str] = ("\n",),
    progress: bool = True,
    description: str | None = None,
) -> EvaluationResult:
    """Answers every item of `task` greedily and checks it exactly; arguments as in `generate_answers`."""
    items = task.items()
    texts = generate_answers(
        model,
        tokenizer,
        [item.prompt for item in items],
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        stop=stop,
        progress=progress,
        description=description or f"evaluating {task.name}",
    )
    answers = tuple(
        Answer(
            source=item.source,
            prompt=item.prompt,
            expected=item.answer,
            text=text,
            correct=task.is_correct(item, text),
        )
        for item, text in zip(items, texts, strict=True)
    )
    settings = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "stop": list(stop), "decoding": "greedy"}
    return EvaluationResult(task=task.name, answers=answers, settings=settings)

"""Evaluation: tasks, exact checks of answers, held-out loss. It knows nothing of selection.

task = NumericTask("test.jsonl")
result = evaluate(model, tokenizer, task)
result.overall.accuracy, result.sources["gsm8k"].interval
"""

from corebatch.evaluation.generate import generate_answers
from corebatch.evaluation.loss import HeldoutLoss, LossMeans, heldout_loss
from corebatch.evaluation.reasoning import ReasoningGymTask, draw_items
from corebatch.evaluation.result import Answer, Count, EvaluationResult, comparison_rows, wilson_interval
from corebatch.evaluation.run import evaluate
from corebatch.evaluation.tasks import (
    FILE_TASKS,
    AutoTask,
    ChoiceTask,
    ExactMatchTask,
    FileTask,
    Item,
    NumericTask,
    Task,
    read_items,
)

__all__ = [
    "FILE_TASKS",
    "Answer",
    "AutoTask",
    "ChoiceTask",
    "Count",
    "EvaluationResult",
    "ExactMatchTask",
    "FileTask",
    "HeldoutLoss",
    "Item",
    "LossMeans",
    "NumericTask",
    "ReasoningGymTask",
    "Task",
    "comparison_rows",
    "draw_items",
    "evaluate",
    "generate_answers",
    "heldout_loss",
    "read_items",
    "wilson_interval",
]

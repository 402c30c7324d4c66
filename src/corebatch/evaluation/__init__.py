"""Evaluation: tasks, exact checks of answers, held-out loss. It knows nothing of selection.

task = NumericTask("test.jsonl")  # or parse_task("numeric:test.jsonl")
result = evaluate(model, tokenizer, task)
result.overall.accuracy, result.sources["gsm8k"].interval

A new task is a subclass of `GenerationTask`, `LikelihoodTask` or `Task`, and one line in `TASKS`.
"""

from corebatch.evaluation.choices import ClassificationTask, MultipleChoiceTask
from corebatch.evaluation.expressions import MathTask
from corebatch.evaluation.generate import generate_answers
from corebatch.evaluation.harness import HarnessResult, run_lm_eval
from corebatch.evaluation.likelihood import ChoiceItem, LikelihoodTask, OptionScore, f1, macro_f1, option_scores
from corebatch.evaluation.loss import HeldoutLoss, HeldoutLossTask, LossMeans, LossResult, heldout_loss
from corebatch.evaluation.reasoning import ReasoningGymTask, draw_items
from corebatch.evaluation.registry import TASKS, parse_task
from corebatch.evaluation.result import (
    Answer,
    Count,
    EvaluationResult,
    Result,
    accuracy_record,
    comparison_rows,
    write_json,
)
from corebatch.evaluation.rows import Row, read_rows
from corebatch.evaluation.superglue import SUPERGLUE, GlueSpec, SuperGlueTask
from corebatch.evaluation.tasks import (
    FILE_TASKS,
    AutoTask,
    ChoiceTask,
    ExactMatchTask,
    FileTask,
    GenerationTask,
    Item,
    NumericTask,
    RunOptions,
    Task,
    evaluate,
    read_items,
)
from corebatch.intervals import wilson_interval

__all__ = [
    "FILE_TASKS",
    "SUPERGLUE",
    "TASKS",
    "Answer",
    "AutoTask",
    "ChoiceItem",
    "ChoiceTask",
    "ClassificationTask",
    "Count",
    "EvaluationResult",
    "ExactMatchTask",
    "FileTask",
    "GenerationTask",
    "GlueSpec",
    "HarnessResult",
    "HeldoutLoss",
    "HeldoutLossTask",
    "Item",
    "LikelihoodTask",
    "LossMeans",
    "LossResult",
    "MathTask",
    "MultipleChoiceTask",
    "NumericTask",
    "OptionScore",
    "ReasoningGymTask",
    "Result",
    "Row",
    "RunOptions",
    "SuperGlueTask",
    "Task",
    "accuracy_record",
    "comparison_rows",
    "draw_items",
    "evaluate",
    "f1",
    "generate_answers",
    "heldout_loss",
    "macro_f1",
    "option_scores",
    "parse_task",
    "read_items",
    "read_rows",
    "run_lm_eval",
    "wilson_interval",
    "write_json",
]

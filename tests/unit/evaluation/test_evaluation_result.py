"""Counts, intervals, files and table rows."""

import json
from pathlib import Path
from typing import Any

import pytest

from corebatch.errors import InputError
from corebatch.evaluation import Answer, EvaluationResult, GenerationTask, comparison_rows, evaluate, wilson_interval
from corebatch.evaluation.tasks import Item


def result(*correct: tuple[str, bool]) -> EvaluationResult:
    answers = (
        Answer(source=source, prompt=f"{n}?", expected="1", text="1" if ok else "é", correct=ok)
        for n, (source, ok) in enumerate(correct)
    )
    return EvaluationResult(task="t", answers=tuple(answers), settings={"max_new_tokens": 4})


UNEVEN = result(("a", True), ("b", False), ("a", True), ("a", False), ("a", True))


@pytest.mark.parametrize(
    "correct, total, low, high",
    [
        # Newcombe (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (29, 29, 0.8830, 1.0),  # 1 - z^2 / (n + z^2)
    ],
)
def test_wilson_values(correct: int, total: int, low: float, high: float) -> None:
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5.1e-5)


@pytest.mark.parametrize("correct, total", [(0, 0), (2, 1), (-1, 3)])
def test_wilson_needs_a_proportion(correct: int, total: int) -> None:
    with pytest.raises(InputError, match=f"{correct} of {total}"):
        wilson_interval(correct, total)


def test_counts_by_source_overall_and_source_mean() -> None:
    assert {name: (c.correct, c.total) for name, c in UNEVEN.sources.items()} == {"a": (3, 4), "b": (0, 1)}
    assert UNEVEN.overall.accuracy == 3 / 5
    assert UNEVEN.source_mean == pytest.approx((3 / 4 + 0) / 2)


def test_rows() -> None:
    assert UNEVEN.rows() == [
        ("a", "3/4", "75.0 %", "30 to 95 %"),
        ("b", "0/1", "0.0 %", "0 to 79 %"),
        ("all items", "3/5", "60.0 %", "23 to 88 %"),
        ("mean of sources", "", "37.5 %", ""),
    ]


def test_comparison_rows() -> None:
    after = result(("a", True), ("b", True), ("a", True), ("a", True), ("a", True))
    rows = comparison_rows(UNEVEN, after)
    assert rows[0] == ("a", "3/4", "4/4", "+25.0")
    assert rows[-1] == ("mean of sources", "37.5 %", "100.0 %", "+62.5")
    with pytest.raises(InputError, match="same prompts"):
        comparison_rows(UNEVEN, result(("a", True)))


def test_json_is_whole_and_readable(tmp_path: Path) -> None:
    path = tmp_path / "new" / "eval.json"
    UNEVEN.write_json(path)
    UNEVEN.write_json(path)  # replaces
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record == UNEVEN.to_dict()
    assert record["sources"]["a"]["correct"] == 3
    assert record["overall"]["interval95"] == list(UNEVEN.overall.interval)
    assert len(record["answers"]) == 5
    assert "answers" not in UNEVEN.to_dict(answers=False)
    assert [file.name for file in path.parent.iterdir()] == ["eval.json"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "eval.json"
    UNEVEN.write_json(path)
    broken = EvaluationResult(task="t", answers=UNEVEN.answers, settings={"x": object()})
    with pytest.raises(TypeError):
        broken.write_json(path)
    assert json.loads(path.read_text(encoding="utf-8")) == UNEVEN.to_dict()
    assert [file.name for file in tmp_path.iterdir()] == ["eval.json"]


def test_no_answers() -> None:
    with pytest.raises(InputError, match="at least one"):
        EvaluationResult(task="t", answers=())


class _Echo(GenerationTask):
    """Right is whatever contains the expected character."""

    name = "echo"

    def items(self) -> list[Item]:
        return [Item(prompt=f"{n}+{n}=", source="even" if n % 2 == 0 else "odd", answer=str(n)) for n in range(5)]

    def is_correct(self, item: Item, text: str) -> bool:
        return item.answer in text


def test_evaluate_checks_every_item_in_order(model: Any, tokenizer: Any) -> None:
    task = _Echo()
    found = evaluate(model, tokenizer, task, max_new_tokens=10, batch_size=2, stop=(), progress=False)
    assert [answer.prompt for answer in found.answers] == [item.prompt for item in task.items()]
    for item, answer in zip(task.items(), found.answers, strict=True):
        assert answer.correct is task.is_correct(item, answer.text)
    assert {name: count.total for name, count in found.sources.items()} == {"even": 3, "odd": 2}
    assert found.settings == {"max_new_tokens": 10, "batch_size": 2, "stop": [], "decoding": "greedy"}
    assert evaluate(model, tokenizer, task, max_new_tokens=10, batch_size=2, stop=(), progress=False) == found

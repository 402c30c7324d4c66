"""Tasks by name: lines, mappings, options, import paths; multiple choice and classification from rows of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest

from corebatch.errors import ConfigError, CorebatchError, DataError
from corebatch.evaluation import (
    TASKS,
    ClassificationTask,
    FileTask,
    HeldoutLossTask,
    Item,
    MultipleChoiceTask,
    NumericTask,
    evaluate,
    heldout_loss,
    parse_task,
)

ROW = {"prompt": "A cat is", "choices": ["an animal", "a plant", "\n a stone"]}
ROWS = [
    {"input_ids": [3, 4, 5, 6], "labels": [-100, -100, 5, 6], "source": "a"},
    {"input_ids": [7, 8], "labels": [-100, 8], "source": "b"},
    {"input_ids": [9, 8, 7], "labels": [-100, 8, 7], "source": "a"},
]


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    return write(tmp_path / "numbers.jsonl", {"prompt": "1+1=", "answer": 2}, {"prompt": "2+2=", "answer": 4})


class Shouting(FileTask):
    """A task of somebody else's."""

    def __init__(self, path: str, *, mark: str = "!", name: str | None = None) -> None:
        super().__init__(path, name=name)
        self.mark = mark

    def is_correct(self, item: Item, text: str) -> bool:
        return text.endswith(self.mark)


def test_names() -> None:
    assert {"numeric", "math", "multiple_choice", "classification", "reasoning_gym", "boolq", "wsc"} <= TASKS.keys()


def test_a_line_and_a_mapping_make_the_same_task(numbers: Path) -> None:
    for what in (
        f"numeric:{numbers},name=sums,limit=1,max_new_tokens=5,stop=['.', ';']",
        {"task": "numeric", "path": str(numbers), "name": "sums", "limit": 1, "max_new_tokens": 5, "stop": [".", ";"]},
    ):
        task = parse_task(what)
        assert type(task) is NumericTask
        assert task.name == "sums"
        options = task.options()
        assert (options.limit, options.max_new_tokens, list(options.stop)) == (1, 5, [".", ";"])
        assert task.options(limit=2, stop=None).limit == 2  # what the caller gives wins
    assert parse_task(task) is task
    assert parse_task(f"numeric:{numbers}").options().max_new_tokens == 32


def test_a_task_of_ones_own(numbers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    by_path = parse_task(f"{Shouting.__module__}.Shouting:{numbers},mark=x")
    assert type(by_path).__name__ == "Shouting"
    assert by_path.mark == "x"
    monkeypatch.setitem(TASKS, "shouting", Shouting)
    assert parse_task(f"shouting:{numbers}").mark == "!"


@pytest.mark.parametrize(
    "what, found",
    [
        ("numerc:x", "Did you mean 'numeric'"),
        ("numeric", "needs `path`"),
        ("numeric:{}, nme=x", "Found 'nme'. Did you mean 'name'"),
        ("numeric:{},broken", "name:path,key=value. Found 'broken'"),
        ("numeric:{},name=[a", "YAML"),
        ("numeric:{},limit=0", "`limit`"),
        ("numeric:{},stop=abc", "`stop`"),
        ("no.such.module.Task:{}", "import path"),
        ("json.loads:{}", "json.loads"),
        ({"path": "x"}, "key `task`"),
        (3, "key `task`"),
        ("multiple_choice:{},normalise=words", "normalise"),
        ("classification:{}", "needs `labels`"),
        ("classification:{},labels=[one]", "two or more"),
        ("classification:{},labels=[a, b],template=plain", "name columns"),
        ("classification:{},labels=[a, b],template={{prompt}}", "quote it"),
    ],
)
def test_bad_tasks(numbers: Path, what: Any, found: str) -> None:
    with pytest.raises(CorebatchError, match=found):
        parse_task(what.format(numbers) if isinstance(what, str) else what)


def test_paths_may_hold_what_separates(tmp_path: Path) -> None:
    path = write(tmp_path / "a, b=c.jsonl", {"prompt": "1", "answer": 1})
    assert parse_task(f"numeric:'{path}',name=odd").name == "odd"
    assert parse_task(f'numeric:path="{path}"').items()[0].prompt == "1"


class TestMultipleChoice:
    def test_three_ways_to_name_the_answer(self, tmp_path: Path) -> None:
        path = write(tmp_path / "c.jsonl", *({**ROW, "answer": a} for a in (1, "B", "a plant")))
        task = MultipleChoiceTask(path)
        assert [item.answer for item in task.items()] == [1, 1, 1]
        assert task.items()[0].options == (" an animal", " a plant", "\n a stone")
        assert {item.source for item in task.items()} == {"c"}

    @pytest.mark.parametrize(
        "change, found",
        [
            ({"answer": 3}, "answer.*Found 3"),
            ({"answer": "D"}, "answer.*'D'"),
            ({"answer": True}, "answer.*True"),
            ({"choices": "abc"}, "choices"),
            ({"choices": ["a"]}, "two or more"),
            ({"choices": ["a", 2]}, "choices"),
            ({"prompt": ""}, "prompt"),
            ({"source": 1}, "source"),
        ],
    )
    def test_bad_rows_name_file_and_line(self, tmp_path: Path, change: dict[str, Any], found: str) -> None:
        good = {**ROW, "answer": 0}
        with pytest.raises(DataError, match=rf"c\.jsonl:2.*{found}"):
            MultipleChoiceTask(write(tmp_path / "c.jsonl", good, {**good, **change}))

    def test_runs(self, tmp_path: Path, model: Any, tokenizer: Any) -> None:
        rows = [{**ROW, "choices": ["an animal", "a plant"], "answer": n % 2, "source": f"s{n}"} for n in range(2)]
        result = evaluate(model, tokenizer, MultipleChoiceTask(write(tmp_path / "c.jsonl", *rows)), progress=False)
        assert result.overall.correct == 1  # the same question with either answer
        assert set(result.sources) == {"s0", "s1"}


class TestClassification:
    def test_labels_by_name_by_position_and_by_word(self, tmp_path: Path) -> None:
        rows = [{"text": "great fun", "label": label} for label in (1, "1", "good", 0)]
        path = write(tmp_path / "s.jsonl", *rows)
        task = parse_task(f"classification:{path},labels=[bad, good],template='{{text}} It is'")
        assert isinstance(task, ClassificationTask)
        assert [item.answer for item in task.items()] == [1, 1, 1, 0]
        assert (task.items()[0].prompt, task.items()[0].options) == ("great fun It is", (" bad", " good"))
        path = write(tmp_path / "t.jsonl", {"prompt": "x", "kind": "neg"}, {"prompt": "x", "kind": "pos"})
        named = parse_task(f"classification:{path},labels={{neg: bad, pos: good}},label_column=kind")
        assert [item.answer for item in named.items()] == [0, 1]

    def test_unknown_label_and_missing_text(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"s\.jsonl:1.*`label`.*Found 'meh'"):
            ClassificationTask(write(tmp_path / "s.jsonl", {"prompt": "x", "label": "meh"}), labels=["bad", "good"])
        with pytest.raises(DataError, match=r"s\.jsonl:1.*`prompt`"):
            ClassificationTask(write(tmp_path / "s.jsonl", {"text": "x", "label": 0}), labels=["bad", "good"])

    def test_runs_with_macro_f1(self, tmp_path: Path, model: Any, tokenizer: Any) -> None:
        rows = [{"prompt": "same", "label": n} for n in (0, 1)]
        task = ClassificationTask(write(tmp_path / "s.jsonl", *rows), labels=["bad", "good"])
        result = evaluate(model, tokenizer, task, progress=False)
        assert result.overall.correct == 1
        assert result.metrics["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)


def test_reasoning_gym_by_generator_and_by_file(tmp_path: Path) -> None:
    pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: pip install 'corebatch[demo]'")
    task = parse_task("reasoning_gym:chain_sum,size=3,seed=2,options={min_terms: 2, max_terms: 2}")
    assert task.name == "chain_sum"
    assert len(task.items()) == 3
    assert all(task.is_correct(item, item.answer) for item in task.items())
    rows = [
        {"prompt": i.prompt, "answer": i.answer, "source": i.source, "metadata": dict(i.metadata)} for i in task.items()
    ]
    again = parse_task(f"reasoning_gym:{write(tmp_path / 'held.jsonl', *rows)}")
    assert [item.prompt for item in again.items()] == [item.prompt for item in task.items()]
    with pytest.raises(ConfigError, match="no_such"):
        parse_task("reasoning_gym:no_such")


class TestHeldoutLoss:
    @pytest.mark.parametrize("batch_size", [1, 2, 8])
    def test_equal_to_the_function_row_by_row(self, model: Any, tokenizer: Any, batch_size: int) -> None:
        import torch

        batches = [
            {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")} | {"source": [row["source"]]}
            for row in ROWS
        ]
        expected = heldout_loss(model, batches)
        result = evaluate(model, tokenizer, HeldoutLossTask(ROWS), batch_size=batch_size, progress=False)
        assert result.loss.token_mean == pytest.approx(expected.token_mean, abs=1e-10)
        for name, means in expected.sources.items():
            assert result.loss.sources[name].token_mean == pytest.approx(means.token_mean, abs=1e-10)
        assert [row[0] for row in result.rows()] == ["a", "b", "all", "mean of sources"]
        assert json.loads(json.dumps(result.to_dict()))["overall"]["tokens"] == 5

    def test_limit_and_bad_rows(self, model: Any, tokenizer: Any) -> None:
        result = evaluate(model, tokenizer, HeldoutLossTask(ROWS), limit=2, progress=False)
        assert {name: means.examples for name, means in result.loss.sources.items()} == {"a": 1, "b": 1}
        with pytest.raises(DataError, match="at least one row"):
            HeldoutLossTask([])
        with pytest.raises(DataError, match="Row 0"):
            evaluate(model, tokenizer, HeldoutLossTask([{"input_ids": [1, 2], "labels": [1]}]), progress=False)

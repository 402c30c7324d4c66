"""Tasks read their items and check answers exactly."""

import json
from pathlib import Path
from typing import Any

import pytest

from corebatch.errors import ConfigError, CorebatchError, DataError
from corebatch.evaluation import AutoTask, ChoiceTask, ExactMatchTask, NumericTask, ReasoningGymTask, draw_items
from corebatch.evaluation.reasoning import create_generator


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_items_keep_order_source_and_metadata(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1=", "answer": 2, "source": "sum", "metadata": {"level": 1}},
        {"prompt": "x", "answer": "7.0", "metadata": '{"level": 2}'},
    ]
    task = NumericTask(write(tmp_path / "easy.jsonl", *rows, ""))
    first, second = task.items()
    assert (first.prompt, first.answer, first.source, first.metadata) == ("1+1=", "2", "sum", {"level": 1})
    assert (second.source, second.metadata) == ("easy", {"level": 2})
    assert task.name == "easy"


def test_auto_task_compares_by_the_answers_form(tmp_path: Path) -> None:
    answers = ["14", "C", "[0, 1]"]
    task = AutoTask(write(tmp_path / "a.jsonl", *({"prompt": "?", "answer": answer} for answer in answers)))
    number, letter, text = task.items()
    assert task.is_correct(number, "20 - 6 = 14.0")
    assert not task.is_correct(number, "C")
    assert task.is_correct(letter, "ANSWER:C")
    assert not task.is_correct(letter, "D")
    assert task.is_correct(text, " [0, 1]\n")
    assert not task.is_correct(text, "[0,1]")
    assert not any(task.is_correct(item, "") for item in task.items())


def test_exact_and_choice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", {"prompt": "?", "answer": "B"})
    (item,) = ExactMatchTask(path).items()
    assert ExactMatchTask(path).is_correct(item, "B ")
    assert not ExactMatchTask(path).is_correct(item, "(B)")
    assert ChoiceTask(path).is_correct(item, "(B)")


@pytest.mark.parametrize(
    "lines, found",
    [
        ([], "empty file"),
        (["", "  "], "empty file"),
        ([{"prompt": "a", "answer": "1"}, "{broken"], "a.jsonl:2 should be JSON"),
        (["[1]"], "a.jsonl:1.*list"),
        ([{"prompt": "a"}], "a.jsonl:1.*`answer`.*None"),
        ([{"prompt": "", "answer": "1"}], "`prompt`"),
        ([{"prompt": "a", "answer": True}], "`answer`.*True"),
        ([{"prompt": "a", "answer": "1", "source": 3}], "`source`.*3"),
        ([{"prompt": "a", "answer": "1", "metadata": []}], "`metadata`.*list"),
        ([{"prompt": "a", "answer": "1", "metadata": "{"}], "a.jsonl:1 should be JSON"),
        ([{"prompt": "a", "answer": "1"}, {"prompt": "a", "answer": "one"}], "item 2.*number.*'one'"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path: Path, lines: list[Any], found: str) -> None:
    with pytest.raises(DataError, match=found):
        NumericTask(write(tmp_path / "a.jsonl", *lines))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        NumericTask(tmp_path / "nowhere.jsonl")


def test_choice_needs_a_letter(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="capital letter"):
        ChoiceTask(write(tmp_path / "a.jsonl", {"prompt": "a", "answer": "b"}))


class TestReasoningGym:
    @pytest.fixture(autouse=True)
    def _needs_reasoning_gym(self) -> None:
        pytest.importorskip("reasoning_gym", reason="needs reasoning-gym: pip install 'corebatch[demo]'")

    def draw(self, name: str = "chain_sum", size: int = 8, **options: Any) -> list[Any]:
        return list(draw_items(name, options, prompt_format="Q: {question}\nA:", seed=5, size=size))

    def test_checks_with_the_verifier(self) -> None:
        items = self.draw(min_terms=2, max_terms=2, max_digits=2)
        task = ReasoningGymTask(items)
        for item in items:
            assert item.prompt.startswith("Q: ")
            assert task.is_correct(item, item.answer)
            assert task.is_correct(item, f"  {item.answer}\n")
            assert not task.is_correct(item, str(int(item.answer) + 1))
            assert not task.is_correct(item, "")
            assert not task.is_correct(item, f"It is {item.answer}, I think")

    def test_partial_credit_is_not_correct(self) -> None:
        item = self.draw("word_sorting")[0]
        task = ReasoningGymTask([item])
        words = item.answer.split(", ")
        assert task.is_correct(item, ", ".join(words))
        swapped = ", ".join([words[1], words[0], *words[2:]])
        assert not task.is_correct(item, swapped)

    @pytest.mark.parametrize("name", ["complex_arithmetic", "fraction_simplification", "number_sorting"])
    @pytest.mark.parametrize("text", ["", "??", "1/0", "[", "٣", "9" * 5000, "\x00", "nan", "nan+2i", "i", "-"])
    def test_malformed_answers_are_wrong(self, name: str, text: str) -> None:
        items = self.draw(name, size=3)
        assert not any(ReasoningGymTask(items).is_correct(item, text) for item in items)

    def test_round_trip_through_jsonl(self, tmp_path: Path) -> None:
        items = self.draw("fraction_simplification") + self.draw("calendar_arithmetic", tasks=["is_leap_year"])
        rows = [
            {"prompt": i.prompt, "answer": i.answer, "source": i.source, "metadata": dict(i.metadata)} for i in items
        ]
        task = ReasoningGymTask.from_jsonl(write(tmp_path / "held.jsonl", *rows))
        assert [vars(item) for item in task.items()] == [vars(item) for item in items]
        assert task.name == "held"

    def test_prompts_do_not_repeat(self) -> None:
        prompts = [item.prompt for item in self.draw("chain_sum", size=200, max_digits=1, max_terms=2)]
        assert len(prompts) == len(set(prompts)) < 200

    def test_an_item_must_pass_its_own_check(self) -> None:
        item = self.draw()[0]
        wrong = type(item)(prompt="?", source="s", answer="1000001", metadata=item.metadata)
        with pytest.raises(DataError, match="full score"):
            ReasoningGymTask([wrong])

    def test_bad_items(self) -> None:
        with pytest.raises(DataError, match="at least one"):
            ReasoningGymTask([])
        with pytest.raises(DataError, match="metadata"):
            ReasoningGymTask([type(self.draw()[0])(prompt="?", source="s", answer="1")])

    @pytest.mark.parametrize("name, options", [("no_such", {}), ("lcm", {"no_such": 1}), ("lcm", {"min_value": -3})])
    def test_unknown_generator_or_option(self, name: str, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match=name):
            create_generator(name, options, seed=0, size=1)


def test_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(CorebatchError, match=r"corebatch\[demo\]"):
        create_generator("lcm", {}, seed=0, size=1)

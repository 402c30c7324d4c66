"""Expressions are compared by math-verify; the text is cut to its answer before."""

import json
import sys
import threading
from pathlib import Path

import pytest

from corebatch.errors import ConfigError, DataError
from corebatch.evaluation import MathTask, parse_task
from corebatch.evaluation.expressions import as_latex


def write(path: Path, *answers: object) -> Path:
    path.write_text("".join(json.dumps({"prompt": "?", "answer": answer}) + "\n" for answer in answers))
    return path


@pytest.mark.parametrize(
    "text, found",
    [
        ("2x", "$2x$"),
        ("First 3.\n#### x + 2", "$x + 2$"),
        ("so\n\n (x+1)^2.", "$(x+1)^2$"),
        (r"\frac{1}{2}", r"$\frac{1}{2}$"),
        ("it is 14 apples", "it is 14 apples"),
        (r"thus \boxed{7}", r"thus \boxed{7}"),
        ("$4$ or so", "$4$ or so"),
        ("", ""),
    ],
)
def test_bare_expressions_are_put_between_dollars(text: str, found: str) -> None:
    assert as_latex(text) == found


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ConfigError, match=r"pip install 'corebatch\[evaluation\]'"):
        parse_task(f"math:{write(tmp_path / 'm.jsonl', 1)}")


class TestWithMathVerify:
    @pytest.fixture(autouse=True)
    def _needs_math_verify(self) -> None:
        pytest.importorskip("math_verify", reason="needs math-verify: pip install 'corebatch[evaluation]'")

    @pytest.mark.parametrize(
        "answer, right, wrong",
        [
            (14, ["14", "20 - 6 = 14.0", "so it is 14 apples", "$14$", r"\boxed{14}"], ["15", "", "14x", "x+14"]),
            ("1/2", ["0.5", r"\frac{1}{2}", r"so $\frac12$"], ["2", "1/3"]),
            ("x^2+2x+1", ["(x+1)^2", "$(1+x)^2$", "We find\n#### x^2 + 2x + 1"], ["(x-1)^2", "x^2", "1"]),
            (r"$\sqrt{8}$", [r"$2\sqrt{2}$"], [r"$\sqrt{2}$"]),
            (r"$\{1, 2\}$", [r"$\{2, 1\}$"], [r"$\{1\}$"]),
        ],
    )
    def test_equal_is_right(self, tmp_path: Path, answer: object, right: list[str], wrong: list[str]) -> None:
        task = MathTask(write(tmp_path / "m.jsonl", answer))
        (item,) = task.items()
        assert [text for text in right if not task.is_correct(item, text)] == []
        assert [text for text in wrong if task.is_correct(item, text)] == []

    def test_decimals(self, tmp_path: Path) -> None:
        path = write(tmp_path / "m.jsonl", "1/3")
        six, three = parse_task(f"math:{path}"), parse_task(f"math:{path},decimals=3,name=rough")
        (item,) = six.items()
        assert not six.is_correct(item, "0.3333")
        assert six.is_correct(item, "0.333333")
        assert three.is_correct(item, "0.333")
        assert (six.options().max_new_tokens, six.options().stop) == (256, ())

    def test_an_answer_that_is_none_is_an_error(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"item 2 .*m\.jsonl.*'no idea'"):
            MathTask(write(tmp_path / "m.jsonl", "1", "no idea"))

    @pytest.mark.parametrize("text", ["$", "\\boxed{", "$\\frac{1}{0}$", "{{{{", "\x00", "$" + "(" * 200])
    def test_malformed_answers_are_wrong(self, tmp_path: Path, text: str) -> None:
        task = MathTask(write(tmp_path / "m.jsonl", "3"))
        assert not task.is_correct(task.items()[0], text)

    def test_works_outside_the_main_thread(self, tmp_path: Path) -> None:
        task = MathTask(write(tmp_path / "m.jsonl", "3"))
        found: list[bool] = []
        thread = threading.Thread(target=lambda: found.append(task.is_correct(task.items()[0], "3.0")))
        thread.start()
        thread.join()
        assert found == [True]

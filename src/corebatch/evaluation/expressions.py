"""Answers that are mathematical expressions, compared by math-verify."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from os import PathLike
from typing import Any

from corebatch.errors import ConfigError, DataError
from corebatch.evaluation.tasks import FileTask, Item

_SECONDS = 5
_MARKS = re.compile(r"\$|\\boxed|\\\(|\\\[")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[A-Za-z]{2,}")
_FINAL_MARK = "####"  # GSM8K's mark before the final answer


class MathTask(FileTask):
    r"""Right: math-verify finds the known answer and what the text ends on equal, as numbers, expressions, sets,
    intervals or equations.

    LaTeX between dollars or in `\boxed{}` is read wherever it stands; else what follows `####`, or the last line, is
    read as an expression if it holds no words, and otherwise the last number counts. Decimals are compared to
    `decimals` places, so that 0.333333 is 1/3: `NumericTask` compares without rounding.
    """

    defaults: Mapping[str, Any] = {"max_new_tokens": 256, "stop": ()}

    def __init__(self, path: str | PathLike[str], *, decimals: int = 6, name: str | None = None) -> None:
        """Reads all items. Raises ConfigError: math-verify is not installed; DataError: see `read_items`; or an answer
        that math-verify cannot read."""
        self._decimals = decimals
        self._verify = _math_verify()
        self._known: dict[str, Any] = {}
        super().__init__(path, name=name)

    def is_correct(self, item: Item, text: str) -> bool:
        if item.answer not in self._known:
            self._known[item.answer] = self._parsed(item.answer)
        found = self._parsed(text)
        if not found:
            return False
        try:
            equal = self._verify.verify(
                self._known[item.answer], found, float_rounding=self._decimals, timeout_seconds=_seconds()
            )
        except Exception:  # a text that sympy cannot deal with is wrong, whatever it raised
            return False
        return bool(equal)

    def _check_answer(self, where: str, item: Item) -> None:
        if not self._parsed(item.answer):
            raise DataError(f"The answer of {where} should be a number or an expression. Found {item.answer!r}.")

    def _parsed(self, text: str) -> list[Any]:
        try:
            return list(self._verify.parse(as_latex(text), parsing_timeout=_seconds()))
        except Exception:  # as above
            return []


def as_latex(text: str) -> str:
    """What math-verify is given: a bare expression between dollars, any other text as it is.

    Without dollars it would read the 2 of `2x` alone.
    """
    if _MARKS.search(text):
        return text
    lines = text.rpartition(_FINAL_MARK)[2].strip().splitlines() or [""]
    last = lines[-1].strip().rstrip(".")
    return f"${last}$" if last and not _WORD.search(_COMMAND.sub(" ", last)) else text


def _seconds() -> int | None:
    """math-verify's timeout is a signal, and those reach the main thread alone."""
    return _SECONDS if threading.current_thread() is threading.main_thread() else None


def _math_verify() -> Any:
    try:
        import math_verify
    except ImportError as error:
        raise ConfigError("Comparing expressions needs math-verify: pip install 'corebatch[evaluation]'.") from error
    return math_verify

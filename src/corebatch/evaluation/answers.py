"""Exact comparison of a generated text with a known answer: as a number, as a choice letter, as text."""

import re
from fractions import Fraction

_NUMBER = re.compile(
    r"(?<![\w.)\]])[-+]?"  # a sign, but not the minus of `8-5`
    r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+|(?=\.\d))"  # thousands with commas, plain digits, or `.5`
    r"(?:\.\d+)?(?:[eE][-+]?\d{1,3}(?!\d)|/\d+(?![\d.]))?"  # decimals, then a short exponent or a denominator
    r"|(?<=[\w)\]])(?<!\d)\d+(?:\.\d+)?"  # digits glued to a letter or a bracket, unsigned
)
_MINUS = "\N{MINUS SIGN}"
_FINAL_MARK = "####"  # GSM8K's mark before the final answer
_SAID_LETTER = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?(?:\s*[:=]?\s*|\.)\(?([A-Z])(?![\w'])")
_FIRST_LETTER = re.compile(r"\s*(?:\(([A-Z])\)|([A-Z])(?=\s*$|[).:,]))")
_LAST_LINE = re.compile(r"(?:^|\n)\s*\(?([A-Z])[).]?\s*$")
_BRACKETED_LETTER = re.compile(r"\(([A-Z])\)")


def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number (`1,200`, `-0.5`, `3/4`, `$12`, `40%` as 40); None if it is none."""
    cleaned = text.replace(_MINUS, "-").strip().lstrip("$").rstrip("%. ").strip()
    match = _NUMBER.fullmatch(cleaned)
    return None if match is None else _value(match.group())


def final_number(text: str) -> Fraction | None:
    """The number that a text ends on: the first after the last `####`, else the last one; None if it has none."""
    cleaned = text.replace(_MINUS, "-").replace("$", "")
    if _FINAL_MARK in cleaned:
        first = _NUMBER.search(cleaned.rpartition(_FINAL_MARK)[2])
        return None if first is None else _value(first.group())
    found = _NUMBER.findall(cleaned)
    return _value(found[-1]) if found else None


def _value(digits: str) -> Fraction | None:
    try:
        return Fraction(digits.replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def chosen_letter(text: str) -> str | None:
    """The option that a text names, as a capital letter, or None.

    Looked for in this order: the last `answer is C`, `ANSWER: C`, `option (C)`; the text's beginning, as
    `C`, `C)`, `(C) 3.82`; a last line `C)`; the last `(C)`. A lone `A` inside a sentence is an article, not a choice.
    """
    said = _SAID_LETTER.findall(text)
    if said:
        return str(said[-1])
    first = _FIRST_LETTER.match(text)
    if first is not None:
        return first.group(1) or first.group(2)
    last = _LAST_LINE.search(text)
    if last is not None:
        return last.group(1)
    bracketed = _BRACKETED_LETTER.findall(text)
    return str(bracketed[-1]) if bracketed else None


def same_number(answer: str, text: str) -> bool:
    """Whether `text` ends on the number `answer`; `14`, `14.0` and `28/2` are equal, without rounding."""
    expected = parse_number(answer)
    return expected is not None and final_number(text) == expected


def same_choice(answer: str, text: str) -> bool:
    """Whether `text` names the option `answer` (one capital letter)."""
    return chosen_letter(text) == answer.strip()


def same_text(answer: str, text: str) -> bool:
    """Whether both are the same but for white space; case and punctuation count."""
    return " ".join(text.split()) == " ".join(answer.split())

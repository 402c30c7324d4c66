"""Comparing texts with known answers."""

from fractions import Fraction

import pytest

from corebatch.evaluation.answers import chosen_letter, final_number, parse_number, same_choice, same_number, same_text


@pytest.mark.parametrize(
    "text, value",
    [
        ("14", "14"),
        (" 14.0 ", "14"),
        ("+7", "7"),
        ("-0.5", "-1/2"),
        ("\N{MINUS SIGN}3", "-3"),
        (".25", "1/4"),
        ("1,234,567", "1234567"),
        ("3/4", "3/4"),
        ("1e3", "1000"),
        ("$12", "12"),
        ("40%", "40"),
        ("5.", "5"),
    ],
)
def test_parse_number(text: str, value: str) -> None:
    assert parse_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text", ["", "C", "two", "-2 3 5", "[0, 1]", "1/0", "1e9999999999", "1..2", "nan", "inf", "3x"]
)
def test_not_a_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    "text, value",
    [
        ("( 34.0 - 20.0 ) = 14", "14"),
        ("80/5 = <<80/5=16>>16\n#### 16", "16"),
        ("#### 1,200\nI am sure about 99 %", "1200"),
        ("The answer is $3.50.", "7/2"),
        ("x=-5", "-5"),
        ("10-5", "5"),
        ("5 - -2", "-2"),
        ("it is 7 km/h", "7"),
        ("b2b 9", "9"),
    ],
)
def test_final_number(text: str, value: str) -> None:
    assert final_number(text) == Fraction(value)


@pytest.mark.parametrize("text", ["", "no idea", "#### none", "12 #### "])
def test_no_final_number(text: str) -> None:
    assert final_number(text) is None


@pytest.mark.parametrize(
    "answer, text, same",
    [
        ("14", "14.0", True),
        ("14", " 14\n", True),
        ("0.5", "1/2", True),
        ("0.333", "1/3", False),
        ("14", "15", False),
        ("14", "", False),
        ("-5", "5", False),
        ("1200", "1,200", True),
    ],
)
def test_same_number(answer: str, text: str, same: bool) -> None:
    assert same_number(answer, text) is same


@pytest.mark.parametrize(
    "text, letter",
    [
        ("C", "C"),
        ("C)", "C"),
        ("(C) 3.82", "C"),
        ("C. Both", "C"),
        ("Because A is wrong.\nANSWER:C", "C"),
        ("The answer is (B).", "B"),
        ("Answer: D", "D"),
        ("the correct option is E", "E"),
        ("Answer = E", "E"),
        ("so it is 438\nanswer.A", "A"),
        ("He takes (17 - 4) hours.\nE)", "E"),
        ("then x = 230\nB", "B"),
        ("I take (A), no, rather (D)", "D"),
        ("A train leaves at noon", None),
        ("c", None),
        ("", None),
        ("The answer is Apple", None),
    ],
)
def test_chosen_letter(text: str, letter: str | None) -> None:
    assert chosen_letter(text) == letter


def test_same_choice_and_text() -> None:
    assert same_choice("C", "(C) 3.82")
    assert not same_choice("C", "(D)")
    assert same_text("[0, 1]", "  [0,  1]\n")
    assert not same_text("True", "true")

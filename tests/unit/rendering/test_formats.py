"""Numbers and names as they are shown."""

from __future__ import annotations

import pytest

from corebatch.rendering import formats


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "\u2013"),
        (0, "0"),
        (0.5, "0.5"),
        (12.345, "12.3"),
        (999.6, "1,000"),
        (9999, "9,999"),
        (12_345, "12.3 k"),
        (999_600, "1,000 k"),
        (1_234_567, "1.23 M"),
        (2e9, "2 G"),
        (3.5e12, "3.5 T"),
    ],
)
def test_compact(value: float | None, text: str) -> None:
    assert formats.compact(value) == text


def test_durations() -> None:
    assert [formats.duration(s) for s in (0.5, 59.94, 61, 4020)] == ["0.5 s", "59.9 s", "1 min 01 s", "1 h 07 min"]


def test_small_shares_keep_their_digits() -> None:
    values = (None, 0.0, 0.4123, 0.00123, 4.5e-7)
    assert [formats.share(value) for value in values] == ["\u2013", "0.0 %", "41.2 %", "0.123 %", "4.5e-05 %"]


def test_shorten_counts_cells() -> None:
    assert formats.shorten("abcdef", 6) == "abcdef"
    assert formats.shorten("abcdefg", 6) == "abcde…"
    assert formats.shorten("数学数学", 6) == "数学…"


def test_clean_leaves_one_line_of_plain_text() -> None:
    assert formats.clean("a\nb\x00\u202ec\ud800") == "a�b��c�"


def test_listing() -> None:
    assert formats.listing(["a"]) == "a"
    assert formats.listing(["a", "b", "c"]) == "a, b and c"
    assert formats.listing(list("abcdefgh")) == "a, b, c, d, e and 3 more"

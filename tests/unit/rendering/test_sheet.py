"""One table, and what becomes of it."""

from __future__ import annotations

from corebatch.rendering.sheet import Sheet, flat, markdown_table


def test_a_table_in_markdown_is_one_for_its_readers() -> None:
    sheet = Sheet(title="A_b", header=("name", "loss"), rows=(("x|y", "-0.5"),), caption="# one")
    assert markdown_table(sheet, left=("name",)).split("\n") == [
        "### A\\_b",
        "",
        "| name | loss |",
        "| --- | ---: |",
        "| x\\|y | -0.5 |",
        "",
        "\\# one",
    ]


def test_values_are_flattened_with_dots() -> None:
    assert flat({"a": {"b": [1, {"c": None}], "d": {}}, "e": True}) == [
        ("a.b", "1, {c: none}"),
        ("a.d", "none"),
        ("e", "yes"),
    ]

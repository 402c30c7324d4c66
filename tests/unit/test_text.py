"""Text of users is shown as it is: no markup, no control characters, no Markdown."""

import io

import pytest
from rich.console import Console

from corebatch.rendering.sheet import table
from corebatch.text import markdown, markdown_code, say, visible

BAD = [
    "[/]", "[red]x", "\\[bold]", "[link=http://127.0.0.1]x[/link]", "\x1b]0;owned\x07\x1b[31mred", "a\nb\tc\rd",
    "\u202eabc", "\ud800", "\x9b31m", ":smile:",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_the_terminal_shows_it(name):
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True, color_system=None)
    say(console, name)
    console.print(table(name, [{"source": name, name + "_x": {name: 1}}]))
    text = out.getvalue()
    shown = visible(name, lines=True)
    assert shown in text
    assert visible(name) in text.splitlines()[-1]
    assert all(c.isprintable() or c == "\n" for c in text)


def test_what_control_characters_become():
    assert visible("\x1b[1m\n\u202e\ud800\x9b") == r"\x1b[1m\n\u202e\ud800\x9b"
    assert visible("one\ntwo\r", lines=True) == "one\ntwo\\r"
    assert visible("क्\u200dष 👩\u200d🚀 é 数") == "क्\u200dष 👩\u200d🚀 é 数"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("</p><img src=x>", "&lt;/p>&lt;img src=x>"),
        ("x\n# Heading", r"x\\n# Heading"),
        ("![t](http://1)", r"!\[t\](http://1)"),
        ("# heading", r"\# heading"),
        ("- item", r"\- item"),
        ("1. item", r"1\. item"),
        ("a|b_c*d`e~f$g", r"a\|b\_c\*d\`e\~f\$g"),
        ("&amp;", "&amp;amp;"),
        ("-0.25", "-0.25"),
        ("gsm8k", "gsm8k"),
    ],
)
def test_markdown(text, shown):
    assert markdown(text) == shown


def test_code():
    assert markdown_code("a`b``c") == "```a`b``c```"
    assert markdown_code("`") == "`` ` ``"

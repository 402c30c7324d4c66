"""What README says of versions is what `make seam` measured."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "seam"))
import run as seam  # noqa: E402

ROW = dict[str, str]


def rows() -> list[ROW]:
    page = seam.PAGE.read_text(encoding="utf-8").partition(seam.BEGIN)[2].partition(seam.END)[0]
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    assert tuple(lines[0]) == seam.HEAD
    return [dict(zip(seam.HEAD, line, strict=True)) for line in lines[2:]]


def test_every_version_passed():
    assert [row["version"] for row in rows()] == list(seam.PINS)
    for row in rows():
        assert int(row["passed"]) > 100, row
        assert row["failed"] == "0", row


def test_the_table_is_of_the_pins():
    for row in rows():
        for pin in seam.PINS[row["version"]]:
            name, _, wanted = pin.partition("==")
            assert wanted in ("", row[name])


def test_readme_says_so_with_the_date():
    (line,) = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| transformers |")]
    for row in rows():
        assert row["transformers"] in line
        assert row["trl"] in line
    assert max(row["date"] for row in rows()) in line


def test_another_run_replaces_the_table_alone():
    page = "a\n<!-- table of make seam -->\nold\n<!-- end of the table -->\nb\n"
    row = dict.fromkeys(seam.HEAD, "x")
    written = seam.write(page, [row])
    assert written.startswith("a\n<!-- table")
    assert written.endswith("-->\nb\n")
    assert "old" not in written
    assert seam.write(written, [row]) == written
    assert re.search(r"\| x \| x ", written)


def test_what_is_run_is_there():
    for test in seam.TESTS:
        path, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8")


def test_what_make_wheel_did_on_each_python_is_in_the_table_and_its_commands_on_the_first_screen():
    page = seam.PAGE.read_text(encoding="utf-8")
    text = page.partition("<!-- table of make wheel -->")[2].partition("<!-- end of table of make wheel -->")[0]
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    found = [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
    assert [row["Python"].rpartition(".")[0] for row in found] == ["3.11", "3.12", "3.13"]
    for row in found:
        named, _, asked = row["extras named"].partition(" of ")
        assert (row["core"], row["types"], row["failed"], named) == ("yes", "yes", "0", asked)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (first,) = re.findall(r"\A# corebatch\n.*?^```sh\n(.*?)^```\n\n```yaml\n", readme, re.S | re.M)
    assert [line.split()[1] for line in first.splitlines()] == ["install", "validate", "train", "report"]
    (line,) = [line for line in readme.splitlines() if line.startswith("| Python |")]
    for row in found:
        assert row["Python"] in line

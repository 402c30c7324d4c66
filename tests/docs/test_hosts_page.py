"""What the page on hosts says is what `make hosts` measured, and what the plug-ins refuse."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "hosts"))
import run_hosts as hosts  # noqa: E402

PAGE = hosts.PAGE.read_text(encoding="utf-8")


def rows():
    lines = [
        line.strip("| ").split(" | ") for line in PAGE.partition(hosts.BEGIN)[2].partition(hosts.END)[0].splitlines()
    ]
    assert tuple(lines[0]) == hosts.HEAD
    return [dict(zip(hosts.HEAD, line, strict=True)) for line in lines[2:]]


def test_every_host_that_is_shown_did_what_it_should():
    for row in rows():
        assert hosts.holds(row), row
        host = next(host for host in hosts.HOSTS.values() if host.title == row["host"])
        assert f"{host.package}=={row['version']}" in host.pins
        assert row["refused"] == ", ".join(host.refused)
        for key, failed in (("two ranks", "other choices"), ("refused", "[] alone"), ("sources", "{}"), ("steps", "3")):
            assert not hosts.holds({**row, key: failed})


def test_another_run_replaces_the_table_alone():
    row = dict.fromkeys(hosts.HEAD, "x")
    written = hosts.write(f"a\n{hosts.BEGIN}old\n{hosts.END}b\n", [row])
    assert written.startswith(f"a\n{hosts.BEGIN}| host |")
    assert written.endswith(f"{hosts.END}b\n")
    assert "old" not in written


@pytest.mark.parametrize(
    "name, title", [("axolotl", "Axolotl"), ("swift", "ms-swift"), ("llamafactory", "LLaMA-Factory")]
)
def test_every_refused_option_is_on_the_page(name, title):
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    tree = ast.parse((ROOT / "src" / "corebatch" / "integrations" / f"{name}.py").read_text())
    calls = [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "HostOption"
    ]
    keys = {call.args[0].value for call in calls} - {"model_config_type", "stage"}  # in words
    assert len(keys) > 5
    shown = set(re.findall(r"`(\w+)", section))
    assert keys <= shown, keys - shown

"""Every part of a page that a script writes is what the script writes from the lines in benchmarks/results."""

from __future__ import annotations

import importlib
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers.utils import logging as transformers_logging

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS: dict[str, tuple[tuple[str, ...], ...]] = {
    **dict.fromkeys(("ablations", "advice", "bias", "claimed", "dual_encoders", "feedback"), (("--table",),)),
    **dict.fromkeys(("many_rows", "micro_batches", "noise", "start_up", "subset", "windows"), (("--table",),)),
    **dict.fromkeys(("advised", "advised_choice", "budget", "learnt", "promised"), (("page",),)),
    **dict.fromkeys(("claims", "gpu_page", "rates"), ((),)),
    "following": (("following",), ("passes",), ("exact",), ("wide",)),
}
"""By script, with what it is called so that it measures nothing and writes its parts of pages."""
OTHERS = {
    ("docs/options.md", "options"): "test_options_page.py",
    ("docs/running/hosts.md", "table of make hosts"): "test_hosts_page.py",
    ("docs/running/combinations.md", "table of make seam"): "test_versions.py",
    ("docs/running/combinations.md", "table of make wheel"): "test_versions.py",
}
"""What is written from the code, or by commands that leave no lines, and which test holds it."""


@pytest.fixture(autouse=True)
def loggers_of_its_own() -> Iterator[None]:
    """Scripts silence loggers for their own process: not for the tests that follow."""
    ours, disabled = logging.getLogger("corebatch"), logging.root.manager.disable
    level, verbosity = ours.level, transformers_logging.get_verbosity()
    yield
    logging.disable(disabled)
    ours.setLevel(level)
    transformers_logging.set_verbosity(verbosity)


def parts() -> dict[tuple[str, str], str]:
    """By page and name, what stands between two markers."""
    found = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for end in re.findall(r"^<!-- end of (.+) -->$", text, re.MULTILINE):
            before, _, _ = text.partition(f"\n<!-- end of {end} -->")
            name, _, inside = before.rpartition("\n<!-- ")[2].partition(" -->\n")
            assert name == end or end == "the table", f"{page}: {name!r} ends with {end!r}"
            found[str(page.relative_to(ROOT)), name] = inside
    return found


def written(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str], str]:
    """What a script writes, by page and name; pictures go to the folder, and nothing else is written."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # some scripts set it
    module, made = importlib.import_module(script), dict[tuple[str, str], str]()

    def keep(page: Path, name: str, text: str) -> None:
        made[str(page.relative_to(ROOT)), name] = text.strip()

    holder: Any = module.pages if hasattr(module, "pages") else module
    monkeypatch.setattr(holder, "write_between", keep)
    monkeypatch.setattr(module, "write_lines", lambda *_: None, raising=False)
    for command in COMMANDS[script]:
        plot = {"noise": ("--plot", str(folder / "noise.svg")), "claims": ("--plots", str(folder))}.get(script, ())
        monkeypatch.setattr(sys, "argv", [script, *command, *plot])
        module.main()
    return made


def test_pages_are_what_scripts_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In every part, and no part is without a script that is called here or a test of its own."""
    made, there, wrong = dict[tuple[str, str], str](), parts(), list[str]()
    for script in COMMANDS:
        found = written(script, tmp_path, monkeypatch)
        assert found, f"{script} wrote no page"
        told = f"run benchmarks/{script}.py {' or '.join(' '.join(command) for command in COMMANDS[script])}"
        wrong += [f"{place}: {told}" for place, text in found.items() if there.get(place) != text]
        made |= found
    plots = {plot.name: plot.read_bytes() for plot in tmp_path.glob("*.svg")}
    kept = {plot.name: plot for folder in ("evidence", "methods") for plot in (ROOT / "docs" / folder).glob("*.svg")}
    wrong += [f"{name}: drawn anew" for name in plots if name not in kept or kept[name].read_bytes() != plots[name]]
    assert not wrong, "\n".join(wrong)
    assert set(plots) == set(kept), "a picture that no script draws, or that is not there"
    for place, test in OTHERS.items():
        assert (Path(__file__).parent / test).is_file(), place
    assert set(made) | set(OTHERS) == set(there), "a part that no script writes, or that is not there"

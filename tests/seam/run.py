"""The seam's tests on four versions of transformers, each in an environment of its own: `make seam`.

    python tests/seam/run.py [--torch torch==2.13.0] [--only 4.57 newest] [--write]

Environments lie in .cache/seam/<version> and are made when they are missing; results in .cache/seam/results.json.
--write puts the results into docs/running/combinations.md, which README quotes.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from page_tables import between, commit, table

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "seam"
PAGE = ROOT / "docs" / "running" / "combinations.md"
BEGIN, END = "<!-- table of make seam -->\n", "<!-- end of the table -->\n"

PINS = {
    # The lower bounds of pyproject.toml: what the oldest supported transformers was released with.
    "4.57": ["transformers==4.57.6", "trl==0.24.0", "accelerate==1.10.1", "peft==0.17.1", "datasets==3.6.0"],
    # The first year of transformers 5: last patch of each minor, the others of the same months.
    "5.5": ["transformers==5.5.4", "trl==1.1.0", "accelerate==1.13.0", "peft==0.19.1", "datasets==4.8.5"],
    "5.14": ["transformers==5.14.1", "trl==1.9.2", "accelerate==1.14.0", "peft==0.20.0", "datasets==5.0.1"],
    # Whatever pip finds on the day.
    "newest": ["transformers", "trl", "accelerate", "peft", "datasets"],
}
TOOLS = ["pytest>=8", "pytest-timeout>=2.3", "hypothesis>=6.100", "scipy>=1.12"]  # as in pyproject's dev extra

TESTS = [
    "tests/invariants/test_seam.py",
    "tests/invariants/test_plain_equality.py",
    "tests/invariants/test_layout.py",
    "tests/invariants/test_resume.py",
    "tests/invariants/test_autocast.py",
    "tests/unit/sampling/test_epochs.py",
    "tests/unit/sampling/test_tags.py",
    "tests/unit/record/test_checkpoint.py",
    "tests/unit/trainer/test_trainer_refusals.py",
    "tests/unit/trainer/test_trainer_sft.py",
    # FSDP2 is left out: on a CPU it needs an Accelerate that is told that it has an accelerator
    "tests/distributed/test_two_ranks.py::test_eight_steps_in_float32",
    "tests/distributed/test_two_ranks.py::test_a_stream_on_two_ranks",
]
SHOWN = ("transformers", "trl", "accelerate", "peft", "datasets", "torch")
HEAD = ("version", *SHOWN, "Python", "passed", "failed", "skipped", "date", "commit")


def prepare(version: str, torch: str) -> Path:
    """Makes or updates the environment; pinned ones are left alone once they are there.

    Returns:
        Its Python.
    """
    folder = CACHE / version
    python, stamp, wanted = folder / "bin" / "python", folder / "made-of.json", [torch, *PINS[version], *TOOLS]
    if version != "newest" and stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return python
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    constraint = CACHE / "constraint.txt"
    constraint.write_text(torch + "\n")
    subprocess.run([*install, torch], check=True)  # first, so that nobody brings another
    subprocess.run(
        [*install, "--upgrade", "--constraint", str(constraint), "--editable", str(ROOT), *PINS[version], *TOOLS],
        check=True,
    )
    stamp.write_text(json.dumps(wanted))
    return python


def installed(python: Path) -> dict[str, str]:
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {SHOWN!r}}}))"
    return json.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout)


def measure(version: str, python: Path, options: list[str]) -> dict[str, Any]:
    """Runs the tests; a run that was cut off, or that could not collect, counts as a failure."""
    report, tested = CACHE / f"{version}.xml", commit()  # before, since a long run outlives a commit
    report.unlink(missing_ok=True)
    # Old libraries warn about each other: warnings are errors where all are of one day.
    warnings = [] if version == "newest" else ["-W", "default"]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
    }
    command = [str(python), "-m", "pytest", *warnings, f"--junitxml={report}", *options, *TESTS]
    done = subprocess.run(command, cwd=ROOT, env=environment)
    counts = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    if report.is_file():
        suite = ElementTree.parse(report).getroot().find("testsuite")
        counts = {key: int(suite.get(key, 0)) for key in counts} if suite is not None else counts
    failed = counts["failures"] + counts["errors"]
    return {
        "version": version,
        **installed(python),
        "Python": platform.python_version(),  # the environment's too: venv takes the one that runs this
        "passed": counts["tests"] - failed - counts["skipped"],
        "failed": max(failed, int(done.returncode != 0)),
        "skipped": counts["skipped"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": tested,
    }


def write(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with another table between its two marks."""
    return between(page, BEGIN, END, table(HEAD, rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="torch==2.13.0")
    parser.add_argument("--only", nargs="+", choices=list(PINS), default=list(PINS))
    parser.add_argument("--write", action="store_true")
    args, options = parser.parse_known_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    results = CACHE / "results.json"
    rows = json.loads(results.read_text()) if results.is_file() else {}
    for version in args.only:
        print(f"== transformers {version}", flush=True)
        rows[version] = measure(version, prepare(version, args.torch), options)
        results.write_text(json.dumps(rows, indent=1))
    shown = [rows[version] for version in PINS if version in rows]
    print(table(HEAD, shown))
    if args.write:
        PAGE.write_text(write(PAGE.read_text(encoding="utf-8"), shown), encoding="utf-8")
    if any(rows[version]["failed"] for version in args.only):
        sys.exit(1)


if __name__ == "__main__":
    main()

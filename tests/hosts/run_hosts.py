"""Selection inside the hosts that docs/running/hosts.md names, each in an environment of its own: `make hosts`.

    python tests/hosts/run_hosts.py [--torch torch==2.13.0] [--only axolotl] [--write]

Environments lie in .cache/hosts/<host> and are made when they are missing (up to 5 GB each), runs in .cache/hosts/runs,
results in .cache/hosts/<host>.json. A run trains a tiny model from random weights on a CPU. --write puts the results
into the page.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from commands import HOSTS, Host, Run

sys.path.insert(0, str(Path(__file__).parents[1]))
from page_tables import between, commit, table

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache" / "hosts"
PAGE = ROOT / "docs" / "running" / "hosts.md"
BEGIN, END = "<!-- table of make hosts -->\n", "<!-- end of the table -->\n"
SHOWN = ("torch", "transformers")
HEAD = ("host", "version", *SHOWN, "Python", "steps", "sources", "resumed", "two ranks", "refused", "date", "commit")
COUNTS = {"algebra": 56, "shapes": 32, "rare": 8}
"""Rows of each source: 96, so that every step has whole batches."""


class Outcome(NamedTuple):
    code: int
    said: str
    folder: Path


def prepare(host: Host, torch: str) -> Path:
    """Makes the environment, or leaves it alone where it is made of the same.

    Returns:
        Its Python.
    """
    folder = CACHE / host.name
    python, stamp, wanted = folder / "bin" / "python", folder / "made-of.json", [torch, *host.pins]
    if stamp.is_file() and json.loads(stamp.read_text()) == wanted:
        return python
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    install = [str(python), "-m", "pip", "install", "--quiet"]
    subprocess.run([*install, torch], check=True)  # first, so that nobody brings another
    subprocess.run([*install, torch, *host.pins], check=True)
    subprocess.run([*install, torch, *host.pins, "--editable", str(ROOT)], check=True)
    for name in host.removed:
        subprocess.run([str(python), "-m", "pip", "uninstall", "--quiet", "--yes", name], check=True)
    for name in host.empty:
        (next(folder.glob("lib/python*/site-packages")) / f"{name}.py").touch()
    stamp.write_text(json.dumps(wanted))
    return python


def environment(python: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'tests'}",
        "ACCELERATE_USE_CPU": "true",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "DO_NOT_TRACK": "1",
        "AXOLOTL_DO_NOT_TRACK": "1",
    }


def material(python: Path, folder: Path) -> None:
    """A tiny Llama with random weights, and a file of rows for each source."""
    folder.mkdir(parents=True)
    code = "import sys, pathlib; from folders import save_tiny_model; save_tiny_model(pathlib.Path(sys.argv[1]))"
    subprocess.run([str(python), "-c", code, str(folder / "model")], check=True, env=environment(python))
    for source, count in COUNTS.items():
        rows = (
            {
                "instruction": f"{source} {number}",
                "input": "",
                "output": f"{number} and {source}" + " so" * (number * 7 % 13),
                "channel": source,
            }
            for number in range(count)
        )
        (folder / f"{source}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def do(host: Host, python: Path, folder: Path, run: Run) -> Outcome:
    """One run of the host's own command."""
    output = folder / run.name
    command = host.command(folder, output, run)
    done = subprocess.run(
        command,
        cwd=folder, env=environment(python), capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    said = done.stdout + done.stderr
    (folder / f"{run.name}.log").write_text(said)
    return Outcome(done.returncode, said, output)


def resumed(host: Host, python: Path, folder: Path, run: Run, steps: int) -> bool:
    """Whether a run that goes on from three quarters of its steps ends with the weights and choices of one that nobody
    disturbed."""
    straight, at = folder / run.name, steps * 3 // 4
    again = run._replace(name=run.name + "-resumed", resume=at)
    shutil.copytree(straight, folder / again.name)
    for later in range(at + 1, steps + 1):
        shutil.rmtree(folder / again.name / f"checkpoint-{later}", ignore_errors=True)
    outcome = do(host, python, folder, again)
    if outcome.code:
        return False
    files = [f"checkpoint-{steps}/model.safetensors", *(["chosen.jsonl"] if run.factor > 1 else [])]
    return all(digest(straight / name) == digest(outcome.folder / name) for name in files)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def drawn(folder: Path) -> dict[str, int]:
    """Rows of each source that a run has drawn."""
    counts: dict[str, int] = {}
    for line in lines(folder, "selection.jsonl"):
        for source, count in line["drawn"].items():
            counts[source] = counts.get(source, 0) + count
    return counts


def measure(host: Host, python: Path) -> dict[str, Any]:
    """All runs of a host. What does not hold is told in the row, by the log that says more."""
    tested, folder = commit(), CACHE / "runs" / host.name
    shutil.rmtree(folder, ignore_errors=True)
    material(python, folder)
    run = Run(name="straight")
    straight = do(host, python, folder, run)
    if straight.code:
        return {**about(host, python, tested), "steps": f"none: see {folder / 'straight.log'}"}
    steps, whole = len(lines(straight.folder, "selection.jsonl")), drawn(straight.folder)
    plain = run._replace(name="plain", factor=1)
    own = do(host, python, folder, plain).code == 0 and resumed(host, python, folder, plain, 2 * steps)
    same = resumed(host, python, folder, run, steps)
    ranks = do(host, python, folder, run._replace(name="ranks", ranks=2))
    chosen = [line["chosen"] for line in lines(straight.folder, "chosen.jsonl")]
    agree = ranks.code == 0 and chosen == [line["chosen"] for line in lines(ranks.folder, "chosen.jsonl")]
    refused = [key for key in host.refused if is_refused(host, python, folder, run, key)]
    return {
        **about(host, python, tested),
        "steps": steps,
        "sources": "kept" if whole == {source: 2 * count for source, count in COUNTS.items()} else f"{whole}",
        "resumed": told(same) + f" (the host alone: {told(own)})",
        "two ranks": "the same choices" if agree else "failed" if ranks.code else "other choices",
        "refused": ", ".join(refused) if len(refused) == len(host.refused) else f"{refused} alone",
    }


def told(exact: bool) -> str:
    return "bit for bit" if exact else "not exact"


def is_refused(host: Host, python: Path, folder: Path, run: Run, key: str) -> bool:
    """Whether an option ends the run before training, by its name."""
    outcome = do(host, python, folder, run._replace(name=f"refused-{key}", more={key: host.refused[key]}))
    said = f"{key} of {host.title} does not go with selection" in outcome.said
    return outcome.code != 0 and said and not lines(outcome.folder, "selection.jsonl")


def about(host: Host, python: Path, tested: str) -> dict[str, Any]:
    names = (host.package, *SHOWN)
    code = f"import json, importlib.metadata as m; print(json.dumps({{n: m.version(n) for n in {names!r}}}))"
    versions = json.loads(subprocess.run([str(python), "-c", code], check=True, capture_output=True).stdout)
    return {
        **dict.fromkeys(HEAD, ""),
        "host": host.title,
        "version": versions[host.package],
        **{name: versions[name] for name in SHOWN},
        "Python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": tested,
    }


def write(page: str, rows: list[dict[str, Any]]) -> str:
    """The page with another table between its two marks."""
    return between(page, BEGIN, END, table(HEAD, rows))


def holds(row: dict[str, Any]) -> bool:
    """Whether a host did all that it should: four steps and more, resume exact where its own is, the same choices on
    two ranks, and every key refused that should be."""
    if not str(row["steps"]).isdigit() or int(row["steps"]) < 4:
        return False
    ours, _, its = row["resumed"].partition(" (")
    exact = ours == "bit for bit" or "not exact" in its
    refused = next(", ".join(host.refused) for host in HOSTS.values() if host.title == row["host"])
    same = row["two ranks"] == "the same choices"
    return row["sources"] == "kept" and exact and same and row["refused"] == refused


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default="torch==2.13.0")
    parser.add_argument("--only", nargs="*", choices=list(HOSTS), default=list(HOSTS))
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        print(f"== {name}", flush=True)
        row = measure(HOSTS[name], prepare(HOSTS[name], args.torch))
        (CACHE / f"{name}.json").write_text(json.dumps(row, indent=1))
    there = [name for name in HOSTS if (CACHE / f"{name}.json").is_file()]
    rows = {name: json.loads((CACHE / f"{name}.json").read_text()) for name in there}
    shown = list(rows.values())
    print(table(HEAD, shown))
    if args.write:
        PAGE.write_text(write(PAGE.read_text(encoding="utf-8"), shown), encoding="utf-8")
    if not all(holds(rows[name]) for name in args.only):
        sys.exit(1)


if __name__ == "__main__":
    main()

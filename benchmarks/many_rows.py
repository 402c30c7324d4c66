"""What choosing from many rows takes: `python benchmarks/many_rows.py` writes it into docs/methods/selectors.md.

Every selector in a process of its own, in one thread: seconds of processor time, and how much its peak of memory
exceeds that of the process with the features (float32) and everything imported and compiled. `--table` writes the page
from the last run's lines.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before torch and numpy are imported

import torch

from corebatch import select
from corebatch.selectors import SELECTORS
from pages import ROOT, origin, provenance, table, write_between, write_lines

PAGE, OUTPUT = ROOT / "docs" / "methods" / "selectors.md", ROOT / "benchmarks" / "results" / "many_rows.jsonl"


def main() -> None:
    options = parse()
    if options.one:
        print(json.dumps(one(options.one, options.rows, options.columns, options.budget, options.seed)))
        return
    if not options.table:
        write_lines(options.output, measure(options))
    lines = [json.loads(line) for line in options.output.read_text(encoding="utf-8").splitlines()]
    write_between(options.page, "many rows", page(lines))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=16_000)
    parser.add_argument("--columns", type=int, default=1_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--one", help="measure this selector in this process, and print it")
    parser.add_argument("--budget", type=int, help="of --one")
    return parser.parse_args()


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    common = provenance(options.seed)
    lines = []
    for name in SELECTORS:
        for budget in (options.rows // 4, options.rows // 16):
            words = ["--one", name, "--rows", options.rows, "--columns", options.columns, "--budget", budget]
            command = [sys.executable, __file__, *map(str, words), "--seed", str(options.seed)]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            lines.append({**json.loads(run.stdout), **common})
            print({key: lines[-1][key] for key in ("selector", "budget", "seconds", "gb")}, flush=True)
    return lines


def one(name: str, rows: int, columns: int, budget: int, seed: int) -> dict[str, Any]:
    """Rows of a mixture: forty directions of very different frequency, and noise; norms differ by a factor of ten."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(40, columns, generator=generator)
    features = torch.empty(rows, columns).normal_(generator=generator)
    kinds = (40 * torch.rand(rows, generator=generator) ** 2).long()
    norms = torch.rand(rows, generator=generator) + 0.1
    for row in range(rows):  # in place: no memory is freed that a selector could then use unseen
        features[row].mul_(0.5).add_(centres[kinds[row]]).mul_(norms[row])
    losses, validation = torch.rand(rows, generator=generator), torch.randn(4, columns, generator=generator)
    select(features[:64], 8, selector=name, losses=losses[:64], validation=validation)
    before, started, clock = peak(), time.process_time(), time.perf_counter()
    chosen = select(features, budget, selector=name, losses=losses, validation=validation, seed=seed)
    seconds, elapsed = time.process_time() - started, time.perf_counter() - clock
    assert len(chosen) == budget
    found = {"selector": name, "rows": rows, "columns": columns, "budget": budget}
    return {**found, "seconds": seconds, "elapsed": elapsed, "gb": peak() - before}


def peak() -> float:
    """GB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def page(lines: Sequence[dict[str, Any]]) -> str:
    first = lines[0]
    budgets = sorted({line["budget"] for line in lines}, reverse=True)
    of = {(line["selector"], line["budget"]): line for line in lines}
    heads = ["selector", *(f"{what}, M = {m:,}" for m in budgets for what in ("s", "GB"))]
    rows = []
    for name in dict.fromkeys(line["selector"] for line in lines):
        each = [of[name, m] for m in budgets]
        rows.append([f"`{name}`", *(cell for a in each for cell in (f"{a['seconds']:.1f}", f"{a['gb']:.2f}"))])
    size = first["rows"] * first["columns"] * 4 / 1e9
    return f"""Seconds of processor time, and GB beyond the features in float32 ({size:.3f} GB),
at N = {first["rows"]:,}, P = {first["columns"]:,}.

{table(heads, rows)}

`python benchmarks/many_rows.py`; {origin(first)}."""


if __name__ == "__main__":
    main()

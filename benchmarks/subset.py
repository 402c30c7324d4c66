"""What choosing once from a million rows takes: `python benchmarks/subset.py` writes it into docs/methods/subset.md.

Synthetic rows: embeddings of 16 columns in forty clusters, a difficulty, losses by six states, and texts of 16 words of
which some repeat, read from files or made when asked for, as `corebatch subset` gives them. Every method and number of
rows in a process of its own, in one thread: seconds of processor time, and how much its peak of memory, pages of mapped
files included, exceeds that of the process with everything imported and compiled. A measurement that was interrupted
goes on where it was; `--table` writes the page from the lines.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before torch and numpy are imported

import numpy as np
import torch

from corebatch.subset import SUBSETS, Matrix, keep_rows, make_subset
from pages import ROOT, origin, provenance, table, write_between

PAGE, OUTPUT = ROOT / "docs" / "methods" / "subset.md", ROOT / "benchmarks" / "results" / "subset.jsonl"
COLUMNS, STATES, TARGET, KEEP = 16, 6, 200, 0.1
SMALL = 3_000
"""Rows on which a method is tried first, so that all is imported and compiled."""
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SUBSETS if name not in ("facility_location", "relevance", "near_duplicates")),
    ("facility_location", {}),
    ("relevance", {"by": "embedding"}),
    ("relevance", {"by": "words"}),
    ("near_duplicates", {"by": "text"}),
    ("near_duplicates", {"by": "embedding"}),
]


def main() -> None:
    options = parse()
    if options.one:
        print(json.dumps(one(options.one, json.loads(options.options), options.rows[0], options.data)))
        return
    if not options.table:
        measure(options)
    lines = read(options.output)
    write_between(options.page, "a million rows", page(lines))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[250_000, 500_000, 1_000_000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--one", help="measure this method in this process, and print it")
    parser.add_argument("--options", default="{}", help="of --one, as JSON")
    parser.add_argument("--data", type=Path, help="the folder of --one's files")
    return parser.parse_args()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def measure(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    common = provenance(options.seed)
    done = {(line["method"], json.dumps(line["options"]), line["rows"]) for line in read(options.output)}
    with tempfile.TemporaryDirectory() as folder:
        make_data(Path(folder), max(options.rows), options.seed)
        for name, own in VARIANTS:
            for rows in sorted(options.rows):
                if (name, json.dumps(own), rows) in done:
                    continue
                words = ["--one", name, "--options", json.dumps(own), "--rows", str(rows), "--data", folder]
                run = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
                if run.returncode:
                    raise SystemExit(run.stderr)
                line = {**json.loads(run.stdout), **common}
                with options.output.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                print({key: line[key] for key in ("method", "options", "rows", "seconds", "gb")}, flush=True)


def make_data(folder: Path, rows: int, seed: int) -> None:
    """Files of features, target, losses and scores."""
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randn(40, COLUMNS, generator=generator) * 2
    sizes = {"features": (rows, COLUMNS), "losses": (rows, STATES), "target": (TARGET, COLUMNS), "scores": (rows, 1)}
    for name, size in sizes.items():
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, size)
        for start in range(0, size[0], 100_000):
            count = min(100_000, size[0] - start)
            values = torch.randn(count, size[1], generator=generator)
            if name in ("features", "target"):
                kinds = 40 * torch.rand(count, generator=generator).square() * (0.3 if name == "target" else 1)
                values += centers[kinds.long()]
            array[start : start + count] = (values if name in ("features", "target") else values.exp()).numpy()
        array.flush()


class Texts(Sequence[str]):
    """So many texts of 16 words, made when they are asked for; every tenth repeats the one before it."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[each] for each in range(*row.indices(self.count))]
        if not -self.count <= row < self.count:
            raise IndexError(row)
        number = row % self.count
        number -= number % 10 == 9
        step = 40_503 * (number % 97 + 1)
        return " ".join(f"w{(number * 2_654_435_761 + place * step) % 20_011}" for place in range(16))


def one(name: str, options: dict[str, Any], rows: int, folder: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    chosen = make_subset(name, options)
    given = {
        key: value for key, value in (("texts", Texts), ("target_texts", lambda _: Texts(50))) if key in chosen.requires
    }

    def arguments(count: int) -> dict[str, Any]:
        found: dict[str, Any] = {key: make(count) for key, make in given.items()}
        for key in {"features", "losses", "target", "scores"} & chosen.requires:
            array = np.load(folder / f"{key}.npy", mmap_mode="r")[: TARGET if key == "target" else count]
            found[key] = torch.from_numpy(np.array(array[:, 0])) if key == "scores" else Matrix(array, key)
        return found

    keep_rows(SMALL, KEEP, chosen, **arguments(SMALL))
    own = arguments(rows)
    before, started, clock = peak(), time.process_time(), time.perf_counter()
    kept = keep_rows(rows, KEEP, chosen, **own)
    seconds, elapsed = time.process_time() - started, time.perf_counter() - clock
    line = {"method": name, "options": options, "rows": rows, "columns": COLUMNS, "kept": len(kept.rows)}
    return {**line, "seconds": round(seconds, 2), "elapsed": round(elapsed, 2), "gb": round(peak() - before, 3)}


def peak() -> float:
    """GB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def page(lines: Sequence[dict[str, Any]]) -> str:
    sizes = sorted({line["rows"] for line in lines})
    of = {(line["method"], json.dumps(line["options"]), line["rows"]): line for line in lines}
    heads = ["method", *(f"s, {rows:,} rows" for rows in sizes), "time grows with rows to the power", "GB at the most"]
    body = []
    for name, options in VARIANTS:
        found = [of.get((name, json.dumps(options), rows)) for rows in sizes]
        there = [line for line in found if line is not None]
        if not there:
            continue
        words = "".join(f", {value}" for value in options.values())
        cells = ["" if line is None else f"{line['seconds']:.1f}" for line in found]
        first, last = there[0], there[-1]
        clear = len(there) > 1 and first["seconds"] >= 0.5  # below that, starting takes most of it
        power = math.log(last["seconds"] / first["seconds"]) / math.log(last["rows"] / first["rows"]) if clear else None
        grows = "" if power is None else f"{power:.2f}"
        body.append([f"`{name}`{words}", *cells, grows, f"{max(line['gb'] for line in there):.2f}"])
    return f"""Seconds of processor time to keep {KEEP:g} of the rows, by features of {COLUMNS} columns, {STATES} states
and texts of 16 words; scoring by a model comes on top. GB beyond the process with everything imported; mapped files
count.

{table(heads, body)}

`python benchmarks/subset.py`; {origin(lines[0])}."""


if __name__ == "__main__":
    main()

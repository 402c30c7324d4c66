"""What choosing costs: `python benchmarks/selection.py` times it, `--table` prints the last run as tables.

Two kinds of arms, all of one size interleaved in an order that changes from repeat to repeat, so that whatever else
the machine does falls on all alike:

- selectors, from features to a `Selection`, with one source and with 16 (for selectors that choose per source, 16
  smaller problems), at the first two sizes;
- facility location in two parts: l1 distances from features, and the exact lazy greedy given similarities, beside
  that of submodlib-py and apricot-select where they can be imported. submodlib's object is made beforehand; apricot's
  is made and compiled within each call. `objective` is the value reached, which should be the same for all.

Each line of the output is one JSON object: an arm at a size, the median of its repeats in seconds, the least and the
greatest. An arm that takes long gets fewer repeats. Everything runs in one thread.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before torch and numpy are imported

import torch
from torch import Tensor

from corebatch import select
from corebatch.record.provenance import commit_of_corebatch, versions
from corebatch.selectors import SELECTORS, make_selector, select_from_similarities
from corebatch.selectors.kernels.distances import distances

ROOT = Path(__file__).resolve().parents[1]
SIZES = [(128, 64, 4096), (1024, 512, 4096), (2048, 1024, 4096), (10_000, 1000, 256)]  # N, M, P
THREADS = 1
QUICK = [(128, 64, 512)]
SELECTORS_UP_TO = 1024  # rows
SOURCES = 16
LONG = 20.0  # seconds: no arm gets another repeat after so many at one size
OTHERS = {"submodlib": "submodlib-py", "apricot": "apricot-select"}

Arm = Callable[[], Any]


def main() -> None:
    options = parse()
    if options.table:
        print(tables([json.loads(line) for line in options.output.read_text(encoding="utf-8").splitlines()]))
        return
    torch.set_num_threads(THREADS)
    modules = {name: found for name in OTHERS if (found := imported(name)) is not None}
    lines: list[dict[str, Any]] = []
    common = {
        "benchmark": "selection",
        "seed": options.seed,
        "threads": THREADS,
        "date": time.strftime("%Y-%m-%d"),
        **commit(),
        "hardware": hardware(),
        "versions": {**versions(), **others()},
    }
    for count, budget, columns in QUICK if options.quick else SIZES:
        for line in measured(count, budget, columns, modules, options):
            lines.append({**line, "n": count, "k": budget, "features": columns, **common})
            print(
                f"{count:6} x {budget:<5} {line['what']:30} {line['by']:10} "
                f"{1e3 * line['seconds']:10.3f} ms "
                f"({1e3 * line['seconds_min']:.3f} to {1e3 * line['seconds_max']:.3f})",
                flush=True,
            )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small size and few repeats: does it run?")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "selection.jsonl")
    parser.add_argument("--table", action="store_true", help="print what --output holds, as Markdown; time nothing")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.quick:
        options.repeats = min(options.repeats, 3)
    return options


def imported(name: str) -> Any:
    """The module, or None and a message."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # a wheel built for another numpy fails in its own ways
        print(f"{OTHERS[name]} is left out: {type(error).__name__}: {error}")
        return None


def measured(
    count: int, budget: int, columns: int, modules: dict[str, Any], options: argparse.Namespace
) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(options.seed)
    norms = torch.rand(count, 1, generator=generator) + 0.1
    features = torch.randn(count, columns, generator=generator) * norms
    arms: dict[tuple[str, str], Arm] = {}
    if count <= SELECTORS_UP_TO:
        arms.update(selector_arms(features, budget, generator))
    arms["distances l1", "corebatch"] = lambda: distances(features.double(), "l1")
    similarities = distances(features.double(), "l1")
    similarities.neg_().add_(-similarities.min())
    greedy = greedy_arms(similarities, budget, modules)
    objectives = {by: objective(similarities, arm()) for by, arm in greedy.items()}  # also the first, slow call
    arms.update({("greedy, given similarities", by): arm for by, arm in greedy.items()})
    return [
        {
            "what": what,
            "by": by,
            "seconds": statistics.median(found),
            "seconds_min": min(found),
            "seconds_max": max(found),
            "repeats": len(found),
            **({"objective": objectives[by]} if (what, by) in arms and what.startswith("greedy") else {}),
        }
        for (what, by), found in timed(arms, options).items()
    ]


def selector_arms(features: Tensor, budget: int, generator: torch.Generator) -> dict[tuple[str, str], Arm]:
    count, columns = features.shape
    given = {
        "losses": torch.rand(count, generator=generator),
        "validation": torch.randn(4, columns, generator=generator),
    }
    sources = torch.randint(SOURCES, (count,), generator=generator)

    def arm(name: str, ids: Tensor | None) -> Arm:
        selector = make_selector(name)
        return lambda: select(features, budget, ids, selector, **given)

    arms: dict[tuple[str, str], Arm] = {}
    for name in SELECTORS:
        arms[name, "corebatch"] = arm(name, None)
        arms[f"{name}, {SOURCES} sources", "corebatch"] = arm(name, sources)
    return arms


def greedy_arms(similarities: Tensor, budget: int, modules: dict[str, Any]) -> dict[str, Arm]:
    """Each returns the rows chosen."""
    arms: dict[str, Arm] = {"corebatch": lambda: select_from_similarities(similarities, budget).indices.tolist()}
    if "submodlib" in modules:
        function = modules["submodlib"].FacilityLocationFunction(
            n=len(similarities), mode="dense", sijs=similarities.numpy(), separate_rep=False
        )
        arms["submodlib"] = lambda: [
            row for row, _ in function.maximize(budget=budget, optimizer="LazyGreedy", show_progress=False)
        ]
    if "apricot" in modules:
        matrix = similarities.double().numpy()  # it compiles for float64 alone
        arms["apricot"] = lambda: (
            modules["apricot"]
            .FacilityLocationSelection(budget, metric="precomputed", optimizer="lazy")
            .fit(matrix)
            .ranking.tolist()
        )
    return arms


def objective(similarities: Tensor, rows: list[int]) -> float:
    return float(similarities[rows].amax(dim=0).double().sum())


def timed(arms: dict[tuple[str, str], Arm], options: argparse.Namespace) -> dict[tuple[str, str], list[float]]:
    """Seconds of each repeat of each arm."""
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in arms}
    for key, arm in arms.items():
        if not key[0].startswith("greedy"):
            arm()  # kernels, allocator
    order, shuffle = list(arms), random.Random(options.seed)
    for _ in range(options.repeats):
        shuffle.shuffle(order)
        for key in order:
            if sum(seconds[key]) < LONG:
                start = time.perf_counter()
                arms[key]()
                seconds[key].append(time.perf_counter() - start)
    return seconds


def tables(lines: list[dict[str, Any]]) -> str:
    """Markdown: selectors by size, with one source and 16; then facility location's parts, side by side."""
    first = lines[0]
    cell = {(line["what"], line["by"], line["n"]): line for line in lines}
    sizes = list(dict.fromkeys((line["n"], line["k"], line["features"]) for line in lines))
    small = [size for size in sizes if size[0] <= SELECTORS_UP_TO]

    def show(what: str, by: str, count: int) -> str:
        line = cell.get((what, by, count))
        if line is None:
            return "-"
        return f"{1e3 * line['seconds']:.3g} ({1e3 * line['seconds_min']:.3g} to {1e3 * line['seconds_max']:.3g})"

    heads = [f"{n:,} x {k:,}{more}" for n, k, _ in small for more in ("", f", {SOURCES} sources")]
    out = [
        f"Milliseconds, median (least to greatest); {first['hardware']['cpu']}, {first['threads']} thread(s), torch "
        f"{first['versions']['torch']}, commit {first['commit'][:10]}{' with changes' if first['dirty'] else ''}, "
        f"{first['date']}.",
        "",
        "| selector | " + " | ".join(heads) + " |",
        "|---" * (1 + len(heads)) + "|",
    ]
    whats = dict.fromkeys(line["what"] for line in lines)
    for name in (what for what in SELECTORS if what in whats):
        cells = [show(name + more, "corebatch", n) for n, _, _ in small for more in ("", f", {SOURCES} sources")]
        out.append(f"| `{name}` | " + " | ".join(cells) + " |")
    out += ["", "| facility location | " + " | ".join(f"{n:,} x {k:,}" for n, k, _ in sizes) + " |"]
    out.append("|---" * (1 + len(sizes)) + "|")
    parts = dict.fromkeys((line["what"], line["by"]) for line in lines if line["what"] not in SELECTORS)
    for what, by in sorted(part for part in parts if not part[0].endswith("sources")):
        out.append(f"| {what}, {by} | " + " | ".join(show(what, by, n) for n, _, _ in sizes) + " |")
    return "\n".join(out)


def commit() -> dict[str, Any]:
    """The commit, and whether tracked files differ from it."""
    code = commit_of_corebatch() or "unknown"
    return {"commit": code.rstrip("+?"), "dirty": code.endswith("+")}


def hardware() -> dict[str, Any]:
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    cpu = names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()
    return {"cpu": cpu, "cores": len(names) or None, "system": platform.system()}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []


def others() -> dict[str, str]:
    """Versions of what is compared with, and of what choosing is compiled by."""
    packages = {"numba": "numba", **OTHERS}
    return {name: metadata.version(name) for module, name in packages.items() if importlib.util.find_spec(module)}


if __name__ == "__main__":
    main()

"""What error feedback owes to each of its parts: `python benchmarks/feedback.py` measures it and writes a table of
docs/methods/selectors.md.

The share that is carried (rho), the sample from which swaps start, and the age of features and the share of rows that
have any, on the small Llama after 200 AdamW steps, by windows as benchmarks/windows.py has them. `--table` writes the
page from the lines that are there; `--quick` runs tiny sizes, to see that it runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch

from corebatch.bench.gradients.lines import longest
from pages import ROOT, table, write_between, write_lines
from tables import extremes, source
from windows import SETTINGS, measured, setting

OUTPUT, PAGE = ROOT / "benchmarks" / "results" / "feedback.jsonl", ROOT / "docs" / "methods" / "selectors.md"
MODEL = "small Llama"


def method(name: str, *, start: str = "cube", rho: float | None = 0.99, scoring: str = "full") -> str:
    options = f"scorer_options: {{num_blocks: 3}}, selector: balanced, selector_options: {{start: {start}}}"
    return f"{name}={{{options}, feedback: {'none' if rho is None else rho}, scoring: {scoring}}}"


METHODS = (
    method("nothing carried, start systematic", start="systematic", rho=None),
    method("nothing carried, start cube", rho=None),
    *(method(f"rho {rho}", rho=rho) for rho in (0, 0.5, 0.9, 0.97, 0.99, 0.999)),
    method("rho 0.99, start systematic", start="systematic"),
    *(
        method(f"rho 0.99, features {age} steps old", scoring=f"{{way: remembered, age: {age}}}")
        for age in (10, 50, 100, 200)
    ),
    *(
        method(f"rho 0.99, {share:.0%} of rows known", scoring=f"{{way: remembered, age: 50, known: {share}}}")
        for share in (0.75, 0.5, 0.25)
    ),
)  # fmt: skip


def page(lines: Sequence[dict[str, Any]]) -> str:
    here = [line for line in lines if line["objective"] == "tokens"]
    budgets, last = sorted({line["budget"] for line in here}, reverse=True), longest(here[0])
    found = {(line["method"], line["budget"]): line for line in here}
    rows = []
    for name in dict.fromkeys(line["method"] for line in here):
        each = [found[name, budget] for budget in budgets]
        cells = [" / ".join(f"{line['windows'][n]['effective']:.2f}" for n in ("1", "10", last)) for line in each]
        weights = extremes(each[-1]["weights"]["sources"].values(), each[-1]["weights"]["sources_noise"])
        rows.append([name, *cells, f"{100 * each[-1]['bias_given_pool']:.1f} %", weights])
    heads = ["`balanced`", *(f"{budget} of {here[0]['large']}: 1 / 10 / {last} steps" for budget in budgets)]
    heads += ["bias given the pool", "weights of sources"]
    return f"""Effective batch as in the [table above](#over-many-steps), `balanced` alone. Exact features of three
blocks, or as old as it says; where not all rows have any, they are 50 steps old, and the others are drawn by their
tokens. Objective `tokens`; {setting(here[0])}.

{table(heads, rows)}

`python benchmarks/feedback.py`; seed {here[0]["seed"]}; {source(here)}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "small-llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--draws", type=int, default=1600, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.methods = METHODS
    if options.table:
        lines = [json.loads(line) for line in options.output.read_text(encoding="utf-8").splitlines()]
    else:
        torch.set_num_threads(1)
        SETTINGS[MODEL]["sizes"]["budgets"] = (32, 16)
        lines = measured(MODEL, options)
    if options.quick:
        print(page(lines))
        return
    write_lines(options.output, lines)
    write_between(PAGE, "parts of feedback", page(lines))


if __name__ == "__main__":
    main()

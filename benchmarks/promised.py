"""Do the factors "to the same loss" that `corebatch advise` expects come true in training? Writes a table of
docs/running/advise.md.

    python benchmarks/small_llama.py --vocabulary 2048 --hidden 128 --blocks 4 --data DATA --output TINY
    python benchmarks/promised.py run --model TINY --data DATA --output FOLDER
    python benchmarks/promised.py page

`run` asks for advice for the plain config of benchmarks/advised.py on the mixture of questions in mathematics, and
trains every lever whose factor is one "to the same loss", alone, at the wall-clock of the config that came in
(`corebatch compare`, one rate for all, not tuned). The comparison reads the advice before its first run. A FOLDER that
is there goes on where it was. `page` writes the table from `benchmarks/results/compare-promised`. One thread.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import yaml

from advised import CONFIG, advised, corebatch, spread
from claims import shares_of_seconds
from corebatch.bench.advise.advice import advice_folder, read_advice
from corebatch.bench.runs import read_comparison
from corebatch.bench.runs.kept_promises import CLOSE
from corebatch.config.settings import settings_from
from corebatch.errors import CorebatchError
from following import RESULTS, take
from pages import ROOT, table, write_between

PAGE, LINES = ROOT / "docs" / "running" / "advise.md", RESULTS / "compare-promised"
OF = "seconds to the same loss"
COMPARE: dict[str, Any] = {
    "arms": [], "tune": {"enabled": False}, "evaluations": 10, "curve_rows": 96, "final_rows": 192, "timing_pools": 4,
    "timing_rounds": 3, "processes": 1, "threads": 1,
}  # fmt: skip


def arms_of(before: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """An arm for every lever that is about the seconds to a loss and says what to set."""
    arms: dict[str, dict[str, Any]] = {}
    for one in read_advice(advice_folder(before["output_dir"])).findings:
        if one.of != OF or one.factor is None or not one.arm:
            continue
        own = {key.partition(".")[2]: value for key, value in one.arm.items() if key.startswith("coreset.")}
        training = {key: value for key, value in one.arm.items() if not key.startswith("coreset.")}
        coreset = {**CONFIG["coreset"], **own}
        try:
            settings_from({**before, **training, "coreset": coreset}, one.lever)
        except CorebatchError as error:  # said, and left out
            print(f"{one.lever}: {error}", flush=True)
            continue
        name = f"lever_{len(arms) + 1}"
        arms[name] = {"title": one.lever, "coreset": coreset, "training": training, "baseline": True}
    return arms


def run(args: argparse.Namespace) -> None:
    folder = args.output.resolve() / "mathmix"
    before, _ = advised(folder, "mathmix", args)
    block = {**COMPARE, "seeds": args.seeds, "extra_arms": arms_of(before)}
    block["advice"] = str(advice_folder(before["output_dir"]))
    values = {**before, "max_steps": args.steps, "output_dir": str(folder / "promised"), "compare": block}
    path = folder / "promised.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    corebatch("compare", path)
    take(folder / "promised", LINES)


def interval(mean: float, low: float | None, high: float | None) -> str:
    return f"{mean:.2f}" if low is None or high is None else f"{mean:.2f} ({low:.2f} to {high:.2f})"


def page() -> str:
    comparison = read_comparison(LINES)
    plan, titles = comparison.plan, {arm.name: arm.title for arm in comparison.plan.arms}
    rows, signs, close = [], [], []
    for one in (promise for promise in plan.promises if promise.of == OF):
        mean, low, high, p = spread(shares_of_seconds(comparison, one.arm, one.against))
        open_ = one.low is None or one.high is None or one.low <= 1 <= one.high
        signs += [] if open_ else [(mean < 1) == (one.factor < 1)]
        close.append(abs(math.log(mean / one.factor)) <= math.log(CLOSE))
        sign = "open" if open_ else "yes" if signs[-1] else "**no**"
        name = titles.get(one.arm, one.arm)
        rows.append([name, interval(one.factor, one.low, one.high), interval(mean, low, high), f"{p:.2g}", sign])
    runs = json.loads((LINES / "plan.json").read_text(encoding="utf-8"))
    seeds = sorted({run.seed for run in comparison.runs})
    hardware, versions = runs["hardware"], runs["versions"]
    text = (
        f"Of {len(signs)} whose expected interval leaves out 1, {sum(signs)} have the right sign; of {len(close)} "
        f"levers, {sum(close)} came within a factor of {CLOSE:g} of what was expected. Geometric means over "
        f"{len(seeds)} seeds of the seconds to the higher of the two last losses, 95 % intervals, p of a two-sided "
        "t-test that the factor is 1, not corrected; *expected* with the interval of the advice. "
        "`python benchmarks/promised.py`; a "
        f"Llama of 1 M parameters, mathmix, plain batches of 16 rows, {runs['steps']} steps, one rate; seeds "
        f"{seeds[0]} to {seeds[-1]}; {hardware['machine']}, {hardware['cpu_cores']} cores, one thread, no GPU; torch "
        f"{versions['torch']}, transformers {versions['transformers']}; {runs['time'][:10]}, "
        f"commit {runs['commit'][:10]}."
    )
    return f"{table(['lever', 'expected', 'measured', 'p', 'right sign'], rows)}\n\n{text}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "tiny-llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--output", type=Path, default=Path("runs") / "promised")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=100, help="of the config that came in")
    parser.add_argument("--minutes", type=float, default=4.0, help="of the advice")
    args = parser.parse_args()
    if args.what == "run":
        run(args)
    write_between(PAGE, "promised", page())


if __name__ == "__main__":
    main()

"""Does choosing rows pay where `corebatch advise` says so, and not where it says that it cannot? Writes a table of
docs/evidence/noise_binds.md.

    python benchmarks/small_llama.py --vocabulary 2048 --hidden 128 --blocks 4 --data DATA --output TINY
    python benchmarks/small_llama.py --vocabulary 2048 --hidden 128 --blocks 4 --steps 0 --data DATA --output UNTRAINED
    python benchmarks/advised_choice.py run --tiny TINY --untrained UNTRAINED --data DATA --output FOLDER
    python benchmarks/advised_choice.py page

`run` asks for advice for the plain config of each comparison of the page, on its model and its rows, with one thread.
`page` sets it beside what the comparison's lines show: the default choice against a plain batch of as many rows, at
equal steps.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import yaml

import compare
from advised import corebatch
from claims import Study, metric_of, paired, read, tested
from corebatch.bench.advise.advice import advice_folder, read_advice
from corebatch.bench.runs import PlannedArm
from corebatch.bench.runs import format as words
from corebatch.bench.runs.statistics import PairedTest
from pages import ROOT, provenance, table, write_between, write_lines

LINES = ROOT / "benchmarks" / "results" / "advised_choice.jsonl"
PAGE = ROOT / "docs" / "evidence" / "noise_binds.md"
CHOICE = "choice of rows: by label counts, errors carried"
"""The lever of advice that is the default choice, 1 row in 4."""
SETTINGS = {"passes": ("tiny", 1200), "wide": ("tiny", 4000), "above": ("untrained", 3900)}
"""By study: its model, and how many rows of the train split it has."""
PLAIN = ("plain_small", "plain_sorted")
"""Plain batches of as many rows as the reference trains."""


def advice_for(study: str, args: argparse.Namespace) -> dict[str, Any]:
    """A line: what advice says of noise and of the default choice."""
    model, rows = SETTINGS[study]
    folder = args.output / study
    folder.mkdir(parents=True, exist_ok=True)
    settings = ROOT / "benchmarks" / f"compare_{study}.yaml"
    values = compare.mathmix(folder, settings, args.data, getattr(args, model), rows)
    values = {key: value for key, value in values.items() if key != "compare"}
    values |= {"coreset": {"pool_factor": 1}, "output_dir": str(folder / "run"), "use_cpu": True}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    if not (advice_folder(values["output_dir"]) / "advice.json").is_file():
        corebatch("advise", path, "--minutes", args.minutes)
    advice = read_advice(advice_folder(values["output_dir"]))
    found = {one.lever: one for one in advice.findings}
    noise, choice = found["gradient noise"].numbers, found[CHOICE]
    return {
        "study": study,
        "rows_of_a_step": noise["batch"],
        "noise_scale": [noise[key] for key in ("noise_scale", "noise_scale_low", "noise_scale_high")],
        "in_adams_metric": [noise["adam"][key] for key in ("scale", "low", "high")],
        "verdict": noise["verdict"],
        "expected": [choice.factor, choice.low, choice.high],
        "unmeasured": choice.unmeasured,
        **provenance(int(values.get("seed", 42))),
    }


def between(values: Sequence[float | None]) -> str:
    """38.1 (28.7 to 53)"""
    value, low, high = ("no end" if each is None else f"{each:.3g}" for each in values)
    return f"{value} ({low} to {high})"


def in_training(study: str) -> tuple[PlannedArm, PairedTest] | None:
    """The reference of a study, and its test against the plain batch; None without lines."""
    own = Study(name=study)
    comparison = read(own)
    if comparison is None:
        return None
    arm = tested(comparison, own)
    tests = paired(comparison, arm, metric_of(comparison, own))
    return arm, next(test for test in tests if test.baseline.partition("@")[0] in PLAIN)


def row_of(line: dict[str, Any]) -> list[str] | None:
    """Of the table; None where the study has no lines."""
    found = in_training(line["study"])
    if found is None:
        return None
    arm, test = found
    pays = "cannot help" not in line["verdict"]
    shown = test.verdict == "better"
    apart = words.difference(test.metric, test.difference or 0.0)
    ends = "" if test.low is None else f" ({words.interval(test)})"
    return [
        f"{arm.rows_trained_per_step} of {arm.rows_drawn_per_step}, `compare_{line['study']}.yaml`",
        between(line["noise_scale"]),
        between(line["in_adams_metric"]),
        "noise limits a step" if pays else "selection cannot help",
        between(line["expected"]),
        f"{apart}{ends}: {test.verdict}",
        "yes" if pays == shown else "no",
    ]


def page() -> None:
    """Writes the table."""
    lines = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in map(row_of, lines) if row is not None]
    heads = ["rows of a step", "noise scale, rows", "in Adam's metric", "advice says", "expects of 1 row in 4"]
    heads += ["token mean less plain's, in training", "sign as advised"]
    made = lines[0]
    code = ", ".join(sorted({line["commit"] for line in lines}))
    write_between(
        PAGE,
        "advised",
        f"{table(heads, rows)}\n\n"
        "The noise scale and the factor of seconds to the same loss (with intervals) are those of `corebatch advise` "
        "for the plain config, before any run; the difference is that of final held-out losses at equal steps, with "
        f"its 95 % interval, and after Holm's correction better, worse, or no difference shown. {made['hardware']}; "
        f"{made['versions']}; {made['date']}, commit {code}.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--tiny", type=Path, help="of benchmarks/small_llama.py")
    parser.add_argument("--untrained", type=Path, help="the same without a step")
    parser.add_argument("--data", type=Path, help="mathmix")
    parser.add_argument("--output", type=Path, help="a folder for advice")
    parser.add_argument("--minutes", type=float, default=5.0, help="for each")
    args = parser.parse_args()
    if args.what == "run":
        if None in (args.tiny, args.untrained, args.data, args.output):
            parser.error("run: expected --tiny, --untrained, --data and --output")
        write_lines(LINES, [advice_for(study, args) for study in SETTINGS])
    page()


if __name__ == "__main__":
    main()

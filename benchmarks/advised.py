"""Is the config that `corebatch advise` recommends faster than the one that came in? Writes a table of
docs/running/advise.md.

    python benchmarks/small_llama.py --vocabulary 2048 --hidden 128 --blocks 4 --data DATA --output TINY
    python benchmarks/advised.py run --model TINY --data DATA --output FOLDER
    python benchmarks/advised.py page

`run` writes a config as somebody may have it for each of three mixtures, asks for advice, and trains what came in and
what is recommended at equal wall-clock (`corebatch compare`, one rate, not tuned), seed by seed. A mixture that is in
FOLDER already goes on where it was. `page` writes the table from `benchmarks/results/advised.jsonl`. The loss that both
have to reach is the highest last one of any run of the mixture, on the same held-out rows; seconds are those of
training alone. One thread; 25 minutes on a quiet core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import yaml
from scipy.stats import t, ttest_1samp

from corebatch.bench.advise.advice import RECOMMENDED, advice_folder, read_advice
from corebatch.bench.runs import read_comparison
from corebatch.bench.runs.statistics import first_reached, holm
from pages import ROOT, origin, provenance, table, write_between, write_lines

OUTPUT, PAGE = ROOT / "benchmarks" / "results" / "advised.jsonl", ROOT / "docs" / "running" / "advise.md"
BEFORE, AFTER = "coreset", "advised"  # what a comparison calls the config itself, and the arm that is recommended
CONFIG: Mapping[str, Any] = {
    "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2, "learning_rate": 1e-3,
    "lr_scheduler_type": "constant_with_warmup", "warmup_steps": 5, "weight_decay": 0.0, "use_cpu": True,
    "coreset": {"pool_factor": 1},
}  # fmt: skip
"""What all configs have: the plain Trainer."""
COMPARE = {
    "arms": [], "tune": {"enabled": False}, "evaluations": 8, "curve_rows": 96, "final_rows": 192, "timing_pools": 4,
    "timing_rounds": 3, "processes": 1, "threads": 1,
}  # fmt: skip
WIDTH = 64
"""Tokens of each row of the mixture `fixed`."""


def reasoning(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Seven tasks of reasoning-gym of which answers alone are trained: 3,220 short rows."""
    from learnt import reasoning as tasks

    for name, rows in zip(("train", "held_out"), tasks(), strict=True):
        write_lines(folder / f"{name}.jsonl", rows)
    return {"max_steps": 60, "max_length": 192}


def mathmix(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Nine sources of questions in mathematics, of very different lengths."""
    for name, of in (("train", "train"), ("held_out", "test")):
        (folder / f"{name}.jsonl").write_bytes((args.data / f"{of}.jsonl").read_bytes())
    return {"max_steps": 40, "max_length": 192}


def fixed(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """The same texts one after the other, cut into rows of WIDTH tokens: nothing is padded."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    for name, of, most in (("train", "train", 4000), ("held_out", "test", 400)):
        lines = map(json.loads, (args.data / f"{of}.jsonl").read_text(encoding="utf-8").splitlines())
        texts = [line["prompt"] + "\n" + line["completion"] for line in lines]
        ids = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
        rows = [ids[start : start + WIDTH] for start in range(0, len(ids) - WIDTH + 1, WIDTH)][:most]
        write_lines(folder / f"{name}.jsonl", [{"input_ids": row, "labels": row} for row in rows])
    return {"max_steps": 40}


MIXTURES: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "reasoning": reasoning,
    "mathmix": mathmix,
    "fixed": fixed,
}


def corebatch(*words: object) -> None:
    """A command of the CLI; an error ends the script."""
    command = [sys.executable, "-m", "corebatch.cli.main", *map(str, words)]
    print("+ corebatch", *map(str, words), flush=True)
    subprocess.run(command, check=True)


def advised(folder: Path, name: str, args: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config that came in, and the one that is recommended."""
    path = folder / "config.yaml"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        files = {"datasets": [{"path": str(folder / "train.jsonl")}]}
        files["eval_datasets"] = [{"path": str(folder / "held_out.jsonl")}]
        own = {"model_name_or_path": str(args.model), **files, "output_dir": str(folder / "run")}
        values = {**own, **CONFIG, **MIXTURES[name](folder, args)}
        path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    found = advice_folder(values["output_dir"]) / RECOMMENDED
    if not found.is_file():
        corebatch("advise", path, "--minutes", args.minutes)
    return values, yaml.safe_load(found.read_text(encoding="utf-8"))


def compared(folder: Path, before: dict[str, Any], after: dict[str, Any], args: argparse.Namespace) -> Path:
    """The folder of the comparison, which is run or goes on."""
    changed = {key: value for key, value in after.items() if value != before.get(key) and key != "coreset"}
    arm = {"title": "as advised", "coreset": after["coreset"], "training": changed, "baseline": True}
    block = {**COMPARE, "seeds": args.seeds, "extra_arms": {AFTER: arm}}
    values = {**before, "output_dir": str(folder / "comparison"), "compare": block}
    if args.steps:
        values["max_steps"] = args.steps
    path = folder / "compare.yaml"
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    corebatch("compare", path)
    return folder / "comparison"


def lines_of(name: str, folder: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A line for each run, or one that says that nothing is recommended."""
    before, after = advised(folder, name, args)
    advice = read_advice(advice_folder(before["output_dir"]))
    taken = [one for one in advice.findings if one.lever in advice.about["recommended"]]
    told = {
        "mixture": name,
        "set": {key: value for one in taken for key, value in one.arm.items()},
        "expected": [{key: getattr(one, key) for key in ("lever", "of", "factor", "low", "high")} for one in taken],
        "seconds_of_advice": advice.about["seconds"]["all"],
        **provenance(int(before.get("seed", 42))),
    }
    if not taken:
        return [told]
    comparison = read_comparison(compared(folder, before, after, args))
    left_out = len(comparison.runs) - len(comparison.comparable)
    return [
        {
            **told, "seed": seed, "arm": arm, "steps": run.steps, "seconds": run.seconds, "left_out": left_out,
            "curve": [[point.spent["seconds"], point.losses["token"]] for point in run.curve],
            "final": dict(run.final.losses),
        }
        for arm in (BEFORE, AFTER)
        for seed, run in comparison.of(f"{arm}@wall_clock").items()
        if run.final is not None
    ]  # fmt: skip


# ---- the page --------------------------------------------------------------------------------------------------------


def factors(lines: Sequence[Mapping[str, Any]]) -> tuple[float, list[float]]:
    """The loss that both have to reach, and by seed the seconds as advised over those of what came in."""
    goal = max(line["curve"][-1][1] for line in lines)
    spent = {(line["arm"], line["seed"]): first_reached(*zip(*line["curve"], strict=True), goal) for line in lines}
    seeds = [seed for arm, seed in spent if arm == AFTER and (BEFORE, seed) in spent]
    return goal, [spent[AFTER, seed] / spent[BEFORE, seed] for seed in seeds]  # type: ignore[operator]


def spread(values: Sequence[float]) -> tuple[float, float, float, float]:
    """Geometric mean, its 95 % interval, and p that it is 1."""
    logs = [math.log(value) for value in values]
    mean = statistics.mean(logs)
    if len(logs) < 2:
        return math.exp(mean), math.nan, math.nan, math.nan
    half = float(t.ppf(0.975, len(logs) - 1)) * statistics.stdev(logs) / len(logs) ** 0.5
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half), float(ttest_1samp(logs, 0.0).pvalue)


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """The table, the verdict in a sentence, and where it comes from."""
    tested = {}
    for name in MIXTURES:
        own = [line for line in lines if line["mixture"] == name and "arm" in line]
        if own:
            tested[name] = (own, *factors(own))
    found = {name: spread(each[2]) for name, each in tested.items()}
    corrected = dict(zip(found, holm([one[3] for one in found.values()]), strict=True))
    rows = []
    for name in MIXTURES:
        told = next((line for line in lines if line["mixture"] == name), None)
        if told is None:
            continue
        keys = ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in told["set"].items())
        cells = ["nothing", "", "", "", ""]
        if name in tested:
            own, goal, _ = tested[name]
            mean, low, high, p = found[name]
            finals = [
                statistics.mean(line["final"]["token"] for line in own if line["arm"] == arm) for arm in (BEFORE, AFTER)
            ]
            cells = [
                keys, "; ".join(f"{one['lever']}: {_factor(one)} of {one['of']}" for one in told["expected"]),
                f"**{mean:.2f}** ({low:.2f} to {high:.2f}) to {goal:.3f}", f"{p:.2g} ({corrected[name]:.2g})",
                f"{finals[0]:.3f}, {finals[1]:.3f}",
            ]  # fmt: skip
        rows.append([name, *cells])
    heads = ["mixture", "recommended", "expected", "seconds to a loss, of the config's", "p (Holm)", "last token means"]
    slower = [name for name, one in found.items() if one[0] > 1 and corrected[name] < 0.05]
    faster = [name for name, one in found.items() if one[0] < 1 and corrected[name] < 0.05]
    seeds = sorted({line["seed"] for line in lines if "arm" in line})
    left_out = sum({name: own[0]["left_out"] for name, (own, *_) in tested.items()}.values())
    took = {line["mixture"]: f"{line['seconds_of_advice']:.0f}" for line in lines}
    told = (
        f"Surely faster (p < 0.05 after Holm): {', '.join(faster) or 'none'}; surely slower: "
        f"{', '.join(slower) or 'none'}. Geometric means over {len(seeds)} seeds, 95 % intervals, two-sided t-tests of "
        f"the logarithms; {left_out} runs are left out. Advice took {', '.join(took.values())} s. "
        "`python benchmarks/advised.py`; a Llama of 1 M parameters, plain batches of 16 rows; "
        f"{origin({**lines[-1], 'seed': ', '.join(map(str, seeds)) or '42'})}."
    )
    return f"{table(heads, rows)}\n\n{told}"


def _factor(one: Mapping[str, Any]) -> str:
    factor = "-" if one["factor"] is None else f"{one['factor']:.2f}"
    return factor if one["low"] is None or one["high"] is None else f"{factor} ({one['low']:.2f} to {one['high']:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "page"))
    parser.add_argument("--mixtures", nargs="+", choices=list(MIXTURES), default=list(MIXTURES))
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "tiny-llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--output", type=Path, default=Path("runs") / "advised")
    parser.add_argument("--lines", type=Path, default=OUTPUT)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--steps", type=int, help="of the config that came in, to see that it runs")
    parser.add_argument("--minutes", type=float, default=2.0, help="of the advice for each mixture")
    args = parser.parse_args()
    if args.what == "run":
        known = [json.loads(line) for line in args.lines.read_text().splitlines()] if args.lines.is_file() else []
        for name in args.mixtures:
            found = lines_of(name, (args.output / name).resolve(), args)
            known = [line for line in known if line["mixture"] != name] + found
            write_lines(args.lines, known)
        print(page(known))
        return
    write_between(PAGE, "advised", page([json.loads(line) for line in args.lines.read_text().splitlines()]))


if __name__ == "__main__":
    main()

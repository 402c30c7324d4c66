"""What a batch that grows is worth at the same rows: writes a table of docs/methods/budget.md.

    python benchmarks/budget.py tune; python benchmarks/budget.py train; python benchmarks/budget.py page

The model and the reasoning tasks of benchmarks/learnt.py. Every arm draws the rows of STEPS steps of ROWS; arms differ
in how many rows a step has. Each has its best rate out of RATES, by the token mean on half of the held-out rows, with a
seed of its own; the other half is what is reported. Lines that are there are not measured again. One thread; a run
takes a quarter of a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from datasets import Dataset
from scipy.stats import ttest_rel
from transformers import LlamaForCausalLM, TrainingArguments, set_seed

from corebatch.bench.runs.statistics import holm
from corebatch.trainer import CoresetConfig, CoresetTrainer
from learnt import data, measured, spread
from pages import ROOT, origin, provenance, table, write_between
from small_llama import configuration

OUTPUT, PAGE = ROOT / "benchmarks" / "results" / "budget.jsonl", ROOT / "docs" / "methods" / "budget.md"
STEPS, MICRO, ROWS, HIDDEN, RATES, TUNED = 400, 4, 8, 64, (2e-3, 4e-3, 8e-3), 100
ARMS: dict[str, tuple[int, Any]] = {
    "constant": (1, "constant"),
    "constant, 4 times": (4, "constant"),
    "ramp": (1, {"ramp": {"most": 8, "until": 0.75}}),
    "noise, sqrt": (1, {"noise": {"learning_rate": "sqrt"}}),
    "adadagrad": (1, {"adadagrad": {}}),
}
"""By name: rows of a step over ROWS, and `coreset.budget`."""
MEANS = ("token", "example", "source")


def trained(arm: str, rate: float, seed: int, steps: int) -> dict[str, Any]:
    """One run as a line."""
    times, budget = ARMS[arm]
    tokenizer, collator, rows, held = data("reasoning")
    set_seed(seed)
    model = LlamaForCausalLM(configuration(len(tokenizer), HIDDEN, 4))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=MICRO, gradient_accumulation_steps=ROWS // MICRO * times,
            max_steps=steps // times, learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=20 // times,
            weight_decay=0.01, logging_steps=10**6, report_to=[], save_strategy="no", seed=seed, disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        measures = isinstance(budget, dict) and "ramp" not in budget
        coreset = CoresetConfig(
            pool_factor=1, budget=budget, noise_scale=2 if measures else "auto", loss_by_source=True, seed=seed
        )
        trainer = CoresetTrainer(
            model=model, args=args, train_dataset=Dataset.from_list(rows), data_collator=collator, coreset=coreset
        )
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began
        found = [json.loads(line) for line in (Path(folder) / "selection.jsonl").read_text().splitlines()]
    return {
        "arm": arm, "rate": rate, "seconds": round(seconds, 2), "updates": trainer.state.global_step,
        "drawn": sum(line["pool_examples"] for line in found), "rows": len(rows),
        "largest": max(line["chosen_examples"] for line in found),
        "tune": measured(model, collator, held[::2]), "final": measured(model, collator, held[1::2]),
        **provenance(seed),
    }  # fmt: skip


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in OUTPUT.read_text().splitlines()] if OUTPUT.is_file() else []


def best_rate(arm: str) -> float:
    tried = {line["rate"]: line["tune"]["token"] for line in lines() if (line["arm"], line["seed"]) == (arm, TUNED)}
    if missing := [rate for rate in RATES if rate not in tried]:
        raise SystemExit(f"{arm} should be tuned over {RATES}. Found no run at {missing}: run tune first.")
    return min(tried, key=lambda rate: tried[rate])


def run(cells: Sequence[tuple[str, float, int]], quick: bool) -> None:
    for cell in cells:
        if any((line["arm"], line["rate"], line["seed"]) == cell for line in lines()):
            continue
        line = trained(*cell, 40 if quick else STEPS)
        print(json.dumps(line), flush=True)
        if not quick:
            with OUTPUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def page() -> None:
    rates = {arm: best_rate(arm) for arm in ARMS}
    found = {
        arm: {line["seed"]: line for line in lines() if (line["arm"], line["rate"]) == (arm, rate)}
        for arm, rate in rates.items()
    }
    seeds = sorted(set.intersection(*(set(each) - {TUNED} for each in found.values())))
    plain = [found["constant"][seed] for seed in seeds]
    tested = {
        arm: float(ttest_rel(*([each["final"]["token"] for each in own] for own in (made, plain))).pvalue)
        for arm, runs in found.items()
        if (made := [runs[seed] for seed in seeds]) != plain
    }
    adjusted = dict(zip(tested, holm(list(tested.values())), strict=True))
    body = []
    for arm, runs in found.items():
        own = [runs[seed] for seed in seeds]
        apart = statistics.mean(a["final"]["token"] - b["final"]["token"] for a, b in zip(own, plain, strict=True))
        body.append([
            arm, f"{rates[arm]:g}" + " (edge)" * (rates[arm] in (RATES[0], RATES[-1])),
            f"{statistics.mean(each['updates'] for each in own):,.0f}",
            f"{max(each['largest'] for each in own)}",
            f"{statistics.mean(each['seconds'] for each in own) / statistics.mean(e['seconds'] for e in plain):.2f}",
            *(spread([each["final"][mean] for each in own]) for mean in MEANS),
            f"{apart:+.3f} (p = {adjusted[arm]:.2g})" if arm in adjusted else "",
        ])  # fmt: skip
    heads = ["arm", "rate", "optimizer steps", "largest batch", "CPU seconds, constant = 1", "token mean",
             "example mean", "source mean", "token mean less constant's"]  # fmt: skip
    first = plain[0]
    text = f"""`python benchmarks/budget.py`: held-out losses (nats per token) after {first["drawn"]:,} rows, of
{first["rows"]:,} rows of the reasoning tasks. A Llama of 0.25 M parameters from nothing, {ROWS} rows a step at first in
micro-batches of {MICRO}, each arm at its best rate of {", ".join(f"{rate:g}" for rate in RATES)}; noise measured at
every second step. {len(seeds)} seeds, 95 % intervals; p of paired t-tests, after Holm over {len(adjusted)} arms.

{table(heads, body)}

Seeds {seeds[0]} to {seeds[-1]}; {origin(first).partition("; ")[2]}."""
    write_between(PAGE, "batches that grow", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "train", "page"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(1, 5)))
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs; writes nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "page":
        page()
    elif args.what == "tune":
        run([(arm, rate, TUNED) for arm in args.arms for rate in RATES], args.quick)
    else:
        run([(arm, best_rate(arm), seed) for seed in args.seeds for arm in args.arms], args.quick)


if __name__ == "__main__":
    main()

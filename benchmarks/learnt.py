"""What leaving out learnt rows is worth in training: writes a table of docs/methods/learnt.md.

    python benchmarks/learnt.py tune --arms plain "plain, shorter" by_size infobatch
    python benchmarks/learnt.py train --arms plain "plain, shorter" by_size infobatch
    python benchmarks/learnt.py page

A Llama of 0.25 M parameters from nothing, all weights, on data that are read several times: `--data reasoning`, tasks
of reasoning-gym, or `--data easy`, five tasks of which it learns the most (benchmarks/easy_tasks.py). The plain Trainer
makes STEPS steps, every other arm SHARE of them; CPU seconds of the training alone say what share of plain's time that
is. Each arm has its own best rate out of RATES, by the token mean on half of the held-out rows, with a seed of its own;
the other half is what is reported. An answer is exact if every token of it is the likeliest after the ones before, as
greedy decoding finds it. Lines that are there are not measured again, so a killed run goes on. One thread; a run takes
half a minute.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from scipy.stats import t, ttest_1samp
from transformers import LlamaForCausalLM, TrainingArguments, set_seed

import easy_tasks
from corebatch.bench.runs.statistics import holm
from corebatch.demo import DEMO_SOURCES, make_mixture
from corebatch.mixture.collator import PaddingCollator
from corebatch.trainer import CoresetConfig, CoresetTrainer
from pages import ROOT, origin, provenance, table, write_between
from small_llama import configuration, tokenizer_for

OUTPUT, PAGE = ROOT / "benchmarks" / "results" / "learnt.jsonl", ROOT / "docs" / "evidence" / "learnt_rows.md"
STEPS, SHARE, ROWS, HIDDEN, RATES, TUNED = 1600, 0.72, 8, 64, (1e-3, 2e-3, 4e-3), 100
ARMS: dict[str, tuple[float, Mapping[str, Any] | None]] = {
    "plain": (1.0, None),
    "plain, shorter": (SHARE, None),
    "by_size": (SHARE, {"learnt": "by_size"}),
    "infobatch": (SHARE, {"learnt": "infobatch"}),
    "seta": (SHARE, {"learnt": "seta"}),
    "tail": (SHARE, {"learnt": "tail"}),
    "floor": (SHARE, {"learnt": "floor"}),
}
"""By name: the share of STEPS, and `coreset.sampling`."""
DATA = ("reasoning", "easy")
MEANS = ("token", "example", "source", "exact")


@cache
def data(which: str) -> tuple[Any, Any, list[dict[str, Any]], list[dict[str, Any]]]:
    """Tokenizer, collator, rows for training and held-out ones."""
    train, held = reasoning() if which == "reasoning" else (easy_tasks.rows(2000, 0), easy_tasks.rows(800, 1))
    tokenizer = tokenizer_for([row["prompt"] + row["completion"] for row in train], 768)

    def encoded(row: Mapping[str, Any]) -> dict[str, Any]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "source": row["source"]}

    return tokenizer, PaddingCollator(tokenizer), [encoded(row) for row in train], [encoded(row) for row in held]


FEW = ("simple_equations", "calendar_arithmetic", "basic_arithmetic", "products")
REASONING = [
    dataclasses.replace(each, examples=2 * each.examples) for each in DEMO_SOURCES if each.generator not in FEW
]
"""The demo's tasks that have twice as many different questions as the demo draws."""


def reasoning() -> list[list[dict[str, Any]]]:
    """Rows of them, for training and held-out ones."""
    with tempfile.TemporaryDirectory() as folder:
        files = make_mixture(folder, seed=0, sources=REASONING, heldout_per_source=80)
        return [
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in (files.train, files.heldout)
        ]


@torch.no_grad()
def measured(model: Any, collator: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Held-out means over tokens, examples and sources, and the share of exact answers."""
    model.eval()
    losses, counts, exact = [], [], []
    for first in range(0, len(rows), 40):
        part = rows[first : first + 40]
        batch = collator([{key: row[key] for key in ("input_ids", "labels")} for row in part])
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
        labels = batch["labels"][:, 1:]
        each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        losses += each.double().sum(1).tolist()
        counts += (labels != -100).sum(1).tolist()
        exact += ((logits.argmax(-1) == labels) | (labels == -100)).all(1).double().tolist()
    sources: dict[str, list[float]] = {}
    for row, loss, count in zip(rows, losses, counts, strict=True):
        whole = sources.setdefault(row["source"], [0.0, 0])
        whole[0], whole[1] = whole[0] + loss, whole[1] + count
    return {
        "token": sum(losses) / sum(counts),
        "example": statistics.mean(loss / count for loss, count in zip(losses, counts, strict=True)),
        "source": statistics.mean(loss / count for loss, count in sources.values()),
        "exact": statistics.mean(exact),
    }


def trained(which: str, arm: str, rate: float, seed: int, quick: bool) -> dict[str, Any]:
    """One run as a line."""
    share, sampling = ARMS[arm]
    tokenizer, collator, rows, held = data(which)
    steps = round((40 if quick else STEPS) * share)
    set_seed(seed)
    model = LlamaForCausalLM(configuration(len(tokenizer), HIDDEN, 4))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, per_device_train_batch_size=ROWS, gradient_accumulation_steps=1, max_steps=steps,
            learning_rate=rate, lr_scheduler_type="cosine", warmup_steps=50, weight_decay=0.01, logging_steps=10**6,
            report_to=[], save_strategy="no", seed=seed, disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
        )  # fmt: skip
        coreset = CoresetConfig(pool_factor=1, sampling=sampling, seed=seed)
        trainer = CoresetTrainer(
            model=model, args=args, train_dataset=_columns(rows), data_collator=collator, coreset=coreset
        )
        began = time.process_time()
        trainer.train()
        seconds = time.process_time() - began
        passes = sampling and trainer._run.learnt._made
    return {
        "data": which, "arm": arm, "rate": rate, "seed": seed, "steps": steps, "seconds": round(seconds, 2),
        "rows": len(rows),
        "passes": passes or round(steps * ROWS / len(rows), 2), "tune": measured(model, collator, held[::2]),
        "final": measured(model, collator, held[1::2]), **provenance(seed),
    }  # fmt: skip


def _columns(rows: Sequence[Mapping[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([dict(row) for row in rows])


def lines(which: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in OUTPUT.read_text().splitlines()] if OUTPUT.is_file() else []
    return [line for line in found if line["data"] == which]


def best_rate(which: str, arm: str) -> float:
    tuned = [line for line in lines(which) if (line["arm"], line["seed"]) == (arm, TUNED)]
    tried = {line["rate"]: line["tune"]["token"] for line in tuned}
    missing = [rate for rate in RATES if rate not in tried]
    if missing:
        raise SystemExit(f"{arm} should be tuned over {RATES}. Found no run at {missing}: run tune first.")
    return min(tried, key=lambda rate: tried[rate])


def run(which: str, cells: Sequence[tuple[str, float, int]], quick: bool) -> None:
    for cell in cells:
        if any((line["arm"], line["rate"], line["seed"]) == cell for line in lines(which)):
            continue
        line = trained(which, *cell, quick)
        print(json.dumps(line), flush=True)
        if not quick:
            OUTPUT.parent.mkdir(parents=True, exist_ok=True)
            with OUTPUT.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


# ---- the page --------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.3f}"
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.3f} ± {half:.3f}"


def apart_from_plain(found: Mapping[str, Mapping[int, Any]], seeds: Sequence[int], mean: str) -> dict[str, list[float]]:
    """Of each arm, its number less plain's, by seed."""
    return {
        arm: [each[seed]["final"][mean] - found["plain"][seed]["final"][mean] for seed in seeds]
        for arm, each in found.items()
        if arm != "plain"
    }


def adjusted(apart: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """p of two-sided paired t-tests, after Holm over the arms."""
    found = holm([float(ttest_1samp(each, 0.0).pvalue) for each in apart.values()])
    return dict(zip(apart, found, strict=True))


def differences(found: Mapping[str, Mapping[int, Any]], seeds: Sequence[int], mean: str) -> dict[str, str]:
    """Of each arm to plain, with p where there are several seeds."""
    apart = apart_from_plain(found, seeds, mean)
    shown = {arm: f"{statistics.mean(each):+.3f}" for arm, each in apart.items()}
    return shown if len(seeds) == 1 else {arm: f"{shown[arm]} (p = {p:.2g})" for arm, p in adjusted(apart).items()}


def runs_of(which: str) -> tuple[dict[str, dict[int, Any]], dict[str, float], list[int]]:
    """The lines of each arm at its best rate by seed, these rates, and the seeds that every arm has; where no arm was
    trained after tuning, of that."""
    own = [line for line in lines(which) if line["seed"] != TUNED] or lines(which)
    arms = [arm for arm in ARMS if any(line["arm"] == arm for line in own)]
    rates = {arm: best_rate(which, arm) for arm in arms}
    found = {
        arm: {line["seed"]: line for line in own if (line["arm"], line["rate"]) == (arm, rates[arm])} for arm in arms
    }
    return found, rates, sorted(set.intersection(*(set(each) for each in found.values())))


def study(which: str) -> str:
    """The table of one data set."""
    found, rates, seeds = runs_of(which)
    losses, answers = (differences(found, seeds, mean) for mean in ("token", "exact"))
    spent = {arm: statistics.mean(each[seed]["seconds"] for seed in seeds) for arm, each in found.items()}
    body = []
    for arm, each in found.items():
        finals = [each[seed]["final"] for seed in seeds]
        body.append([
            arm, f"{rates[arm]:g}" + " (edge)" * (rates[arm] in (RATES[0], RATES[-1])),
            f"{ARMS[arm][0]:g} / {spent[arm] / spent['plain']:.2f}",
            f"{statistics.mean(each[seed]['passes'] for seed in seeds):.1f}",
            *(spread([final[mean] for final in finals]) for mean in MEANS), losses.get(arm, ""), answers.get(arm, ""),
        ])  # fmt: skip
    first = found["plain"][seeds[0]]
    tasks = len(REASONING) if which == "reasoning" else len({row["source"] for row in easy_tasks.rows(2000, 0)})
    heads = ["arm", "rate", "of plain's steps / CPU seconds", "passes begun", "token mean", "example mean",
             "source mean", "exact answers", "token mean less plain's", "exact less plain's"]  # fmt: skip
    tested = f", 95 % intervals; p of paired t-tests, after Holm over {len(found) - 1} arms" if len(seeds) > 1 else ""
    return f"""**{which}**: {first["rows"]:,} rows of {tasks} tasks. {len(seeds)} seed{"s" * (len(seeds) > 1)}{tested}.

{table(heads, body)}

Seeds {seeds[0]} to {seeds[-1]}; {origin(first).partition("; ")[2]}."""


def page() -> None:
    tried = ", ".join(f"{rate:g}" for rate in RATES)
    text = f"""`python benchmarks/learnt.py`: held-out losses (nats per token) and exact answers. A Llama of
0.25 M parameters from nothing, {STEPS:,} steps of {ROWS} rows for plain, each arm at its best rate of {tried}."""
    made = [study(which) for which in DATA if lines(which)]
    write_between(PAGE, "learnt rows", "\n\n".join([text, *made]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "train", "page"))
    parser.add_argument("--data", choices=DATA, default="reasoning")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(1, 9)))
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it runs; writes nothing")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.what == "page":
        page()
    elif args.what == "tune":
        run(args.data, [(arm, rate, TUNED) for arm in args.arms for rate in RATES], args.quick)
    else:
        cells = [(arm, best_rate(args.data, arm), seed) for seed in args.seeds for arm in args.arms]
        run(args.data, cells, args.quick)


if __name__ == "__main__":
    main()

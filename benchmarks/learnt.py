"""What leaving out learnt rows is worth in training: writes a table of docs/methods/learnt.md.

    python benchmarks/learnt.py tune
    python benchmarks/learnt.py train --seeds 1 2 3 4
    python benchmarks/learnt.py train --seeds 5 6 7 8
    python benchmarks/learnt.py page

A Llama of 0.25 M parameters from nothing, all weights, on a mixture of reasoning-gym tasks that is read several times.
The plain Trainer makes STEPS steps, every other arm SHARE of them; CPU seconds of the training alone say what share of
plain's time that is. Each arm has its own best rate out of RATES, by the token mean on half of the held-out rows, with
a seed of its own; the other half is what is reported. An answer is exact if every token of it is the likeliest after
the ones before, as greedy decoding finds it. Lines that are there are not measured again, so a killed run goes on. One
thread; a run takes half a minute.
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
from scipy.stats import t, ttest_rel
from transformers import LlamaForCausalLM, TrainingArguments, set_seed

from corebatch.bench.runs.statistics import holm
from corebatch.demo import DEMO_SOURCES, make_mixture
from corebatch.mixture.collator import PaddingCollator
from corebatch.trainer import CoresetConfig, CoresetTrainer
from pages import ROOT, origin, provenance, table, write_between
from small_llama import configuration, tokenizer_for

OUTPUT, PAGE = ROOT / "benchmarks" / "results" / "learnt.jsonl", ROOT / "docs" / "methods" / "learnt.md"
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
MEANS = ("token", "example", "source", "exact")


@cache
def data() -> tuple[Any, Any, list[dict[str, Any]], list[dict[str, Any]]]:
    """Tokenizer, collator, rows for training and held-out ones."""
    with tempfile.TemporaryDirectory() as folder:
        sources = [dataclasses.replace(each, examples=2 * each.examples) for each in DEMO_SOURCES if _rich(each)]
        files = make_mixture(folder, seed=0, sources=sources, heldout_per_source=80)
        train, held = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in (files.train, files.heldout)
        )
    tokenizer = tokenizer_for([row["prompt"] + row["completion"] for row in train], 768)

    def encoded(row: Mapping[str, Any]) -> dict[str, Any]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "source": row["source"]}

    return tokenizer, PaddingCollator(tokenizer), [encoded(row) for row in train], [encoded(row) for row in held]


def _rich(source: Any) -> bool:
    """Whether a task has twice as many different questions as the demo draws."""
    return source.generator not in ("simple_equations", "calendar_arithmetic", "basic_arithmetic", "products")


@torch.no_grad()
def measured(model: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Held-out means over tokens, examples and sources, and the share of exact answers."""
    model.eval()
    losses, counts, exact = [], [], []
    for first in range(0, len(rows), 40):
        part = rows[first : first + 40]
        batch = data()[1]([{key: row[key] for key in ("input_ids", "labels")} for row in part])
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


def trained(arm: str, rate: float, seed: int, quick: bool) -> dict[str, Any]:
    """One run as a line."""
    share, sampling = ARMS[arm]
    tokenizer, collator, rows, held = data()
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
        "arm": arm, "rate": rate, "seed": seed, "steps": steps, "seconds": round(seconds, 2), "rows": len(rows),
        "passes": passes or round(steps * ROWS / len(rows), 2), "tune": measured(model, held[::2]),
        "final": measured(model, held[1::2]), **provenance(seed),
    }  # fmt: skip


def _columns(rows: Sequence[Mapping[str, Any]]) -> Any:
    from datasets import Dataset

    return Dataset.from_list([dict(row) for row in rows])


def lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in OUTPUT.read_text().splitlines()] if OUTPUT.is_file() else []


def best_rate(arm: str) -> float:
    tried = {line["rate"]: line["tune"]["token"] for line in lines() if (line["arm"], line["seed"]) == (arm, TUNED)}
    missing = [rate for rate in RATES if rate not in tried]
    if missing:
        raise SystemExit(f"{arm} should be tuned over {RATES}. Found no run at {missing}: run tune first.")
    return min(tried, key=lambda rate: tried[rate])


def run(cells: Sequence[tuple[str, float, int]], quick: bool) -> None:
    for arm, rate, seed in cells:
        if any((line["arm"], line["rate"], line["seed"]) == (arm, rate, seed) for line in lines()):
            continue
        line = trained(arm, rate, seed, quick)
        print(json.dumps(line), flush=True)
        if not quick:
            OUTPUT.parent.mkdir(parents=True, exist_ok=True)
            with OUTPUT.open("a", encoding="utf-8") as file:  # one write a line: two processes may add side by side
                file.write(json.dumps(line) + "\n")


# ---- the page --------------------------------------------------------------------------------------------------------


def spread(values: Sequence[float], digits: int = 3) -> str:
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.mean(values):.{digits}f} ± {half:.{digits}f}"


def page() -> None:
    arms = [arm for arm in ARMS if any(line["arm"] == arm and line["seed"] != TUNED for line in lines())]
    rates = {arm: best_rate(arm) for arm in arms}
    found = {
        arm: {line["seed"]: line for line in lines() if line["arm"] == arm and _final(line, rates)} for arm in arms
    }
    plain, seeds = found["plain"], sorted(found["plain"])
    others = [arm for arm in arms if arm != "plain"]
    tests = {
        arm: ttest_rel(*([each[seed]["final"]["token"] for seed in seeds] for each in (found[arm], plain))).pvalue
        for arm in others
    }
    adjusted = dict(zip(others, holm(list(tests.values())), strict=True))
    step = {
        arm: statistics.mean(line["seconds"] / line["steps"] for line in each.values()) for arm, each in found.items()
    }
    body = []
    for arm, each in found.items():
        finals = [each[seed]["final"] for seed in seeds]
        difference = statistics.mean(
            f["token"] - plain[seed]["final"]["token"] for f, seed in zip(finals, seeds, strict=True)
        )
        judged = "" if arm == "plain" else f"{difference:+.3f} (p = {adjusted[arm]:.2g})"
        body.append([
            arm, f"{rates[arm]:g}" + " (edge)" * (rates[arm] in (RATES[0], RATES[-1])), f"{ARMS[arm][0]:g}",
            f"{statistics.mean(line['passes'] for line in each.values()):.1f}",
            *(spread([final[mean] for final in finals]) for mean in MEANS),
            judged, f"{ARMS[arm][0] * step[arm] / step['plain']:.2f}",
        ])  # fmt: skip
    first = plain[seeds[0]]
    heads = ["arm", "rate", "of plain's steps", "passes begun", "token mean", "example mean", "source mean",
             "exact answers", "token mean less plain's", "of plain's CPU seconds"]  # fmt: skip
    tried, tasks = ", ".join(f"{rate:g}" for rate in RATES), len({row["source"] for row in data()[2]})
    text = f"""Held-out losses (nats per token) and exact answers: means of {len(seeds)} seeds, 95 % intervals; p of
paired t-tests, after Holm over {len(others)} arms. A Llama of 0.25 M parameters from nothing, {first["rows"]:,} rows of
{tasks} reasoning-gym tasks, {STEPS:,} steps of {ROWS} rows for plain, each arm at its best rate of {tried}.

{table(heads, body)}

`python benchmarks/learnt.py`; seeds {seeds[0]} to {seeds[-1]}; {origin(first).partition("; ")[2]}."""
    write_between(PAGE, "learnt rows", text)


def _final(line: Mapping[str, Any], rates: Mapping[str, float]) -> bool:
    return line["seed"] != TUNED and line["rate"] == rates[line["arm"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "train", "page"))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(1, 9)))
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

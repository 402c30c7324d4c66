"""Bias given the pool, of every selector: `python benchmarks/bias.py` writes it into docs/methods/selectors.md.

Exact gradients of every row of a small Llama, trained for some steps before, whose parameters and LoRA adapters are all
trained; features are those of `last_layer`, with three blocks. For each pool the small batch is drawn again and again,
as the trainer draws it; its gradient is what the trainer would step on (uniform selectors: mean over chosen tokens).
bias^2 is a share of the mean squared error, without what a mean over so many draws is off by chance.

The data are made by the script; `--data FILE` takes rows with `prompt`, `completion` and `source` instead. `--table`
writes the page from the last run's lines.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from corebatch import select
from corebatch.scoring import make_scorer
from corebatch.selectors import SELECTORS, make_selector
from pages import ROOT, origin, provenance, table, write_between, write_lines

SIZES = [(16, 8), (32, 16), (64, 16), (128, 64)]  # N, M
PAGE, OUTPUT = ROOT / "docs" / "methods" / "selectors.md", ROOT / "benchmarks" / "results" / "bias.jsonl"
LENGTH, POPULATION, VALIDATION, STEPS, WINDOW = 160, 320, 16, 150, 50
DETERMINISTIC = ("facility_location", "craig", "k_medoids", "herding", "gradient_matching", "greats", "hard")


def main() -> None:
    options = parse()
    if not options.table:
        torch.set_num_threads(1)
        write_lines(options.output, measure(options))
    lines = [json.loads(line) for line in options.output.read_text(encoding="utf-8").splitlines()]
    write_between(options.page, "bias given the pool", page(lines))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSONL with prompt, completion and source")
    parser.add_argument("--draws", type=int, default=300)
    parser.add_argument("--pools", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    return parser.parse_args()


# ---- data and gradients ----------------------------------------------------------------------------------------------


def made(count: int, seed: int) -> list[dict[str, str]]:
    """Four sources of unequal share, length and difficulty."""
    draw = random.Random(seed)
    words = ["stone", "river", "cloud", "lamp", "window", "garden", "letter", "bridge", "winter", "copper"]
    rows = []
    for _ in range(count):
        source = draw.choices(["sums", "sorting", "sentences", "reversal"], [45, 30, 20, 5])[0]
        if source == "sums":
            one, other = draw.randrange(100), draw.randrange(100)
            prompt, completion = f"{one}+{other}=", str(one + other)
        elif source == "sorting":
            numbers = [draw.randrange(10) for _ in range(draw.randint(3, 12))]
            prompt, completion = f"sort {numbers}: ", str(sorted(numbers))
        elif source == "sentences":
            said = " ".join(draw.choice(words) for _ in range(draw.randint(6, 18)))
            prompt, completion = "say: ", f"the {said} was there."
        else:
            word = "".join(draw.choice("abcdefgh") for _ in range(draw.randint(3, 8)))
            prompt, completion = f"turn {word}: ", word[::-1]
        rows.append({"prompt": prompt, "completion": completion, "source": source})
    return rows


def encoded(row: dict[str, str]) -> tuple[list[int], list[int]]:
    """Bytes as tokens, and labels of the completion alone."""
    prompt, completion = (list(row[key].encode()) for key in ("prompt", "completion"))
    prompt = prompt[-LENGTH // 2 :]
    completion = [*completion[: LENGTH // 2 - 1], 1]
    return [2, *prompt, *completion], [-100] * (1 + len(prompt)) + completion


def batch(rows: Sequence[dict[str, str]]) -> dict[str, Tensor]:
    pairs = [encoded(row) for row in rows]
    width = max(len(ids) for ids, _ in pairs)
    return {
        "input_ids": torch.tensor([[*ids, *[0] * (width - len(ids))] for ids, _ in pairs]),
        "labels": torch.tensor([[*labels, *[-100] * (width - len(labels))] for _, labels in pairs]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in pairs]),
    }


def small_llama(rows: Sequence[dict[str, str]], seed: int) -> Any:
    """Four blocks, 0.2 M parameters, trained on some of the rows; LoRA adapters that are not zero."""
    set_seed(seed)
    model: Any = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=160, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, pad_token_id=0, bos_token_id=2, eos_token_id=1, tie_word_embeddings=True,
        )
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = random.Random(seed)
    for _ in range(STEPS):
        model(**batch(draw.sample(list(rows), 32))).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model = get_peft_model(
        model, LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(True)
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    return model.eval()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Every row of the population: gradients of the summed loss, features, and what they came from."""

    full: Tensor
    lora: Tensor
    features: Tensor
    losses: Tensor
    tokens: Tensor
    sources: list[str]


def gradients(model: Any, rows: Sequence[dict[str, str]]) -> Rows:
    names = [name for name, _ in model.named_parameters()]
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    scores = [
        make_scorer("last_layer", {"num_blocks": 3}).run(model, batch([row]), loss="token_mean", seed=0) for row in rows
    ]
    for row in rows:
        given = batch([row])
        logits = model(input_ids=given["input_ids"]).logits[0, :-1]
        loss = torch.nn.functional.cross_entropy(logits, given["labels"][0, 1:], ignore_index=-100, reduction="sum")
        found = torch.autograd.grad(loss, list(model.parameters()))
        for adapters, kept in parts.items():
            kept.append(
                torch.cat([g.flatten() for n, g in zip(names, found, strict=True) if ("lora_" in n) == adapters])
            )
    return Rows(
        full=torch.stack(parts[False]),
        lora=torch.stack(parts[True]),
        features=torch.cat([each.features for each in scores]),
        losses=torch.cat([each.losses for each in scores if each.losses is not None]),
        tokens=torch.cat([each.tokens for each in scores]),
        sources=[row["source"] for row in rows],
    )


# ---- measuring -------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = made(2000, options.seed)
    if options.data is not None:
        rows = [json.loads(line) for line in options.data.read_text(encoding="utf-8").splitlines()]
        random.Random(options.seed).shuffle(rows)
    model = small_llama(rows[POPULATION + VALIDATION : 2000], options.seed)
    of = gradients(model, rows[: POPULATION + VALIDATION])
    common = {
        "data": "made" if options.data is None else options.data.parent.name,
        "draws": options.draws,
        "pools": options.pools,
        "parameters": of.full.shape[1],
        **provenance(options.seed),
    }
    lines = []
    for count, budget in SIZES:
        pools = [
            torch.randperm(POPULATION, generator=torch.Generator().manual_seed(options.seed + k))[:count].sort().values
            for k in range(options.pools)
        ]
        base = [one_pool(of, pool, budget, "random", options.draws) for pool in pools]
        for name in SELECTORS:
            found = base if name == "random" else [one_pool(of, pool, budget, name, options.draws) for pool in pools]
            line = {"selector": name, "n": count, "m": budget, **common, **together(found, base)}
            print({key: line[key] for key in ("selector", "n", "m", "bias_full", "bias_lora", "ms")}, flush=True)
            lines.append(line)
    return lines


def one_pool(of: Rows, pool: Tensor, budget: int, name: str, draws: int) -> dict[str, Any]:
    """What a selector does to one pool."""
    features, losses, tokens = of.features[pool], of.losses[pool], of.tokens[pool].double()
    sources = [of.sources[row] for row in pool.tolist()]
    weighted = make_selector(name).weighted
    factors = torch.zeros(1 if name in DETERMINISTIC else draws, len(pool), dtype=torch.float64)
    shares, trained, started = torch.zeros(len(pool), dtype=torch.float64), 0.0, time.process_time()
    for seed in range(len(factors)):
        chosen = select(features, budget, sources, name, losses=losses, validation=of.features[POPULATION:], seed=seed)
        rows, weights = chosen.indices, chosen.weights.double()
        whole = tokens.sum() * budget / len(pool) if weighted else tokens[rows].sum()
        factors[seed, rows] = weights / whole
        shares[rows] += weights * len(pool) / (budget * len(factors))
        trained += float(tokens[rows].sum()) / len(factors)
    seconds = (time.process_time() - started) / len(factors)
    means = {s: float(shares[torch.tensor([each == s for each in sources])].mean()) for s in set(sources)}
    return {
        "full": bias_and_error(factors, of.full[pool].double(), tokens),
        "lora": bias_and_error(factors, of.lora[pool].double(), tokens),
        "ms": 1e3 * seconds,
        "tokens": trained * len(pool) / (budget * float(tokens.sum())),
        "weights": means,
    }


def bias_and_error(factors: Tensor, each: Tensor, tokens: Tensor) -> tuple[float, float]:
    """bias^2, without what is chance, and the mean squared error; from inner products, since gradients are long."""
    off = factors - 1.0 / tokens.sum()
    gram = each @ each.T
    error = float(((off @ gram) * off).sum(dim=1).mean())
    mean = off.mean(dim=0)
    bias = float(mean @ gram @ mean)
    if len(factors) > 1:
        bias -= (error - bias) / (len(factors) - 1)
    return bias, error


def together(found: Sequence[dict[str, Any]], base: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Over pools: bias as a share of the error, errors beside those of `random`, weights of sources."""
    line: dict[str, Any] = {}
    for kind in ("full", "lora"):
        shares = [each[kind][0] / each[kind][1] if each[kind][1] > 0 else 0.0 for each in found]
        bias, error = (sum(max(0.0, each[kind][part]) for each in found) for part in (0, 1))
        random_error = sum(each[kind][1] for each in base)
        line |= {
            f"bias_{kind}": bias / error if error > 0 else 0.0,
            f"bias_{kind}_pools": shares,
            f"error_{kind}": error / random_error,
            f"error_{kind}_window": (max(0.0, error - bias) / WINDOW + bias) / (random_error / WINDOW),
        }
    sources = sorted({source for each in found for source in each["weights"]})
    mean = {s: [each["weights"][s] for each in found if s in each["weights"]] for s in sources}
    line["weights"] = {s: sum(values) / len(values) for s, values in mean.items()}
    for key in ("ms", "tokens"):
        line[key] = sum(each[key] for each in found) / len(found)
    return line


# ---- the page --------------------------------------------------------------------------------------------------------


def page(lines: Sequence[dict[str, Any]]) -> str:
    first = lines[0]
    of = {(line["selector"], line["n"], line["m"]): line for line in lines}
    rows = []
    for name in SELECTORS:
        cells = [f"`{name}`"]
        for size in SIZES:
            line = of[name, *size]
            cells.append(f"{share(line['bias_full'], name)} / {share(line['bias_lora'], name)}")
        small, large = of[name, *SIZES[0]], of[name, *SIZES[2]]
        weights = small["weights"].values()
        cells.append(f"{min(weights):.2f} to {max(weights):.2f}")
        cells += [f"{large[f'error_lora{when}']:.2f}" for when in ("", "_window")]
        rows.append(cells)
    heads = [
        "selector", *(f"{m} of {n}" for n, m in SIZES), "mean weight of sources, 8 of 16",
        "error, 16 of 64", f"of the mean of {WINDOW}",
    ]  # fmt: skip
    worst = max(
        max(abs(value) for kind in ("full", "lora") for value in of[name, *size][f"bias_{kind}_pools"])
        for name in ("cube", "pivotal", "importance", "gram_schmidt_walk")
        for size in SIZES
    )
    data = "a made mixture of four sources" if first["data"] == "made" else first["data"]
    return f"""bias^2 as a share of the error given the pool, full fine-tuning / LoRA, over {first["pools"]} pools with
{first["draws"]} draws each (selectors that draw nothing: one choice, whose whole error is bias). The samplers' shares
are chance: the largest of a single pool is {100 * worst:.1f} %. Uniform selectors are trained as the trainer does, by
the mean over the chosen tokens, a ratio that is itself a little biased. *Mean weight*: what the weights of a source's
rows come to for one row of it, for the source with least and that with most; 1 is right. *Error*: LoRA, plain `random`
= 1, of one step and of the mean of {WINDOW} steps on the same pool.

{table(heads, rows)}

`python benchmarks/bias.py`; a Llama of {first["parameters"]:,} numbers, {data}; {origin(first)}."""


def share(value: float, name: str) -> str:
    return "all" if name in DETERMINISTIC else f"{100 * max(0.0, value):.1f} %"


if __name__ == "__main__":
    main()

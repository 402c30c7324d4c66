"""Cheap stand-ins for gradient features that did not pay: negative results in docs/evidence/measurements.md.

    python benchmarks/readouts.py --output benchmarks/results/readouts.jsonl

The model, data and population are those of `corebatch bench gradients examples/bench.yaml` after 200 steps. Each
stand-in gives features for balanced sampling, with inclusion in proportion to a size; a line has what 64, 32 and 16 of
128 are worth in averages over 1 to 200 steps, in Adam's metric:

- a bag of the trained tokens, or of pairs of tokens, sketched to 256 numbers;
- an early exit after the first block, as it is, and through a ridge read-out fitted to the exact features of 1,536
  other examples (what training would have shown by then); the share of their variance that it explains is printed;
- features of 32 steps ago for half of the examples, the others with a size and no direction, chosen together and apart.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from corebatch.bench.gradients.errors import Gram
from corebatch.bench.gradients.estimate import Snapshot, per_example_gradients
from corebatch.bench.gradients.lines import write_lines
from corebatch.bench.gradients.run import second_moments_of, train_step
from corebatch.bench.gradients.series import Series
from corebatch.bench.gradients.windows import windows
from corebatch.mixture import PaddingCollator, load_mixture, parse_specs
from corebatch.model.early_exit import EarlyExit
from corebatch.record.provenance import provenance
from corebatch.scoring import Scores, make_scorer
from corebatch.scoring.sketch import count_sketch
from corebatch.seeds import seeded
from corebatch.selectors import SELECTORS
from corebatch.selectors.balanced import balance
from corebatch.selectors.kernels.inclusion import expansion_weights, inclusion_probabilities, systematic_sample

POPULATION, LARGE, BUDGETS, DRAWS, STEPS, AGO, FITTED, WIDTH = 384, 128, (64, 32, 16), 400, 200, 32, 1536, 256
Choose = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]


def together(features: Tensor, sizes: Tensor) -> Choose:
    """Balanced sampling with inclusion in proportion to `sizes`."""

    def choose(pool: Tensor, budget: int, draw: int) -> tuple[Tensor, Tensor]:
        inclusion = inclusion_probabilities(sizes[pool].double().unsqueeze(1), budget, 0.1)
        start = systematic_sample(inclusion, budget, seeded(0, draw, "select"))
        rows = balance(features[pool].double(), inclusion, start, budget)
        return rows, expansion_weights(inclusion, rows)

    return choose


def apart(features: Tensor, sizes: Tensor, known: Tensor) -> Choose:
    """Known rows balanced, the others by size, each part with its share of the budget: as `remembered` chooses."""

    def choose(pool: Tensor, budget: int, draw: int) -> tuple[Tensor, Tensor]:
        here, there = known[pool].nonzero().flatten(), (~known[pool]).nonzero().flatten()
        share = float(sizes[pool][here].sum() / sizes[pool].sum())
        first = int(budget * share + float(torch.rand(1, generator=seeded(0, draw, "share"))))
        first = min(max(first, 1, budget - len(there)), budget - 1, len(here))
        rows, weights = [], []
        for members, count, selector, values in (
            (here, first, "balanced", features),
            (there, budget - first, "importance", sizes.float().unsqueeze(1)),
        ):
            selection = SELECTORS[selector]().select(values[pool][members], count, seeded(0, draw, "select"))
            rows.append(members[selection.indices])
            weights.append(selection.weights.double() * budget / len(pool) * len(members) / count)
        return torch.cat(rows), torch.cat(weights)

    return choose


def bag(batches: Sequence[dict[str, Tensor]], vocabulary: int, pairs: bool) -> Tensor:
    """[P, WIDTH]: random directions of the trained tokens, or of each with the token before, summed."""
    generator = seeded(0, "bag")
    token = torch.randn(vocabulary, WIDTH, generator=generator) / WIDTH**0.5
    before = torch.randint(2, (vocabulary, WIDTH), generator=generator) * 2.0 - 1
    rows = []
    for batch in batches:
        labels = batch["labels"][:, 1:]
        values = token[labels.clamp(min=0)] * (before[batch["input_ids"][:, :-1]] if pairs else 1)
        rows.append((values * (labels != -100).unsqueeze(2)).sum(dim=1))
    return torch.cat(rows)


def readout(inputs: Tensor, targets: Tensor, ridge: float) -> Callable[[Tensor], Tensor]:
    """Ridge regression."""
    scale = inputs.square().mean().sqrt()
    inputs = inputs / scale
    penalty = ridge * len(inputs) * torch.eye(inputs.shape[1])
    weight = torch.linalg.solve(inputs.T @ inputs + penalty, inputs.T @ targets)
    return lambda values: values / scale @ weight


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/small-llama")
    parser.add_argument("--data", default="../shared/data/mathmix/train.jsonl")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/readouts.jsonl"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    data = load_mixture(parse_specs([{"path": args.data}]), tokenizer, max_length=256).dataset
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model: Any = AutoModelForCausalLM.from_pretrained(args.model)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=modules)).eval()
    generator = seeded(0, "adapters")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    order = torch.randperm(len(data), generator=seeded(0, "population")).tolist()
    collate = PaddingCollator(tokenizer)

    def batches_of(rows: Sequence[int]) -> list[dict[str, Tensor]]:
        rows = sorted(rows, key=lambda i: len(data[i]["input_ids"]))
        return [collate([data[i] for i in rows[start : start + 16]]) for start in range(0, len(rows), 16)]

    population, others = batches_of(order[:POPULATION]), order[POPULATION:]
    tokens = torch.cat([(batch["labels"][:, 1:] != -100).sum(dim=1) for batch in population])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.0)

    def scored(batches: Sequence[dict[str, Tensor]], blocks: int, exit_after: int | None = None) -> Tensor:
        scorer, early = make_scorer("last_layer", {"num_blocks": blocks}), EarlyExit(exit_after or 1)
        parts = []
        for batch in batches:
            if exit_after is None:
                parts.append(scorer.run(model, batch))
            else:
                with early.cut(model, batch):
                    parts.append(scorer.run(model, batch))
        return Scores.cat(parts).features

    old = torch.zeros(0)
    for step in range(STEPS):
        if step == STEPS - AGO:
            old = scored(population, 3)
        picks = torch.randint(len(others), (32,), generator=seeded(0, "train", step)).tolist()
        train_step(model, optimizer, batches_of([others[i] for i in picks]))
    moments = second_moments_of(optimizer, trained)
    assert moments is not None
    gradients = per_example_gradients(Snapshot(model=model, batches=population)) / (moments.sqrt() + 1e-8)
    series, gram = Series.of(POPULATION, LARGE, DRAWS, 0), Gram.of(gradients)

    root = tokens.double().sqrt()
    fitted = batches_of(others[:FITTED])
    fitted_root = torch.cat([(batch["labels"][:, 1:] != -100).sum(dim=1) for batch in fitted]).float().sqrt()[:, None]
    exact, early, early_fitted = scored(population, 3), scored(population, 1, 1), scored(fitted, 1, 1)
    target = count_sketch(scored(fitted, 3), 512, seeded(0, "target")) / fitted_root
    truth = count_sketch(exact, 512, seeded(0, "target")) / root.float()[:, None]
    known = torch.rand(POPULATION, generator=seeded(0, "known")) < 0.5
    level = float((old.double().norm(dim=1) / root).log().mean().exp())
    sizes = torch.where(known, old.double().norm(dim=1), level * root)
    half = old * known.unsqueeze(1)
    # A row without a direction is at right angles to all others.
    blind = torch.cat([half, torch.diag(sizes * ~known).float()], dim=1)
    arms: dict[str, tuple[Choose, dict[str, Any]]] = {
        "sizes alone": (together(root.float().unsqueeze(1), root), {}),
        "exact features": (together(exact, exact.double().norm(dim=1)), {}),
        "bag of trained tokens": (together(bag(population, len(tokenizer), False), root), {}),
        "bag of pairs of tokens": (together(bag(population, len(tokenizer), True), root), {}),
        "first block": (together(early, root), {}),
    }
    for ridge in (0.03, 0.3, 3.0):
        inputs = count_sketch(early_fitted, 1024, seeded(0, "input")) / fitted_root
        apply = readout(inputs, target, ridge)
        predicted = apply(count_sketch(early, 1024, seeded(0, "input")) / root.float()[:, None])
        facts = {
            "explained": 1 - float((predicted - truth).square().sum() / truth.square().sum()),
            "explained_fitted": 1 - float((apply(inputs) - target).square().sum() / target.square().sum()),
        }
        arms[f"first block, read-out, ridge {ridge}"] = (together(predicted * root.float()[:, None], root), facts)
    arms["half known, together"] = (together(blind, sizes), {})
    arms["half known, apart"] = (apart(half, sizes, known), {})

    lines = []
    for name, (choose, facts) in arms.items():
        for budget in BUDGETS:
            chosen = torch.zeros(DRAWS, POPULATION, dtype=torch.float64)
            for draw, pool in enumerate(series.pools_TN):
                rows, weights = choose(pool, budget, draw)
                chosen[draw, pool[rows]] = weights.double() / budget
            found = windows(gram, chosen, series.large_TP, budget, LARGE)
            line = {"kind": "readouts", "arm": name, "seed": 0, "budget": budget, **facts}
            lines.append({**line, "windows": {length: asdict(window) for length, window in found.items()}})
            over = "  ".join(f"{length} {window.effective:.2f}" for length, window in found.items())
            told = "  ".join(f"{key} {value:.2f}" for key, value in facts.items())
            print(f"{name:36s} {budget:3d}  effective over {over}  {told}", flush=True)
    shared = provenance()
    write_lines(
        [{**line, "large": LARGE, "population": POPULATION, "draws": DRAWS, **shared} for line in lines], args.output
    )


if __name__ == "__main__":
    main()

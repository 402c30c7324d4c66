"""What small batches are worth in averages over steps: `python benchmarks/windows.py` measures it and writes the tables
of docs/methods/selectors.md and docs/evidence/measurements.md, and a sentence of the README.

Every selector that needs no target of its own, in a series of steps drawn in epochs (`corebatch bench gradients`),
under the objectives tokens and sources, on two models: the small Llama of benchmarks/small_llama.py after 200 AdamW
steps, and SmolLM2-135M after 10, with fewer exact gradients of fewer parameters. Exact features are those of three
blocks' value projections; remembered ones are as many steps old as `SETTINGS` says, in 512 numbers, as runs keep them.
Lines are in Adam's metric.

`--models` and `--methods` measure some of them; the lines of the others stay. `--table` writes the pages from the lines
that are there; `--quick` runs tiny sizes, to see that it runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from rich.console import Console

from corebatch.bench.gradients import parse_methods
from corebatch.bench.gradients.lines import longest
from corebatch.bench.gradients.run import bench_gradients
from corebatch.config.building import SOURCE_COLUMN, load_model, load_tokenizer, read_mixture
from corebatch.config.settings import load_settings
from corebatch.demo import smollm2_folder
from pages import ROOT, table, write_between, write_lines
from tables import extremes, source, windows

OUTPUT = ROOT / "benchmarks" / "results" / "windows.jsonl"
SELECTORS, MEASUREMENTS = ROOT / "docs" / "methods" / "selectors.md", ROOT / "docs" / "evidence" / "measurements.md"
README = ROOT / "README.md"
EXACT = "last_layer(num_blocks=3) x "
METHODS = (
    "tokens x random",
    "tokens x stratified",
    "tokens x importance",
    "loss x hard",
    *(
        EXACT + selector
        for selector in (
            "facility_location", "herding", "importance", "pivotal", "cube", "gram_schmidt_walk", "balanced",
            "calibrated", "craig", "gradient_matching",
        )
    ),
    EXACT + "cube @ remembered(age={age})",
    EXACT + "balanced @ remembered(age={age})",
    "balanced, feedback={scorer_options: {num_blocks: 3}, selector: balanced, selector_options: {start: systematic}, "
    "feedback: 0.99}",
    "balanced, feedback @ remembered={scorer_options: {num_blocks: 3}, selector: balanced, "
    "selector_options: {start: systematic}, feedback: 0.99, "
    "scoring: {way: remembered, age: {age}}}",
    "following={recipe: following}",
)  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "small Llama": {
        "age": 32,
        "sizes": {"moments": (200,), "population": 384, "large": 128, "budgets": (64, 32, 16)},
        "overrides": [],
    },
    "SmolLM2-135M": {
        "age": 10,
        "sizes": {"moments": (10,), "population": 192, "large": 64, "budgets": (32, 16, 8)},
        "overrides": ["--lora_r", "4", "--lora_alpha", "8"],
    },
}
QUICK = {"moments": (1,), "population": 24, "large": 8, "budgets": (4, 2), "draws": 20, "cost_rows": 4}


def main() -> None:
    options = parse()
    there = options.output.read_text(encoding="utf-8").splitlines() if options.output.is_file() else []
    lines = [] if options.quick else [json.loads(line) for line in there]
    if not options.table:
        torch.set_num_threads(1)
        found = [line for name in options.models for line in measured(name, options)]
        order = list(dict.fromkeys(line["method"] for line in [*lines, *found]))
        anew = {(line["model"], line["method"]) for line in found}
        lines = [line for line in lines if (line["model"], line["method"]) not in anew] + found
        models = list(SETTINGS)
        lines.sort(key=lambda line: (models.index(line["model"]), line["objective"] != "tokens", -line["budget"],
                                     order.index(line["method"])))  # fmt: skip
    if options.quick:
        print(short_page(lines), page(lines), sep="\n\n")
        return
    write_lines(options.output, lines)
    write_between(SELECTORS, "windows", short_page(lines))
    write_between(MEASUREMENTS, "windows", page(lines))
    write_between(README, "windows", sentence(lines))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "small-llama", help="the small Llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--models", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=METHODS, help="texts, {age} being that of the model's features")
    parser.add_argument("--draws", type=int, default=1600, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the pages")
    parser.add_argument("--quick", action="store_true")
    return parser.parse_args()


def measured(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """The lines of one model."""
    given = SETTINGS[name]
    path = options.model if name == "small Llama" else smollm2_folder()
    if not (path / "config.json").is_file():
        sys.exit(f"A model should be in {path}: run benchmarks/small_llama.py. Found none.")
    overrides = ["--model_name_or_path", str(path), "--datasets", f"[{{path: {options.data}/train.jsonl}}]"]
    settings = load_settings(ROOT / "examples" / "bench.yaml", [*overrides, *given["overrides"]])
    tokenizer = load_tokenizer(settings.model)
    sizes = {"draws": options.draws, "cost_rows": 16, "cost_rounds": 3, **given["sizes"]}
    sizes |= QUICK if options.quick else {}
    start = time.process_time()
    lines = bench_gradients(
        load_model(settings),
        tokenizer,
        read_mixture(settings, tokenizer).dataset,
        parse_methods([text.replace("{age}", str(given["age"])) for text in options.methods]),
        objectives=("tokens", "sources"),
        learning_rate=float(settings.training["learning_rate"]),
        source_column=SOURCE_COLUMN,
        seed=options.seed,
        console=Console(stderr=True),
        **sizes,
    )
    print(f"{name}: {time.process_time() - start:.0f} s of a core", file=sys.stderr, flush=True)
    return [{**line, "model": name} for line in lines if line["metric"] == "adam"]


# ---- pages -----------------------------------------------------------------------------------------------------------


def groups(lines: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """By model and objective."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        found.setdefault((line["model"], line["objective"]), []).append(line)
    return found


def setting(line: dict[str, Any]) -> str:
    """Of one model, in a sentence."""
    return (
        f"{line['model']} ({line['trained_numbers']:,} trained parameters, LoRA) after {line['after_steps']} AdamW "
        f"steps; P = {line['population']}, N = {line['large']}, {line['draws']} steps after {line['warm_up']} that are "
        f"not measured; c = {line['c']:.2f}"
    )


def page(lines: Sequence[dict[str, Any]]) -> str:
    origin = f"mathmix, max_length 256; seed {lines[0]['seed']}; {source(list(lines))}"
    text = f"""`python benchmarks/windows.py`; {origin}

*effective*: the share of the large batch that a random choice out of it would need to be as near to the large batches'
average over so many steps (corrected for the finite pool); *Adam's 0.9*: over the average that Adam steps along.
*worth*: effective examples over the longest window by the cost of a step, in tokens / in padded positions of
micro-batches of {lines[0]["micro_batch"]} rows, scoring included; random accumulation is 1. Behind the worth of the
smallest batch all columns are its own. *bias*: bias² as a share of the error given the pool, of choices without a past
(nothing carried). *error*: to the large
batches' average over the longest window, a random choice = 1, and the same *rescaled* by the best scalar; *length*:
along that average. *weights*: mean weights of the source, and of the single example, with least and with most; 1 is
right, and ± is what one of them is off by chance. Sorted by the smallest batch's effective batch over the longest
window."""
    parts = [text]
    for (_, objective), here in groups(lines).items():
        parts.append(f"**Objective `{objective}`**, {setting(here[0])}.\n\n{windows(here)}")
    return "\n\n".join(parts)


def short_page(lines: Sequence[dict[str, Any]]) -> str:
    """What selectors are worth with exact features: one model, the objective of a plain run."""
    (model, objective), here = next(iter(groups(lines).items()))
    budgets, last = sorted({line["budget"] for line in here}, reverse=True), longest(here[0])
    found = {(line["method"], line["budget"]): line for line in here}
    names = [line["method"] for line in here if line["budget"] == budgets[-1]]
    names.sort(key=lambda name: -found[name, budgets[-1]]["windows"][last]["effective"])
    rows = []
    for name in names:
        cells = [f"`{name.removeprefix(EXACT)}`"]
        for budget in budgets:
            of = found[name, budget]["windows"]
            cells.append(f"{of['1']['effective']:.2f} / {of[last]['effective']:.2f}")
        line = found[name, budgets[-1]]
        cells += [f"{100 * line['bias_given_pool']:.1f} %", f"{line['windows'][last]['length']:.2f}"]
        cells.append(extremes(line["weights"]["sources"].values(), line["weights"]["sources_noise"]))
        rows.append(cells)
    heads = ["", *(f"{budget} of {here[0]['large']}: 1 / {last} steps" for budget in budgets)]
    heads += ["bias given the pool", f"length over {last}", "weights of sources"]
    models = {name for name, _ in groups(lines)}
    more = "All columns, the other objective" + (" and another model" if len(models) > 1 else "")
    age, whole, small = SETTINGS[model]["age"], here[0]["large"], budgets[-1]
    return f"""Effective batch, as a share of the large batch, of one step and of the average over {last} steps; bias²
as a share of the error given the pool, length and mean weights of sources (least and most; ± by chance) of {small} of
{whole}. Exact features of three blocks, or remembered ones, {age} steps old. Objective `{objective}`;
{setting(here[0])}.
{more}: [measurements](../evidence/measurements.md#over-many-steps).

{table(heads, rows)}

`python benchmarks/windows.py`; seed {here[0]["seed"]}; {source(here)}"""


def sentence(lines: Sequence[dict[str, Any]]) -> str:
    """What feedback is worth over the longest window, beside the best choice that carries nothing: for the README."""
    here = next(iter(groups(lines).values()))
    budget, last = sorted({line["budget"] for line in here})[1], longest(here[0])
    worth = {line["method"]: line["windows"][last]["effective"] for line in here if line["budget"] == budget}
    carrying = ("balanced, feedback", "balanced, feedback @ remembered", "following")
    best = max(value for name, value in worth.items() if name not in carrying)
    exact, remembered, counts = (worth[name] for name in carrying)
    commits = ", ".join(sorted({line["commit"] for line in here}))
    where = f"[all](docs/methods/selectors.md#over-many-steps); seed {here[0]['seed']}, {commits}"
    return (
        f"As an estimate, averaged over {last} steps with a pass over the data every "
        f"{here[0]['population'] // here[0]['large']}, {budget} rows out of {here[0]['large']} are worth {best:.2f} "
        "of the large batch by the best choice that carries nothing\n"
        f"over, and with error feedback {exact:.2f} on exact features, {remembered:.2f} on remembered ones and "
        f"{counts:.2f} on label counts; the last two run no forward to choose ({where})."
    )


if __name__ == "__main__":
    main()

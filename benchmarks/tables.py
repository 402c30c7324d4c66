"""Markdown tables of the lines in benchmarks/results, as docs/evidence/measurements.md quotes them.

python benchmarks/tables.py gradients [FILE]
python benchmarks/tables.py training [FILE]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from corebatch.bench.gradients.lines import longest, worth
from pages import table

RESULTS = Path(__file__).parent / "results"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def source(lines: list[dict[str, Any]]) -> str:
    """Where lines come from, in a sentence."""
    commits = sorted({str(line["commit"]) for line in lines})
    machine = lines[0]["hardware"]
    days = sorted({line["time"][:10] for line in lines})
    return (
        f"{', '.join(days)}; commit {', '.join(commits)}; {machine['machine']}, {machine['cpu_cores']} cores, "
        f"{machine['torch_threads']} threads, GPU {machine['gpu'] or 'none'}; torch {lines[0]['versions']['torch']}, "
        f"transformers {lines[0]['versions']['transformers']}."
    )


def windows(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown of the lines of one model, moment, metric and objective: a row a method; of the smallest batch the most
    effective over the longest window first.

    Worth is by the first c that was given, else by the measured one.
    """
    found = {(line["method"], line["budget"]): line for line in lines}
    budgets = sorted({line["budget"] for line in lines}, reverse=True)
    last = longest(lines[0])
    steps = [length for length in lines[0]["windows"] if length.isdigit()]
    heads = ["method"]
    for budget in budgets:
        heads += [f"{budget}: effective over {' / '.join(steps)}", "worth"]
    heads += ["Adam's 0.9", "bias", f"error over {last}, rescaled", "length", "weights of sources", "of examples"]
    rows = []
    for line in sorted(lines, key=lambda line: -line["windows"][last]["effective"]):
        if line["budget"] != budgets[-1]:
            continue
        row = [line["method"]]
        for each in (found[line["method"], budget] for budget in budgets):
            cost = next(iter(each["cost_ratios"].values()), each)
            row.append(" / ".join(f"{each['windows'][length]['effective']:.2f}" for length in steps))
            row.append(" / ".join(f"{worth(each, cost[f'cost_{unit}']):.2f}" for unit in ("tokens", "positions")))
        window, weights = line["windows"][last], line["weights"]
        row += [f"{line['windows']['adam']['effective']:.2f}", f"{100 * line['bias_given_pool']:.1f} %"]
        row += [f"{window['error']:.2f}, {window['error_rescaled']:.2f}", f"{window['length']:.2f}"]
        row += [extremes(weights["sources"].values(), weights["sources_noise"])]
        row += [extremes((weights["least"], weights["greatest"]), weights["noise"])]
        rows.append(row)
    return table(heads, rows)


def extremes(values: Iterable[float], noise: float) -> str:
    """The least and the greatest, and what each is off by chance."""
    known = list(values)
    return f"{min(known):.2f} to {max(known):.2f} (± {noise:.2f})"


def gradients(path: Path, metric: str = "adam") -> None:
    """Of one moment a table; lines of before there were windows have a table of their own kind."""
    lines = [line for line in read(path) if line["metric"] == metric]
    first = lines[0]
    if "windows" in first:
        for steps in dict.fromkeys(line["after_steps"] for line in lines):
            c = next(iter(first["cost_ratios"]), f"{first['c']:.2f}")
            print(f"{metric} metric after {steps} steps, N = {first['large']}, P = {first['population']}, c = {c}\n")
            print(windows([line for line in lines if line["after_steps"] == steps]))
        return
    print(
        f"{metric} metric, N = {first['large']}, P = {first['population']}, {first['draws']} draws, "
        f"seed {first['seed']}. {source(lines)}\n"
    )
    columns = [
        *(("after steps", "after_steps", "{}"), ("M", "budget", "{}"), ("method", "method", "{}")),
        ("error (random = 1)", "error_to_large", "{:.2f} ± {spread:.2f}"),
        *(("effective batch", "effective_batch", "{:.2f}"), ("uncorrected", "effective_batch_uncorrected", "{:.2f}")),
        *(("bias", "bias_share", "{:.0%}"), ("length", "length", "{:.2f}"), ("cosine", "cosine", "{:.2f}")),
    ]
    if any("per_cost_tokens" in line for line in lines):  # from when the ways of scoring were measured as well
        columns += [
            *(("length to large", "length_to_large", "{:.2f}"), ("s", "s", "{:.2f}")),
            ("s, all logits", "s_all_logits", "{:.2f}"),
            *(("tokens of the chosen", "tokens_cost", "{:.2f}"), ("cost by tokens", "cost_tokens", "{:.1f}")),
            *(("per cost", "per_cost_tokens", "{:.2f}"), ("by examples", "per_cost_examples", "{:.2f}")),
            ("per cost, checkpointing", "per_cost_tokens_checkpointing", "{:.2f}"),
            ("and reused", "per_cost_tokens_reuse", "{:.2f}"),
        ]
        ratios = list(dict.fromkeys(c for line in lines for c in line.get("per_cost_ratios", {})))
        columns += [(f"per cost, c = {c}", c, "{:.2f}") for c in ratios]
    print("| " + " | ".join(title for title, *_ in columns) + " |")
    print("|" + "---|" * len(columns))
    for line in lines:
        given = {c: at["tokens"] for c, at in line.get("per_cost_ratios", {}).items()}
        cells = []
        for _, key, form in columns:
            value = {**given, **line}.get(key)
            cells.append("-" if value is None else form.format(value, spread=line["error_spread"]).replace("%", " %"))
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind == "gradients":
        gradients(Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / "gradients.jsonl", *sys.argv[3:4])
    elif kind == "training":
        from training import summarise  # it loads torch, which tables of gradients do without

        path = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / "training.jsonl"
        print(source(read(path)) + "\n")
        summarise(path)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

"""Markdown tables of the lines in benchmarks/results, as docs/evidence/measurements.md quotes them.

python benchmarks/tables.py gradients [FILE]
python benchmarks/tables.py training [FILE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

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


def gradients(path: Path, metric: str = "adam") -> None:
    lines = [line for line in read(path) if line["metric"] == metric]
    first = lines[0]
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

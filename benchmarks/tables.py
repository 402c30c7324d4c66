"""Markdown tables of the lines in benchmarks/results, as docs/measurements.md quotes them.

python benchmarks/tables.py gradients [FILE]
python benchmarks/tables.py training [FILE]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from training import summarise

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
    print("| after steps | M | method | error (random = 1) | effective batch | uncorrected | bias | length | cosine |")
    print("|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        print(
            f"| {line['after_steps']} | {line['budget']} | {line['method']} "
            f"| {line['error_to_large']:.2f} ± {line['error_spread']:.2f} | {line['effective_batch']:.2f} "
            f"| {line['effective_batch_uncorrected']:.2f} | {100 * line['bias_share']:.0f} % "
            f"| {line['length']:.2f} | {line['cosine']:.2f} |"
        )


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind == "gradients":
        gradients(Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / "gradients.jsonl", *sys.argv[3:4])
    elif kind == "training":
        path = Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS / "training.jsonl"
        print(source(read(path)) + "\n")
        summarise(path)
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main()

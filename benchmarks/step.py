"""The times and memory of steps that docs quote: `python benchmarks/step.py`.

Runs `corebatch bench step` for each size, LoRA and all weights, with lengths from the mixture. Without --sizes the
sizes that the machine is for: the small ones on a CPU (hours on two cores), the large ones on a GPU. Each size adds
its lines to step.jsonl in --output, and writes its page beside it. --quick runs each with tiny batches, to see that it
runs.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
MATHMIX = Path(os.environ.get("COREBATCH_MATHMIX") or ROOT.parent / "shared" / "data" / "mathmix")
BOTH = ["--adapter", "lora", "--adapter", "full", "--checkpointing"]
SIZES = {
    "cpu": {
        "llama-10m": [*BOTH, "--steps", "2", "--rounds", "3"],
        "llama-30m": [*BOTH, "--steps", "2", "--rounds", "3"],
    },
    "gpu": {
        "llama-3.2-1b": [*BOTH, "--precision", "bfloat16", "--steps", "4", "--rounds", "5"],
        "phi-2": [*BOTH, "--precision", "bfloat16", "--steps", "4", "--rounds", "3"],
    },
}
QUICK = [
    *("--large", "16", "--micro-batch", "2", "--ratios", "2,4"),
    *("--max-length", "48", "--steps", "1", "--rounds", "1"),
]


def main() -> None:
    sizes = {**SIZES["cpu"], **SIZES["gpu"]}
    here = SIZES["gpu" if torch.cuda.is_available() else "cpu"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(sizes), default=list(here), metavar="NAME")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--lengths", type=Path, default=MATHMIX / "train.jsonl")
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results", help="a folder")
    args = parser.parse_args()
    if not args.lengths.is_file():
        parser.error(f"no rows to take lengths from at {args.lengths}: name JSON lines with --lengths")
    for size in args.sizes:
        page = args.output / f"step-{size}-{time.strftime('%Y-%m-%d')}.md"
        command = [sys.executable, "-m", "corebatch.cli.main", "bench", "step", size, *sizes[size]]
        command += ["--lengths", args.lengths, "--output", args.output / "step.jsonl", "--report", page]
        words = [str(word) for word in [*command, *(QUICK if args.quick else [])]]
        print("+", *words, flush=True)
        subprocess.run(words, check=True)


if __name__ == "__main__":
    main()

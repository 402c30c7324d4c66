"""Every measurement that README and docs quote, one after the other: `make bench`. Hours on two CPU cores.

    python benchmarks/run_all.py [--output benchmarks/results] [--quick]

--quick runs each with tiny sizes, to see that it runs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
WRITTEN = ("bias", "many_rows", "subset", "dual_encoders")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "results")
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--model", type=Path, default=HERE.parent / ".cache" / "small-llama")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if not (args.data / "train.jsonl").is_file():
        sys.exit(f"The measurements need a mixture with train.jsonl and test.jsonl. Found none in {args.data}.")
    quick = args.quick
    python, model, data = sys.executable, str(args.model), str(args.data)
    commands = []
    if not (args.model / "config.json").is_file():
        steps = ["--steps", "4"] if quick else []
        commands.append([python, HERE / "small_llama.py", "--data", data, "--output", model, *steps])
    windows = [python, HERE / "windows.py", "--model", model, "--data", data, "--output", args.output / "windows.jsonl"]
    windows += ["--quick"] if quick else []
    training = [
        python,
        HERE / "training.py",
        "--model",
        model,
        "--data",
        data,
        "--output",
        args.output / "training.jsonl",
    ]
    if quick:
        training += ["--steps", 2, "--every", 2, "--seeds", "0", "--arms", "plain 16;pivotal 16"]
    commands += [
        [python, HERE / "selection.py", "--output", args.output / "selection.jsonl", *(["--quick"] if quick else [])],
        [python, HERE / "scoring.py", "--data", f"{data}/train.jsonl", "--output", args.output / "scoring.jsonl"],
        windows,
        training,
        [python, HERE / "ranks.py", "--lengths", f"{data}/train.jsonl", "--output", args.output / "ranks.jsonl"],
        [python, HERE / "step.py", "--lengths", f"{data}/train.jsonl", "--output", args.output],
    ]
    if quick:
        commands[-1].append("--quick")
        commands[-2].append("--quick")
    else:
        readouts = [python, HERE / "readouts.py", "--model", model, "--data", f"{data}/train.jsonl"]
        commands.append([*readouts, "--output", args.output / "readouts.jsonl"])
        # These two, as windows.py, write their tables into docs/methods/selectors.md.
        commands += [[python, HERE / f"{name}.py", "--output", args.output / f"{name}.jsonl"] for name in WRITTEN]
        tiny = args.model.with_name("tiny-llama")
        if not (tiny / "config.json").is_file():
            sizes = ["--vocabulary", "2048", "--hidden", "128", "--blocks", "4"]
            commands.append([python, HERE / "small_llama.py", "--data", data, "--output", tiny, *sizes])
        noise = [python, HERE / "noise.py", "--model", model, "--tiny", tiny, "--data", data]
        commands.append([*noise, "--output", args.output / "noise.jsonl"])
    by_length = [python, HERE / "micro_batches.py", "--model", model, "--data", data]
    commands.append([*by_length, "--output", args.output / "micro_batches", *(["--quick"] if quick else [])])
    feedback = [python, HERE / "feedback.py", "--model", model, "--data", data]
    commands.append([*feedback, "--output", args.output / "feedback.jsonl", *(["--quick"] if quick else [])])
    ablations = [python, HERE / "ablations.py", "--model", model, "--data", data]
    commands.append([*ablations, "--output", args.output / "ablations.jsonl", *(["--quick"] if quick else [])])
    advice = [python, HERE / "advice.py", "--small-llama", model, "--data", data]
    commands.append([*advice, "--output", args.output / "advice.jsonl", *(["--quick"] if quick else [])])
    for command in commands:
        words = [str(word) for word in command]
        print("+", *words, flush=True)
        subprocess.run(words, check=True)


if __name__ == "__main__":
    main()

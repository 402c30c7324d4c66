"""How long a mixture takes to load at the first start, and at the second, when its tokenised rows are kept.

    python benchmarks/start_up.py --output benchmarks/results/start_up.jsonl

Each start is a process of its own. A JSON line for each: seconds of the wall clock and of CPU (with workers) in
`load_mixture`, without imports and the tokenizer; of later starts also those from the start of `corebatch train` to the
line of its first step.
"""

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

import pages

OUTPUT = pages.ROOT / "benchmarks" / "results" / "start_up.jsonl"


def make(folder: Path, rows: int) -> None:
    """A file of short questions with answers, and a tokenizer trained on its beginning."""
    generator = random.Random(0)
    with (folder / "rows.jsonl").open("w") as stream:
        for i in range(rows):
            a, b = generator.randrange(1000), generator.randrange(1000)
            row = {"prompt": f"Question {i}: what is {a} plus {b}?", "completion": f"{a} plus {b} is {a + b}."}
            stream.write(json.dumps({**row, "source": f"s{i % 7}"}) + "\n")
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=2000,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    with (folder / "rows.jsonl").open() as stream:
        tokenizer.train_from_iterator([next(stream) for _ in range(min(rows, 2000))], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>").save_pretrained(folder)


def start(folder: Path, processes: int) -> dict[str, float]:
    """Loads the mixture in this process."""
    from transformers import AutoTokenizer

    from corebatch.mixture import load_mixture

    tokenizer = AutoTokenizer.from_pretrained(folder)
    begun, used = time.perf_counter(), _cpu()
    mixture = load_mixture([str(folder / "rows.jsonl")], tokenizer, dataset_num_proc=processes)
    return {"rows": len(mixture.dataset), "seconds": time.perf_counter() - begun, "cpu_seconds": _cpu() - used}


def _cpu() -> float:
    return sum(resource.getrusage(who).ru_utime for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def first_step(folder: Path, environment: Mapping[str, str]) -> float:
    """Seconds of the wall clock from the start of `corebatch train` to the line of its first step."""
    run = folder / "run"
    settings = {"model_name_or_path": str(folder / "model"), "datasets": [{"path": str(folder / "rows.jsonl")}]}
    settings |= {"output_dir": str(run), "max_steps": 2, "use_peft": False, "use_cpu": True, "save_strategy": "no"}
    config = folder / "config.yaml"
    config.write_text(json.dumps(settings))
    command = [Path(sys.executable).with_name("corebatch"), "train", config]
    begun, log = time.perf_counter(), run / "selection.jsonl"
    with subprocess.Popen(list(map(str, command)), env=environment, stdout=subprocess.DEVNULL) as process:
        while not (log.exists() and log.read_text()):
            if process.poll() is not None:
                raise SystemExit(f"corebatch train ended with {process.returncode} before its first step.")
            time.sleep(0.02)
        seconds = time.perf_counter() - begun
        process.wait()
    shutil.rmtree(run)
    return seconds


def save_model(folder: Path) -> None:
    """A model that costs nothing: what is measured is the way to its first step."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=2100, num_key_value_heads=1, **sizes)).save_pretrained(folder / "model")
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder / "model")


def measured(rows: int, processes: int, rounds: int) -> list[dict[str, Any]]:
    """A line for the first start and each of `rounds` later ones, with provenance."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, rows)
        save_model(folder)
        environment = {**os.environ, "COREBATCH_CACHE": str(folder / "kept"), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--folder", name, "--processes", str(processes)]
        for number in range(1, rounds + 2):
            time.sleep(3)  # the file settles: a younger one is read again at the next start
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            line = {"start": number, "processes": processes, **json.loads(done.stdout.splitlines()[-1])}
            lines.append(line | {"megabytes": (folder / "rows.jsonl").stat().st_size / 1e6} | pages.provenance(0))
        first_step(folder, environment)  # the command asks for rows of its own settings: this start makes them
        for line in lines[1:]:
            line["first_step_seconds"] = first_step(folder, environment)
            print(json.dumps(line), flush=True)
    return lines


def page(lines: Sequence[dict[str, Any]]) -> str:
    """What docs/running/data.md says of it."""
    first, *later = lines

    def spread(key: str) -> str:
        values = [line[key] for line in later]
        return f"{statistics.median(values):.1f} s ({min(values):.1f} to {max(values):.1f})"

    return (
        f"{first['rows']:,} short rows ({first['megabytes']:.0f} MB of JSON lines), by the clock: `load_mixture` takes "
        f"{first['seconds']:.0f} s at the first start ({first['cpu_seconds']:.0f} s of CPU) and {spread('seconds')} at "
        f"later ones; a later `corebatch train` has made its first step after {spread('first_step_seconds')}, imports "
        f"included. Medians and extremes of {len(later)} starts; {pages.origin(first)}; `benchmarks/start_up.py`."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5, help="later starts")
    parser.add_argument("--output", type=Path, help="file of lines; docs/running/data.md is written as well")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--folder", type=Path, help="of a start that this script begins")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(start(options.folder, options.processes)))
        return
    if options.table:
        lines = [json.loads(line) for line in (options.output or OUTPUT).read_text(encoding="utf-8").splitlines()]
    else:
        lines = measured(options.rows, options.processes, options.rounds)
    if options.output and not options.table:
        pages.write_lines(options.output, lines)
    if options.output or options.table:
        pages.write_between(pages.ROOT / "docs" / "running" / "data.md", "start-up", page(lines))


if __name__ == "__main__":
    main()

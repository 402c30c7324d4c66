"""How long a mixture takes to load at the first start, and at the second, when its tokenised rows are kept.

    python benchmarks/start_up.py --rows 1000000 --processes 1

Each start is a process of its own. Prints a JSON line for each: seconds of the wall clock and of CPU (with workers) in
`load_mixture`, without imports and the tokenizer.
"""

import argparse
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="of a start that this script begins")
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(start(options.folder, options.processes)))
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, options.rows)
        environment = {**os.environ, "COREBATCH_CACHE": str(folder / "kept"), "TOKENIZERS_PARALLELISM": "false"}
        command = [sys.executable, __file__, "--folder", name, "--processes", str(options.processes)]
        for number in (1, 2):
            time.sleep(3)  # the file settles: a younger one is read again at the next start
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            line = {"start": number, "processes": options.processes, "cores": os.cpu_count(), "cpu": platform.machine()}
            print(json.dumps({**line, **json.loads(done.stdout.splitlines()[-1])}), flush=True)


if __name__ == "__main__":
    main()

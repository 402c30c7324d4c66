"""What it costs to choose over several ranks: the time between ranks, and the bytes that travel.

    python benchmarks/ranks.py --lengths ../shared/data/mathmix/train.jsonl --output benchmarks/results/ranks.jsonl

Starts ranks over gloo (one thread each) for each seed. A Llama of 5.9 M parameters, random, with LoRA trains on
random tokens with the lengths of the mixture; every row of the pool is scored at every step. A line for each step: the
milliseconds of each phase, the share of a step that exchange and selection take, bytes by what for, rows moved and how
unequal ranks' tokens were. --quick runs tiny batches, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import LlamaForCausalLM, TrainingArguments, set_seed

from corebatch.record.provenance import provenance
from corebatch.trainer import CoresetConfig, CoresetTrainer
from small_llama import VOCABULARY, configuration

BETWEEN = ("exchange", "select")
FIRST = 1
"""Steps that are left out: what is made once is made there."""


def rows(lengths: list[int], seed: int) -> Dataset:
    """Random tokens of these lengths, the last third of them trained."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * (2 * length // 3) + ids[2 * length // 3 :]})
    return Dataset.from_list(made)


def collate(batch: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in batch)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.tensor([[*row[key], *[value] * (width - len(row[key]))] for row in batch])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in batch]
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)}


def train(args: argparse.Namespace) -> None:
    """One rank of one run."""
    torch.set_num_threads(1)
    set_seed(args.seed)
    model = LlamaForCausalLM(configuration())
    model = get_peft_model(model, LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]))
    ranks = int(os.environ["WORLD_SIZE"])
    settings = TrainingArguments(
        args.output,
        per_device_train_batch_size=args.micro_batch,
        gradient_accumulation_steps=args.large // (args.pool_factor * args.micro_batch * ranks),
        max_steps=args.steps + FIRST,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
        seed=args.seed,
    )
    lengths = json.loads(Path(args.lengths).read_text())
    CoresetTrainer(
        model=model,
        args=settings,
        train_dataset=rows(lengths, args.seed),
        data_collator=collate,
        coreset=CoresetConfig(pool_factor=args.pool_factor, scoring="full", seed=args.seed),
    ).train()
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)


def lengths_of(path: Path, most: int) -> list[int]:
    """Lengths of rows in tokens, at four characters a token."""
    texts = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [max(8, min(most, len(row["prompt"] + row["completion"]) // 4)) for row in texts]


def measure(args: argparse.Namespace, seed: int, folder: Path) -> list[dict[str, object]]:
    """Runs all ranks for one seed, and reads the record that they leave."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={args.ranks}", __file__]
    (folder / "lengths.json").write_text(json.dumps(lengths_of(args.lengths, args.max_length)))
    words = ["--lengths", folder / "lengths.json", "--output", folder / f"run-{seed}", "--seed", seed]
    words += ["--large", args.large, "--pool-factor", args.pool_factor, "--micro-batch", args.micro_batch]
    words += ["--steps", args.steps, "--rank"]
    subprocess.run([sys.executable, *launch, *map(str, words)], env=environment, check=True, stdout=subprocess.DEVNULL)
    lines = [json.loads(line) for line in (folder / f"run-{seed}" / "selection.jsonl").read_text().splitlines()]
    found = []
    for line in lines[FIRST:]:
        total = sum(line["ms"].values())
        found.append(
            {
                "benchmark": "ranks",
                "seed": seed,
                "ranks": args.ranks,
                "large": line["pool_examples"],
                "small": line["chosen_examples"],
                "step": line["step"],
                "ms": line["ms"],
                "between_share": sum(line["ms"][phase] for phase in BETWEEN) / total,
                "with_repack_share": sum(line["ms"][phase] for phase in (*BETWEEN, "repack")) / total,
                "bytes_sent": line["bytes_sent"],
                "rows_moved": line["rows_moved"],
                "token_imbalance": line["token_imbalance"],
                **provenance(),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=Path, required=True, help="JSON lines with prompt and completion")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--large", type=int, default=256, help="N, over all ranks")
    parser.add_argument("--pool-factor", type=int, default=2)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.rank:
        train(args)
    if args.quick:
        args.large, args.micro_batch, args.steps, args.max_length, args.seeds = 16, 2, 1, 24, [0]
    with tempfile.TemporaryDirectory() as name:
        lines = [line for seed in args.seeds for line in measure(args, seed, Path(name))]
    with open(args.output, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    for key in ("between_share", "with_repack_share", "token_imbalance", "rows_moved"):
        values = [line[key] for line in lines]
        print(f"{key}: median {statistics.median(values):.4g}, from {min(values):.4g} to {max(values):.4g}")


if __name__ == "__main__":
    main()

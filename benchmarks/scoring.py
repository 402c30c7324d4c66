"""What each scorer costs, in forwards of the model: `python benchmarks/scoring.py`.

Every scorer is timed beside (a) a plain forward without gradients that builds all logits, (b) such a forward whose
head runs on label positions only, with the losses (scorer `loss`), and (c) a training forward and backward. All run
on the same micro-batches, interleaved one micro-batch at a time in an order that changes, so that whatever else the
machine does falls on all alike. A repeat is one pass over the rows; a ratio is taken within a repeat.

Each line of the output is a JSON object, for one arm: `forwards` is its cost in units of (a), `label_forwards` of
(b), `training` of (c); medians over the repeats, with the least and the greatest. `forwards_quiet` takes each
micro-batch's least time over the repeats instead: what a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import psutil
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from corebatch.demo import smollm2_folder
from corebatch.mixture import PaddingCollator, load_mixture
from corebatch.model.modes import scoring_mode
from corebatch.record.provenance import commit_of_corebatch, hardware, versions
from corebatch.scoring import SCORERS

ROOT = Path(__file__).resolve().parents[1]
MATHMIX = Path(os.environ.get("COREBATCH_MATHMIX") or ROOT.parent / "shared" / "data" / "mathmix")
VOCABULARY = 4096
PLAIN, LABELS, TRAINING = "plain_forward", "loss", "training"
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "last_layer": [{"num_blocks": 1}, {"num_blocks": 3}],
    "representation": [{"pooling": "mean"}],
}


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    name, model, tokenizer = load(options)
    batches = micro_batches(options, tokenizer)
    arms = make_arms(model, options.scorers)
    seconds, busy = measure(arms, batches, options)
    common = {
        "benchmark": "scoring",
        "seed": options.seed,
        "model": name,
        "parameters": sum(p.numel() for p in model.get_base_model().parameters()),
        "adapter": f"LoRA r {options.rank} on q, k, v, o",
        "data": options.data.parent.name + "/" + options.data.name,
        "rows": options.rows,
        "micro_batch": options.micro_batch,
        "tokens": sum(int(b["attention_mask"].sum()) for b in batches),
        "padded_tokens": sum(b["input_ids"].numel() for b in batches),
        "labels": sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches),
        "repeats": options.repeats,
        "threads": options.threads,
        "busy_cores": round(busy, 2),
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit_of_corebatch() or "unknown",
        "hardware": hardware(),
        "versions": versions(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with open(options.output, "a", encoding="utf-8") as file:
        for arm in arms:
            line = {"arm": arm, **summary(arm, seconds), **common}
            file.write(json.dumps(line) + "\n")
            print(
                f"{arm:28} {line['ms']:9.0f} ms {line['forwards']:7.3f} forwards "
                f"({line['forwards_min']:.3f} to {line['forwards_max']:.3f}, quiet {line['forwards_quiet']:.3f}), "
                f"{line['label_forwards']:.3f} of (b), {line['training']:.3f} of (c)"
            )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default="llama-10m",
        help="llama-10m (random weights), smollm2, a model's folder, or a config.json (random weights)",
    )
    parser.add_argument("--data", type=Path, default=MATHMIX / "train.jsonl", help="JSONL that corebatch can read")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rank", type=int, default=16, help="of LoRA")
    parser.add_argument("--scorers", nargs="*", default=list(SCORERS), choices=list(SCORERS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "scoring.jsonl")
    options = parser.parse_args()
    if not options.data.is_file():
        parser.error(f"no data at {options.data}: name a JSONL file with --data")
    return options


def load(options: argparse.Namespace) -> tuple[str, Any, Any]:
    """(name, model with LoRA whose B is not zero, tokenizer)."""
    torch.manual_seed(options.seed)
    what = options.model
    if what == "llama-10m":
        config = LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=320, intermediate_size=864, num_hidden_layers=7, num_attention_heads=5,
            tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )  # fmt: skip
        name, model, tokenizer = what, LlamaForCausalLM(config), small_tokenizer(options.data)
    elif what.endswith(".json"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(what))
        name, tokenizer = Path(what).stem, small_tokenizer(options.data)
    else:
        folder = smollm2_folder() if what == "smollm2" else Path(what)
        name = folder.name
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    lora = LoraConfig(
        r=options.rank, lora_alpha=2 * options.rank, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]
    )
    model = get_peft_model(model, lora)
    for key, parameter in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter, std=0.02)
    return name, model, tokenizer


def small_tokenizer(data: Path) -> Any:
    """Byte-level BPE of VOCABULARY tokens, learned from the data itself."""
    bpe = ByteLevelBPETokenizer()
    special = ["<pad>", "<bos>", "<eos>"]
    bpe.train([str(data)], vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, pad_token=special[0], bos_token=special[1], eos_token=special[2]
    )


def micro_batches(options: argparse.Namespace, tokenizer: Any) -> list[dict[str, torch.Tensor]]:
    """`rows` rows drawn at random, padded micro-batch by micro-batch."""
    dataset = load_mixture([{"path": str(options.data)}], tokenizer, max_length=options.max_length).dataset
    drawn = random.Random(options.seed).sample(range(len(dataset)), options.rows)
    collate = PaddingCollator(tokenizer)
    return [
        collate([dataset[i] for i in drawn[start : start + options.micro_batch]])
        for start in range(0, options.rows, options.micro_batch)
    ]


Arm = Callable[[dict[str, torch.Tensor]], Any]
Table = list[list[float]]


def make_arms(model: Any, names: list[str]) -> dict[str, Arm]:
    inputs = ("input_ids", "attention_mask")

    def plain(batch: dict[str, torch.Tensor]) -> Any:
        with scoring_mode(model):
            return model(**{key: batch[key] for key in inputs}, use_cache=False).logits

    def training(batch: dict[str, torch.Tensor]) -> None:
        model.train()
        model(**batch, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    arms: dict[str, Arm] = {PLAIN: plain, LABELS: scoring(model, "loss", {}), TRAINING: training}
    for name in names:
        for settings in VARIANTS.get(name, [{}]):
            label = " ".join([name, *(f"{key}={value}" for key, value in settings.items())])
            arms.setdefault(label, scoring(model, name, settings))
    return arms


def scoring(model: Any, name: str, settings: dict[str, Any]) -> Arm:
    scorer = SCORERS[name](**settings)
    return lambda batch: scorer.score(model, batch)


def measure(
    arms: dict[str, Arm], batches: list[dict[str, torch.Tensor]], options: argparse.Namespace
) -> tuple[dict[str, Table], float]:
    """Seconds of each arm in each repeat by micro-batch, and how many cores others kept busy meanwhile."""
    for arm in arms.values():
        arm(batches[0])  # traces, kernels, allocator
    order = list(arms)
    shuffle = random.Random(options.seed).shuffle
    seconds: dict[str, Table] = {name: [] for name in arms}
    clock, process = cores_busy(), psutil.Process()
    began, own = time.perf_counter(), sum(process.cpu_times()[:2])
    for _ in range(options.repeats):
        for name in arms:
            seconds[name].append([])
        for batch in batches:
            shuffle(order)
            for name in order:
                start = time.perf_counter()
                arms[name](batch)
                seconds[name][-1].append(time.perf_counter() - start)
    others = cores_busy() - clock - (sum(process.cpu_times()[:2]) - own)
    return seconds, max(0.0, others / (time.perf_counter() - began))


def cores_busy() -> float:
    """Seconds that all cores together have worked since the machine started."""
    times = psutil.cpu_times()
    return times.user + times.system + getattr(times, "nice", 0.0)


def summary(arm: str, seconds: dict[str, Table]) -> dict[str, float]:
    passes = {name: [sum(times) for times in table] for name, table in seconds.items()}
    quiet = {name: sum(map(min, zip(*table, strict=True))) for name, table in seconds.items()}
    found = {"ms": 1000 * statistics.median(passes[arm])}
    found |= {"ms_min": 1000 * min(passes[arm]), "ms_max": 1000 * max(passes[arm])}
    for key, base in (("forwards", PLAIN), ("label_forwards", LABELS), ("training", TRAINING)):
        ratios = [mine / other for mine, other in zip(passes[arm], passes[base], strict=True)]
        found |= {key: statistics.median(ratios), f"{key}_min": min(ratios), f"{key}_max": max(ratios)}
        found[f"{key}_quiet"] = quiet[arm] / quiet[base]
    return {key: round(value, 4) for key, value in found.items()}


if __name__ == "__main__":
    main()

"""Trains the same model from the same start with several ways of choosing the batch, and compares held-out loss.

    python benchmarks/small_llama.py
    python benchmarks/training.py --seeds 0,1,2,3,4 --output benchmarks/results/training.jsonl
    python benchmarks/training.py --summarise benchmarks/results/training.jsonl

Each line is one run of one `arm` with one `seed`: held-out loss by three means (over tokens, over examples, over
sources) along the way. All arms have the same initial weights, the same data order of large batches, the same learning
rate, schedule and number of steps; an arm that draws less sees a part of it. Steps are equal, not costs: the column
`cost` counts a step in forwards of one example: 2.0 for forward and backward (LoRA), and for scoring what ARMS says.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ARMS: dict[str, dict[str, Any]] = {
    # what a budget is compared with: nothing is chosen
    "plain 16": {"rows": 16, "coreset": {"pool_factor": 1}},
    "plain 20": {"rows": 20, "coreset": {"pool_factor": 1}},
    "plain 24": {"rows": 24, "coreset": {"pool_factor": 1}},
    "plain 32": {"rows": 32, "coreset": {"pool_factor": 1}},
    "plain 64": {"rows": 64, "coreset": {"pool_factor": 1}},
    # no scoring
    "default 16 of 64": {"coreset": {}},
    "tokens importance 16 of 64": {"coreset": {"scorer": "tokens", "selector": "importance"}},
    "none 16 of 64": {"coreset": {"scoring": "none"}},
    "remembered 16 of 64": {"coreset": {"selector": "balanced", "scoring": "remembered"}},
    # scored
    "colm 16 of 64": {"coreset": {"recipe": "colm"}, "score": 1.1},
    "hard 16 of 64": {"coreset": {"scorer": "loss", "selector": "hard"}, "score": 1.0},
    "facility location 16 of 64": {"coreset": {"selector": "facility_location"}, "score": 1.1},
    "importance 16 of 64": {"coreset": {"selector": "importance"}, "score": 1.1},
    "pivotal, 1 block, 16 of 64": {
        "coreset": {"selector": "pivotal", "scorer_options": {"num_blocks": 1}},
        "score": 1.1,
    },
    "pivotal 16 of 64": {"coreset": {"selector": "pivotal"}, "score": 1.1},
    "balanced 16 of 64": {"coreset": {"selector": "balanced"}, "score": 1.1},
    "calibrated 16 of 64": {"coreset": {"selector": "calibrated"}, "score": 1.1},
    "pivotal, scaled, 16 of 64": {"coreset": {"selector": "pivotal", "normalise": "optimizer"}, "score": 1.1},
    "balanced, optimizer scale, 16 of 64": {
        "coreset": {"selector": "balanced", "normalise": "optimizer"},
        "score": 1.1,
    },
    "pivotal, small kept, 16 of 64": {"coreset": {"selector": "pivotal", "small_sources": "auto"}, "score": 1.1},
}
SMALL, FACTOR, TRAIN_COST = 16, 4, 2.0


def run(job: dict[str, Any]) -> dict[str, Any]:
    """One arm with one seed, in a process of its own."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments, set_seed

    from corebatch.evaluation import heldout_loss
    from corebatch.mixture import PaddingCollator, load_mixture, parse_specs
    from corebatch.record.provenance import provenance
    from corebatch.report.reading import read_steps
    from corebatch.trainer import CoresetConfig, CoresetTrainer

    torch.set_num_threads(1)
    arm, seed = ARMS[job["arm"]], job["seed"]
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    train, test = (
        load_mixture(parse_specs([{"path": f"{job['data']}/{split}.jsonl"}]), tokenizer, max_length=256).dataset
        for split in ("train", "test")
    )
    if job["examples"]:  # a part of the train set, so that examples come again
        train = train.select(range(0, len(train), max(1, len(train) // job["examples"]))).select(range(job["examples"]))
    collate = PaddingCollator(tokenizer)
    names = sorted(set(test["source"]))
    order = sorted(range(len(test)), key=lambda i: test[i]["length"])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    batches = []
    for start in range(0, len(order), 32):
        rows = [test[i] for i in order[start : start + 32]]
        batch = collate(rows)
        batch["source"] = torch.tensor([names.index(row["source"]) for row in rows])
        batches.append({key: value.to(device) for key, value in batch.items()})

    set_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(job["model"])
    modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=modules))
    curve: list[dict[str, float]] = []

    class Evaluate(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % job["every"] == 0 or state.global_step == args.max_steps:
                loss = heldout_loss(model, batches, source_names=names)
                means = {"token": loss.token_mean, "example": loss.example_mean, "source": loss.source_mean}
                curve.append({"step": state.global_step, **means})

    coreset = dict(arm["coreset"])
    coreset.setdefault("pool_factor", FACTOR)
    rows = arm.get("rows", SMALL)
    micro = 8 if rows % 8 == 0 else 4
    with tempfile.TemporaryDirectory() as folder:
        trainer = CoresetTrainer(
            model=model,
            args=TrainingArguments(
                folder,
                per_device_train_batch_size=micro,
                gradient_accumulation_steps=rows // micro,
                max_steps=job["steps"],
                learning_rate=job["learning_rate"],
                lr_scheduler_type="constant_with_warmup",
                warmup_steps=5,
                max_grad_norm=0.0,
                report_to="none",
                save_strategy="no",
                disable_tqdm=True,
                logging_steps=10**6,
                seed=seed,
                dataloader_pin_memory=False,
                include_num_input_tokens_seen="non_padding",
            ),
            train_dataset=train,
            data_collator=collate,
            processing_class=tokenizer,
            coreset=CoresetConfig.from_dict({**coreset, "seed": seed}),
            callbacks=[Evaluate()],
        )
        result = trainer.train()
        log = Path(folder) / "selection.jsonl"
        lines = read_steps(log) if log.exists() else ()
    per_step = {
        key: statistics.mean(getattr(line, key) for line in lines) if lines else None
        for key in ("tokens_trained", "labels_trained", "tokens_scored", "weight_max", "effective_sample_size")
    }
    pool = rows * coreset["pool_factor"]
    return {
        "kind": "training",
        "arm": job["arm"],
        "seed": seed,
        "steps": job["steps"],
        "learning_rate": job["learning_rate"],
        "examples": len(train),
        "epochs": trainer.state.epoch,
        "tokens_seen": trainer.state.num_input_tokens_seen,
        "rows": rows,
        "pool": pool,
        "cost": rows * TRAIN_COST + pool * arm.get("score", 0.0),
        "curve": curve,
        **{f"final_{mean}": curve[-1][mean] for mean in ("token", "example", "source")},
        "per_step": per_step,
        "seconds": result.metrics["train_runtime"],
        "coreset": trainer.coreset.to_dict(),
        **provenance(),
    }


def summarise(path: Path) -> None:
    """Mean and standard deviation over seeds, and the paired difference to random of the same budget."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    arms = [arm for arm in ARMS if any(line["arm"] == arm for line in lines)]
    base = {line["seed"]: line for line in lines if line["arm"] == "plain 16"}
    print("| arm | seeds | cost of a step | token mean | example mean | source mean | token mean less plain 16 |")
    print("|---|---|---|---|---|---|---|")
    for arm in arms:
        here = sorted((line for line in lines if line["arm"] == arm), key=lambda line: line["seed"])
        cells = []
        for mean in ("token", "example", "source"):
            values = [line[f"final_{mean}"] for line in here]
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.4f} ± {spread:.4f}")
        paired = [line["final_token"] - base[line["seed"]]["final_token"] for line in here if line["seed"] in base]
        spread = statistics.stdev(paired) if len(paired) > 1 else 0.0
        difference = f"{statistics.mean(paired):+.4f} ± {spread:.4f}" if paired else ""
        print(f"| {arm} | {len(here)} | {here[0]['cost']:.0f} | {' | '.join(cells)} | {difference} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=".cache/small-llama")
    parser.add_argument("--data", default="../shared/data/mathmix")
    parser.add_argument("--arms", default="", help="parts of names with ';' between; all by default")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--every", type=int, default=40)
    parser.add_argument("--examples", type=int, default=0, help="of the train set; 0: all")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/training.jsonl"))
    parser.add_argument("--summarise", type=Path, help="only print the table of a file")
    args = parser.parse_args()
    if args.summarise:
        summarise(args.summarise)
        return
    wanted = [part for part in args.arms.split(";") if part]
    arms = [arm for arm in ARMS if not wanted or any(part in arm for part in wanted)]
    common = {key: getattr(args, key) for key in ("model", "data", "steps", "every", "learning_rate", "examples")}
    done = set()
    if args.output.exists():  # a killed comparison goes on
        lines = [json.loads(line) for line in args.output.read_text().splitlines()]
        done = {
            (x["arm"], x["seed"])
            for x in lines
            if all(x[key] == common[key] for key in ("steps", "learning_rate"))
            and x.get("examples", 0) == (common["examples"] or x.get("examples", 0))
        }
    jobs = [{**common, "arm": arm, "seed": int(seed)} for seed in args.seeds.split(",") for arm in arms]
    jobs = [job for job in jobs if (job["arm"], job["seed"]) not in done]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool, open(args.output, "a") as file:
        for number, line in enumerate(pool.map(run, jobs), 1):
            file.write(json.dumps(line) + "\n")
            file.flush()
            print(f"{number}/{len(jobs)} {line['arm']} seed {line['seed']}: {line['final_token']:.4f}", flush=True)
    summarise(args.output)


if __name__ == "__main__":
    sys.exit(main())

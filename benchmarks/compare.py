"""The comparisons that docs/evidence/results.md quotes, by `corebatch compare`; a killed one goes on where it was.

    python benchmarks/compare.py mathmix --output runs/compare-mathmix
    python benchmarks/compare.py reasoning --output runs/compare-reasoning

mathmix: a Llama of 5.8 M parameters (benchmarks/small_llama.py) with LoRA, on 576 rows of a real maths mixture.
reasoning: SmolLM2-135M with LoRA on the demo's mixture of reasoning-gym tasks.
replay: a Llama of 1 M parameters that knows mathmix is taught easy tasks, with rows of mathmix among them.
dirty: an untrained Llama of 1 M parameters on easy tasks (benchmarks/easy_tasks.py); 40 % of the answers are wrong.
Each writes its data and its config beside the output first; any key can be changed: `--max_steps 20`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import subprocess
import sys
from pathlib import Path

import yaml

import easy_tasks
from corrupt import corrupt

HERE = Path(__file__).parent


def mathmix(folder: Path, settings: Path, data: Path, model: Path, rows: int) -> dict:
    """Every row of the train split is as likely to be among the rows; the test split is held out."""
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = random.Random(0).sample(range(len(lines)), rows)
    train = folder / "train.jsonl"
    train.write_text("".join(lines[i] + "\n" for i in sorted(chosen)), encoding="utf-8")
    if not (model / "config.json").is_file():
        subprocess.run([sys.executable, HERE / "small_llama.py", "--data", data, "--output", model], check=True)
    return {
        **yaml.safe_load(settings.read_text().replace("TEST", str(data / "test.jsonl"))),
        "model_name_or_path": str(model),
        "datasets": [{"path": str(train)}],
        "eval_datasets": [{"path": str(data / "test.jsonl")}],
    }


def reasoning(folder: Path, settings: Path, model: Path) -> dict:
    """The demo's mixture at an eighth of its size, so that examples come again, and its model."""
    from corebatch.demo import DEMO_SOURCES, load_smollm2, make_mixture

    sources = [dataclasses.replace(source, examples=round(source.examples / 8)) for source in DEMO_SOURCES]
    files = make_mixture(folder / "data", seed=0, sources=sources, heldout_per_source=5)
    if not (model / "config.json").is_file():
        found, tokenizer = load_smollm2()
        found.save_pretrained(model)
        tokenizer.save_pretrained(model)
    config = yaml.safe_load(settings.read_text())
    config["compare"]["tasks"] = [f"reasoning_gym:{files.heldout},max_new_tokens=14,batch_size=32"]
    return {
        **config,
        "model_name_or_path": str(model),
        "datasets": [{"path": str(files.train)}],
        "eval_datasets": [{"path": str(files.heldout)}],
    }


NEW, NEW_HELD_OUT, KEPT_HELD_OUT = 4000, 600, 300
"""Of `replay`: rows of the easy tasks, and held-out rows of both sides."""


def replay(folder: Path, settings: Path, data: Path, model: Path) -> dict:
    """Easy tasks are new; mathmix, on whose text the model was pre-trained, is one source that is to be kept."""
    new, new_held_out, kept_held_out = (folder / f"{name}.jsonl" for name in ("new", "new_held_out", "kept_held_out"))
    for path, count, seed in ((new, NEW, 2), (new_held_out, NEW_HELD_OUT, 3)):
        path.write_text("".join(json.dumps(row) + "\n" for row in easy_tasks.rows(count, seed)), encoding="utf-8")
    lines = (data / "test.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = random.Random(0).sample(lines, KEPT_HELD_OUT)
    kept_held_out.write_text("".join(line + "\n" for line in chosen), encoding="utf-8")
    return {
        **yaml.safe_load(settings.read_text()),
        "model_name_or_path": str(model),
        "datasets": [{"path": str(new)}, {"path": str(data / "train.jsonl"), "source": "mathmix"}],
        "eval_datasets": [{"path": str(new_held_out)}, {"path": str(kept_held_out), "source": "mathmix"}],
    }


CLEAN, POOL, WRONG = 640, 4000, 0.4
"""Of `dirty`: rows that are known to be right, other rows, and the share of all of them that is wrong."""


def dirty(folder: Path, settings: Path, model: Path) -> dict:
    """Data with wrong answers, a model that knows nothing, and a reference that was trained on rows that are right.

    Those are also the target, and every arm may train them: they are in the data set with the others.
    """
    target, pool, train, held_out = (folder / f"{name}.jsonl" for name in ("target", "pool", "dirty", "held_out"))
    for path, count, seed in ((target, CLEAN, 1), (pool, POOL, 2), (held_out, 600, 3)):
        lines = (json.dumps(row) + "\n" for row in easy_tasks.rows(count, seed))
        path.write_text("".join(lines), encoding="utf-8")
    corrupt(pool, train, WRONG * (CLEAN + POOL) / POOL)
    if not (model / "config.json").is_file():
        (folder / "texts").mkdir(exist_ok=True)
        (folder / "texts" / "train.jsonl").write_bytes(pool.read_bytes())
        untrained = ["--steps", "0", "--vocabulary", "2048", "--hidden", "128", "--blocks", "4"]
        command = [sys.executable, HERE / "small_llama.py", "--data", folder / "texts", "--output", model, *untrained]
        subprocess.run(command, check=True)
    reference = folder / "reference"
    config = yaml.safe_load(settings.read_text().replace("REFERENCE", json.dumps(str(reference))))
    config["model_name_or_path"] = str(model)
    if not (reference / "config.json").is_file():
        own = {key: value for key, value in config.items() if key != "compare"}
        own |= {"datasets": [str(target)], "coreset": {"pool_factor": 1}, "output_dir": str(reference)}
        path = folder / "reference.yaml"
        path.write_text(yaml.safe_dump({**own, "save_strategy": "no"}), encoding="utf-8")
        subprocess.run([sys.executable, "-m", "corebatch.cli.main", "train", str(path)], check=True)
    return {
        **config,
        "datasets": [{"path": str(train)}, {"path": str(target)}],
        "eval_datasets": [{"path": str(held_out)}],
        "target_datasets": [{"path": str(target)}],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=("mathmix", "reasoning", "dirty", "replay"))
    parser.add_argument("--data", type=Path, default=HERE.parent.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--model", type=Path, help="where the model lies, or is put")
    parser.add_argument("--rows", type=int, default=576, help="of mathmix's train split")
    parser.add_argument("--settings", type=Path, help="another file than compare_WHICH.yaml")
    parser.add_argument("--output", type=Path, help="the comparison's folder")
    args, changes = parser.parse_known_args()
    output = args.output or Path("runs") / f"compare-{args.which}"
    inputs = output.with_name(output.name + "-inputs")
    inputs.mkdir(parents=True, exist_ok=True)
    settings = args.settings or HERE / f"compare_{args.which}.yaml"
    if args.which == "mathmix":
        config = mathmix(inputs, settings, args.data, args.model or Path(".cache/small-llama"), args.rows)
    elif args.which == "replay":
        config = replay(inputs, settings, args.data, args.model or Path(".cache/tiny-llama"))
    elif args.which == "dirty":
        config = dirty(inputs, settings, args.model or inputs / "untrained")
    else:
        config = reasoning(inputs, settings, args.model or Path(".cache/smollm2"))
    config["output_dir"] = str(output)
    path = inputs / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config)), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "corebatch.cli.main", "compare", str(path), *changes]
    print("+", *command, flush=True)
    sys.exit(subprocess.run(command).returncode)


if __name__ == "__main__":
    main()

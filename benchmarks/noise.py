"""The noise scale of the gradient: do its estimates agree, what does it cost, does it grow? `docs/methods/noise.md`.

    python benchmarks/noise.py --model .cache/small-llama --tiny .cache/tiny-llama --data ../shared/data/mathmix

- agreement: 1,024 exact gradients of single rows of the small Llama give the noise scale; beside it what some of them
  give, what micro-batches of random steps do, of rows in random order by their lengths alone and sorted by length with
  their neighbors' products, and what two runs of the Trainer at a learning rate of 0 record.
- cost: of the steps of one run every second one is measured; the medians of their training phases are compared.
- growth: the tiny Llama, from random weights, over 1,200 steps, and exact gradients of 384 rows at five moments.

`--table` writes the page from the last run's lines.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback, TrainingArguments, set_seed

from corebatch.mixture import PaddingCollator, load_mixture, parse_specs
from corebatch.model.weighted_loss import weighted_loss
from corebatch.noise import (
    Noise,
    interval_of_rows,
    interval_of_steps,
    mean_noise,
    noise_of_parts,
    noise_of_rows,
    noise_of_sums,
    within_sorted,
)
from corebatch.trainer import CoresetConfig, CoresetTrainer
from pages import ROOT, origin, provenance, table, write_between, write_lines

PAGE, OUTPUT = ROOT / "docs" / "methods" / "noise.md", ROOT / "benchmarks" / "results" / "noise.jsonl"
PLOT = ROOT / "docs" / "methods" / "noise.svg"
COLUMNS = 65521  # of a sketch, a prime
ROWS, BATCH, WIDTH, DRAWS = 1024, 64, 4, 400
PARTS, PARTS_SORTED, FEW = (2, 4, 8, 16), (4, 8, 16), (32, 128, 256)
STEPS, MOMENTS, ROWS_OF_MOMENT, BATCH_OF_GROWTH = 1200, (0, 100, 300, 700, 1200), 384, 16
POINTS = 60


def main() -> None:
    options = parse()
    if not options.table:
        torch.set_num_threads(1)
        parts = {"agreement": agreement, "cost": cost, "growth": growth}
        kept = [line for line in read(options.output) if line["kind"] not in options.parts.split(",")]
        for name in options.parts.split(","):
            for line in parts[name](options):
                kept.append({"kind": name, **line, **provenance(options.seed)})
                write_lines(options.output, kept)  # what is there by now, if the rest is cut off
    write_page(read(options.output), options.page, options.plot)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "small-llama")
    parser.add_argument("--tiny", type=Path, default=ROOT / ".cache" / "tiny-llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--parts", default="agreement,cost,growth", help="which, with a comma between")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=2, help="runs of the growth")
    parser.add_argument("--scale", type=float, default=1.0, help="of all counts of rows and steps; below 1 to try it")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    return parser.parse_args()


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


# ---- gradients of single rows ----------------------------------------------------------------------------------------


def loaded(folder: Path, data: Path, *, fresh: bool = False) -> tuple[Any, Any, Any]:
    """Model, rows and collator; `fresh`: the model has random weights."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = load_mixture(parse_specs([{"path": f"{data}/train.jsonl"}]), tokenizer, max_length=256).dataset
    config = AutoConfig.from_pretrained(folder)
    model = AutoModelForCausalLM.from_config(config) if fresh else AutoModelForCausalLM.from_pretrained(folder)
    return model, rows, PaddingCollator(tokenizer)


class Exact:
    """Sums over rows from which the noise follows without a sketch, and sketches for everything else.

    Shape suffixes: P rows, D parameters, W columns.
    """

    def __init__(self, model: Any, rows: Sequence[Any], collate: Any, seed: int) -> None:
        parameters = [p for p in model.parameters() if p.requires_grad]
        count = sum(p.numel() for p in parameters)
        signs_D = torch.randint(2, (count,), generator=torch.Generator().manual_seed(seed), dtype=torch.int8) * 2 - 1
        sum_D, weighted_D, squares, sizes, sketches = torch.zeros(count), torch.zeros(count), 0.0, [], []
        for row in rows:
            loss, _ = weighted_loss(model, model, collate([row]), torch.ones(1))
            gradient_D = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
            size = sum(label != -100 for label in row["labels"][1:])
            sum_D += gradient_D
            weighted_D += size * gradient_D
            squares += float(gradient_D.double().square().sum())
            sizes.append(size)
            signed_D = torch.nn.functional.pad(gradient_D * signs_D, (0, -count % COLUMNS))
            sketches.append(signed_D.view(-1, COLUMNS).sum(dim=0))
        self.sizes_P = torch.tensor(sizes, dtype=torch.float64)
        sketch_PW = torch.stack(sketches).double()
        self.gram_PP = sketch_PW @ sketch_PW.T
        count, total = len(sizes), float(self.sizes_P.sum())
        mean_D = (sum_D / total).double()
        squared = float(mean_D @ mean_D)
        off = squares - 2 * float(weighted_D.double() @ mean_D) + float(self.sizes_P.square().sum()) * squared
        trace = off / (count - 1) * (count / total) ** 2
        self.noise = Noise(signal=squared - trace / count, trace=trace, rows=count)


def shown(noise: Noise, interval: tuple[float, float]) -> dict[str, Any]:
    scale, low, high = (value if value < 1e9 else None for value in (noise.scale, *interval))
    return {"signal": noise.signal, "trace": noise.trace, "scale": scale, "low": low, "high": high}


# ---- agreement -------------------------------------------------------------------------------------------------------


def agreement(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    model, data, collate = loaded(options.model, options.data)
    count = max(64, int(ROWS * options.scale))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(options.seed))[:count].tolist()
    rows = data.select(order)
    exact = Exact(model.train(), rows, collate, options.seed)
    gram, sizes = exact.gram_PP, exact.sizes_P
    parameters = sum(p.numel() for p in model.parameters())
    about = {"rows": count, "parameters": parameters, "batch": BATCH, "width": WIDTH}
    yield {"way": "exact", **about, **shown(exact.noise, interval_of_rows(gram, sizes))}
    sketched = noise_of_rows(gram, sizes)
    yield {"way": "sketched", **about, **shown(sketched, interval_of_rows(gram, sizes))}
    for few in FEW:
        found = drawn(gram, sizes, few, options.seed)
        low, high = torch.tensor([one.scale for one in found]).quantile(
            torch.tensor([0.1, 0.9]), interpolation="nearest"
        )
        single = {"single_low": float(low), "single_high": float(high) if high < 1e9 else None, "draws": DRAWS}
        yield {"way": "few", **about, **shown(mean_noise(found), interval_of_steps(found)), "rows": few, **single}
    lengths = torch.tensor(rows["length"])
    for name, known, numbers in (("random", None, PARTS), ("sorted", lengths, PARTS_SORTED)):
        for parts in numbers:
            found = simulated(gram, sizes, known, parts, options.seed)
            noise = shown(mean_noise(found), interval_of_steps(found))
            yield {**about, "way": name, "parts": parts, "draws": DRAWS, **noise}
    for name in ("plain", "positions"):
        lines = trained(model, rows, collate, options, {"pool_factor": 1, "micro_batches": name, "noise_scale": True})
        found = [Noise(signal=x["noise_signal"], trace=x["noise_trace"], rows=x["chosen_examples"]) for x in lines]
        yield {**about, "way": f"run {name}", "steps": len(found), **shown(mean_noise(found), interval_of_steps(found))}


def drawn(gram: Tensor, sizes: Tensor, count: int, seed: int) -> list[Noise]:
    """By exact gradients of some rows at random."""
    source = torch.Generator().manual_seed(seed + 2)
    picked = [torch.randperm(len(gram), generator=source)[:count] for _ in range(DRAWS)]
    return [noise_of_rows(gram[rows][:, rows], sizes[rows]) for rows in picked]


def simulated(gram: Tensor, sizes: Tensor, lengths: Tensor | None, parts: int, seed: int) -> list[Noise]:
    """Of random steps, cut into so many micro-batches of equally many rows."""
    source, found = torch.Generator().manual_seed(seed + 1), []
    batch = min(BATCH, len(gram) // 2)
    for _ in range(DRAWS):
        rows = torch.randperm(len(gram), generator=source)[:batch]
        if lengths is not None:
            rows = rows[lengths[rows].argsort(stable=True)]
        total = sizes[rows].sum()
        pieces = rows.chunk(parts)
        within = torch.stack([torch.isin(rows, piece) for piece in pieces]).double()
        gram_JJ, shares = within @ gram[rows][:, rows] @ within.T / total**2, within @ sizes[rows] / total
        squares, squared = gram_JJ.diagonal(), float(gram_JJ.sum())
        if lengths is None:
            found.append(noise_of_parts(squares.tolist(), shares.tolist(), squared, batch))
        else:
            found.append(noise_of_sums(float(squares.sum() - within_sorted(gram_JJ, shares)), 0.0, squared, batch))
    return found


def trained(
    model: Any, rows: Any, collate: Any, options: argparse.Namespace, coreset: dict[str, Any], **settings: Any
) -> list[dict[str, Any]]:
    """The record of a run."""
    callbacks = settings.pop("callbacks", [])
    given = {
        "per_device_train_batch_size": WIDTH, "gradient_accumulation_steps": BATCH // WIDTH, "learning_rate": 0.0,
        "num_train_epochs": 2, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
        "logging_steps": 10**6, "max_grad_norm": 1.0, "dataloader_pin_memory": False, "seed": options.seed,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(folder, **{**given, **settings})
        CoresetTrainer(
            model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=callbacks,
            coreset=CoresetConfig.from_dict(coreset),
        ).train()  # fmt: skip
        return read(Path(folder) / "selection.jsonl")


# ---- cost ------------------------------------------------------------------------------------------------------------


def cost(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for name, folder, steps in (("small", options.model, 40), ("tiny", options.tiny, 120)):
        model, data, collate = loaded(folder, options.data)
        rows, steps = data.select(range(2048)), max(8, int(steps * options.scale))
        coreset = {"pool_factor": 1, "noise_scale": 2}
        settings = {"max_steps": steps, "gradient_accumulation_steps": 8}
        # Batches differ in length: a step's time is taken by its positions.
        lines = trained(model, rows, collate, options, coreset, **settings)[2:]
        times = {
            measured: [x["ms"]["train"] / x["positions_trained"] for x in lines if ("noise_trace" in x) == measured]
            for measured in (True, False)
        }
        more = statistics.median(times[True]) / statistics.median(times[False]) - 1
        parameters = sum(p.numel() for p in model.parameters())
        yield {"way": name, "parameters": parameters, "steps": steps, "more": more, "width": WIDTH, "micro_batches": 8}


# ---- growth ----------------------------------------------------------------------------------------------------------


class Moments(TrainerCallback):
    """Exact noise at some steps; it takes nothing from the run."""

    def __init__(self, model: Any, rows: Any, collate: Any, at: Sequence[int], seed: int) -> None:
        self.model, self.rows, self.collate, self.at, self.seed = model, rows, collate, at, seed
        self.found: list[dict[str, Any]] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.look(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.look(state.global_step)

    def look(self, step: int) -> None:
        if step in self.at:
            exact = Exact(self.model, self.rows, self.collate, self.seed)
            self.found.append({"step": step, **shown(exact.noise, interval_of_rows(exact.gram_PP, exact.sizes_P))})


def growth(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    steps = max(20, int(STEPS * options.scale))
    for seed in range(options.seed, options.seed + options.seeds):
        set_seed(seed)
        model, data, collate = loaded(options.tiny, options.data, fresh=True)
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)).tolist()
        count = max(32, int(ROWS_OF_MOMENT * options.scale))
        at = [step * steps // STEPS for step in MOMENTS]
        moments = Moments(model, data.select(order[:count]), collate, at, seed)
        lines = trained(
            model, data.select(order[count:]), collate, options, {"pool_factor": 1, "noise_scale": 1},
            max_steps=steps, gradient_accumulation_steps=BATCH_OF_GROWTH // WIDTH, learning_rate=1e-3, seed=seed,
            lr_scheduler_type="constant_with_warmup", warmup_steps=20, callbacks=[moments],
        )  # fmt: skip
        each = max(1, len(lines) // POINTS)
        points = []
        for first in range(0, len(lines) - each + 1, each):
            part = lines[first : first + each]
            noise = mean_noise(
                [Noise(signal=x["noise_signal"], trace=x["noise_trace"], rows=x["chosen_examples"]) for x in part]
            )
            loss = statistics.mean(x["train_loss"] for x in part)
            scale = noise.scale if noise.signal > 0 else None
            points.append({"step": part[-1]["step"], "scale": scale, "logged": part[-1]["noise_scale"], "loss": loss})
        yield {
            "way": "run", "run_seed": seed, "steps": steps, "batch": BATCH_OF_GROWTH, "rows": count,
            "parameters": sum(p.numel() for p in model.parameters()), "points": points, "moments": moments.found,
        }  # fmt: skip


# ---- the page --------------------------------------------------------------------------------------------------------

WAYS = {
    "exact": "{rows:,} exact gradients",
    "sketched": "the same by sketches of 65,521 numbers",
    "few": "{rows:,} of them{single}",
    "random": "{parts} micro-batches of rows in random order",
    "sorted": "{parts} micro-batches of rows sorted by length",
    "run plain": "a run's record, {steps} steps, micro_batches plain",
    "run positions": "a run's record, {steps} steps, micro_batches positions",
}


def write_page(lines: Sequence[dict[str, Any]], page: Path, plot: Path) -> None:
    by = {kind: [line for line in lines if line["kind"] == kind] for kind in ("agreement", "cost", "growth")}
    if by["agreement"]:
        write_between(page, "agreement", _agreement(by["agreement"]))
    if by["cost"]:
        write_between(page, "cost of measuring", _cost(by["cost"]))
    if by["growth"]:
        draw(by["growth"], plot)
        write_between(page, "growth", _growth(by["growth"]))


def _number(value: float | None) -> str:
    return "infinite" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def _range(low: float | None, high: float | None) -> str:
    return f"{_number(low)} to {_number(high)}"


def _agreement(lines: Sequence[dict[str, Any]]) -> str:
    truth = lines[0]["scale"]
    rows = [
        (
            WAYS[line["way"]].format(**line, single=_drawn(line)),
            _number(line["scale"]),
            "-" if line["low"] is None else _range(line["low"], line["high"]),
            "-" if line["scale"] is None else f"{line['scale'] / truth - 1:+.0%}",
        )
        for line in lines
    ]
    first, drawn = lines[0], " and some rows are drawn from them as often," * any(map(_drawn, lines))
    text = (
        f"A Llama of {first['parameters'] / 1e6:.1f} M parameters on mathmix, before it is fine-tuned. Steps have "
        f"{first['batch']} rows; micro-batches of random steps are cut from the same {first['rows']:,} rows, "
        f"{lines[3]['draws']} times,{drawn} so that what is off there is the estimate's own."
    )
    heads = ("estimate", "noise scale, rows", "95 % interval", "against exact")
    return f"{text}\n\n{table(heads, rows)}\n\n({origin(first)})"


def _drawn(line: dict[str, Any]) -> str:
    """How far single draws of some rows are apart; nothing in lines that have one draw."""
    if "single_low" not in line:
        return ""
    return f", at random; eight of ten such draws give {_range(line['single_low'], line['single_high'])}"


def _cost(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        (f"{x['parameters'] / 1e6:.1f} M parameters", str(x["steps"]), f"{x['more']:+.1%}", f"{x['more'] / 10:+.2%}")
        for x in lines
    ]
    heads = ("model", "steps", "training phase of a measured step", "over all steps, every tenth measured")
    return f"{table(heads, rows)}\n\n({origin(lines[0])})"


def _growth(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        (str(line["run_seed"]), f"{moment['step']:,}", _number(moment["scale"]),
         _range(moment["low"], moment["high"]), _near(line, moment["step"]))
        for line in lines for moment in line["moments"]
    ]  # fmt: skip
    heads = ("seed", "step", f"{lines[0]['rows']} exact gradients", "95 % interval", "recorded within 30 steps of it")
    text = (
        f"A Llama of {lines[0]['parameters'] / 1e6:.1f} M parameters from random weights, {lines[0]['steps']:,} steps "
        f"of {lines[0]['batch']} rows of mathmix."
    )
    return f"{text}\n\n![The noise scale over the run]({PLOT.name})\n\n{table(heads, rows)}\n\n({origin(lines[0])})"


def _near(line: dict[str, Any], step: int) -> str:
    found = [point["scale"] for point in line["points"] if abs(point["step"] - step) <= 30 and point["scale"]]
    return f"{statistics.median(found):.1f}" if found else "-"


def draw(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """The noise scale over steps, on logarithmic axes."""
    from matplotlib import pyplot

    pyplot.rcParams["svg.hashsalt"] = "noise"
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for number, line in enumerate(lines):
        color = f"C{number}"
        known = [point for point in line["points"] if point["scale"] is not None]
        axes.plot(
            [p["step"] for p in known],
            [p["scale"] for p in known],
            color=color,
            label=f"recorded, seed {line['run_seed']}",
        )
        moments = [m for m in line["moments"] if m["signal"] > 0 and m["step"]]
        axes.plot([m["step"] for m in moments], [m["scale"] for m in moments], "o", color=color, mfc="white")
    axes.axhline(lines[0]["batch"], color="gray", lw=0.8, ls="--")
    axes.set(xlabel="step", ylabel="noise scale, rows", yscale="log")
    axes.legend(frameon=False)
    axes.set_title("circles: exact gradients; dashed: rows of a step", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    main()

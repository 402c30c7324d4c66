"""The same update for less work: what sorting the rows of a step saves, before they are cut into micro-batches.

    python benchmarks/micro_batches.py --model .cache/small-llama --data ../shared/data/mathmix

Plain accumulation of 128 rows in 16 micro-batches of 8 through the real trainers, as the loader made them and with
each way of `coreset.micro_batches`, on the rows of the mixture; beside it transformers' own grouping, whose steps are
others, and the default of corebatch (four rows drawn for one that is trained). All arms of a setting train in turn on
the same rows, in an order that turns from round to round, and ratios of the time of a trained token are taken within a
round. A round times one step, after one of the shortest row, in which what is made once is made. Then live bytes,
weights after 20 steps, and what transformers' grouping does to a step's loss.

Lines go to --output, a file for each part, and tables into docs/evidence/measurements.md; `--table` writes them from
the lines that are there. `--quick` runs tiny sizes, to see that it runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import gc
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, PrinterCallback, Trainer, TrainingArguments, set_seed
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.trainer_pt_utils import LengthGroupedSampler

from corebatch.batch.cuts import make_cut
from corebatch.batch.layout import Cutting
from corebatch.batch.pool import Pool
from corebatch.bench.models import build_model, model_config
from corebatch.bench.steps.arm import ArmRound, run_arm
from corebatch.bench.steps.plan import ACCUMULATION, COREBATCH, SORTED, StepArm, StepSettings
from corebatch.bench.timing import Spread, ratios, turned
from corebatch.evaluation.loss import evaluated_head, row_losses
from corebatch.mixture import load_mixture, parse_specs
from corebatch.model.rows import Padding
from corebatch.trainer import CoresetConfig, CoresetTrainer
from pages import ROOT, origin, provenance, table, write_between, write_lines

PAGE, OUTPUT = ROOT / "docs" / "evidence" / "measurements.md", ROOT / "benchmarks" / "results" / "micro_batches"
PLAIN, GROUPED, DEFAULT, CAPPED = "plain", "group_by_length", "default", "positions, half"
WAYS = ("length", "positions", CAPPED)
SMALL, MIDDLE = "small Llama", "llama-30m"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is trained: which arms, and how often each is timed."""

    model: str
    adapter: str
    checkpointing: bool
    arms: tuple[str, ...]

    @property
    def name(self) -> str:
        adapter = "LoRA" if self.adapter == "lora" else "full"
        return f"{self.model}, {adapter}{', checkpointing' if self.checkpointing else ''}"


ALL = (PLAIN, *WAYS, GROUPED, DEFAULT)
FEW = (PLAIN, "positions", CAPPED)
SETTINGS = (
    *(Setting(model=SMALL, adapter=a, checkpointing=c, arms=ALL) for a in ("lora", "full") for c in (False, True)),
    Setting(model=MIDDLE, adapter="lora", checkpointing=True, arms=FEW),
    Setting(model=MIDDLE, adapter="full", checkpointing=False, arms=FEW),
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Of the whole measurement.

    Attributes:
        rows, micro_batch: of a step that is timed.
        counted: rows of a step whose bytes are counted.
        same: rows of a step whose weights are compared, and `steps` of them in float32, `double_steps` in float64.
        layouts: steps that are cut and not trained.
        orders: epochs whose steps' losses are told.
        examples: of the mixture; None: all.
    """

    rows: int = 128
    micro_batch: int = 8
    counted: int = 32
    same: int = 16
    steps: int = 20
    double_steps: int = 4
    layouts: int = 200
    orders: int = 10
    examples: int | None = None


QUICK = Sizes(
    rows=8, micro_batch=2, counted=4, same=8, steps=3, double_steps=2, layouts=5, orders=2, examples=160
)  # fmt: skip


def main() -> None:
    options = parse()
    if options.table:
        write_page(options.output)
        return
    torch.set_num_threads(options.threads)
    head = {"benchmark": "micro_batches", "data": options.data.name, "max_length": options.max_length}
    measured: list[dict[str, Any]] = []
    for part in options.parts:
        lines = []
        for line in PARTS[part](options):
            lines.append({**head, "part": part, **line, **provenance(options.seed)})
            print({key: value for key, value in line.items() if value is not None}, file=sys.stderr, flush=True)
        measured += lines
        if not options.quick:
            write_lines(options.output / f"{part}.jsonl", lines)
    if options.quick:
        print(page(measured))
    else:
        write_page(options.output)


def write_page(folder: Path) -> None:
    """From the lines of all parts that are there."""
    paths = [folder / f"{part}.jsonl" for part in PARTS]
    lines = [json.loads(line) for path in paths if path.is_file() for line in path.read_text("utf-8").splitlines()]
    write_between(PAGE, "micro-batches", page(lines))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "small-llama", help="the small Llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="a folder")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    options.sizes = QUICK if options.quick else Sizes()
    if options.quick:
        options.rounds, options.max_length = 1, min(options.max_length, 64)
    if not options.table and not (options.model / "config.json").is_file():
        parser.error(f"a model should be in {options.model}: run benchmarks/small_llama.py")
    return options


# ---- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rows:
    """The rows of the mixture, and their lengths."""

    dataset: Any
    lengths: list[int]

    @classmethod
    def of(cls, options: argparse.Namespace) -> Rows:
        tokenizer = AutoTokenizer.from_pretrained(options.model)
        specs = parse_specs([{"path": f"{options.data}/train.jsonl"}])
        dataset = load_mixture(specs, tokenizer, max_length=options.max_length).dataset
        if options.sizes.examples is not None:
            dataset = dataset.select(range(0, len(dataset), len(dataset) // options.sizes.examples))
        dataset = dataset.select_columns(["input_ids", "labels"]).with_format("torch")
        return cls(dataset, [len(ids) for ids in dataset["input_ids"]])

    def shortest(self, count: int) -> list[int]:
        """The shortest row, so many times."""
        return [min(range(len(self.lengths)), key=lambda row: self.lengths[row])] * count

    def drawn(self, count: int, seed: int) -> list[int]:
        return torch.randperm(len(self.lengths), generator=torch.Generator().manual_seed(seed))[:count].tolist()

    def grouped(self, count: int, micro_batch: int, seed: int) -> list[int]:
        """So many rows of an epoch of transformers' grouping, in micro-batches that are spread evenly over it: its own
        steps are of rows of one length, each of another."""
        order = grouped_order(self.lengths, count, seed)
        batches = len(order) // micro_batch
        taken = [batches * (2 * k + 1) // (2 * count // micro_batch) for k in range(count // micro_batch)]
        return [row for batch in taken for row in order[batch * micro_batch : (batch + 1) * micro_batch]]


def grouped_order(lengths: Sequence[int], rows: int, seed: int) -> list[int]:
    """An epoch of transformers' grouping by length, for steps of so many rows."""
    generator = torch.Generator().manual_seed(seed)
    return list(LengthGroupedSampler(rows, lengths=list(lengths), generator=generator))


def largest_plain(lengths: Sequence[int], micro_batch: int) -> int:
    """Padded positions of the largest micro-batch of rows in their order."""
    parts = (lengths[start : start + micro_batch] for start in range(0, len(lengths), micro_batch))
    return max(len(part) * max(part) for part in parts)


# ---- time and memory -------------------------------------------------------------------------------------------------


def costs(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each arm of each setting."""
    rows = Rows.of(options)
    for setting in SETTINGS:
        yield from cost_of(setting, rows, options)
        gc.collect()


def cost_of(setting: Setting, rows: Rows, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    sizes = options.sizes
    settings = step_settings(setting, options)
    model = built(setting, options)
    draws = {(number, arm): order_of(arm, rows, sizes, options.seed + number)
             for number in range(options.rounds) for arm in setting.arms}  # fmt: skip
    cap = max(largest_plain([rows.lengths[row] for row in draws[number, PLAIN]], sizes.micro_batch)
              for number in range(options.rounds)) // 2  # fmt: skip
    runs: dict[str, list[ArmRound]] = {arm: [] for arm in setting.arms}
    for number in range(options.rounds):
        for arm in turned(setting.arms, number):
            drawn = draws[number, arm]
            dataset = rows.dataset.select([*rows.shortest(len(drawn)), *drawn])
            large = dataclasses.replace(settings, large=len(drawn))
            runs[arm].append(run_arm(step_arm(arm, cap), model, dataset, large, number=number, memory=False))
    counted = {arm: live_bytes(arm, model, rows, settings, options) for arm in setting.arms if arm in FEW}
    for arm, found in runs.items():
        bytes_of = {} if arm not in counted else {
            **counted[arm], "peak_to_plain": counted[arm]["peak_bytes"] / counted[PLAIN]["peak_bytes"],
        }  # fmt: skip
        yield {**said(setting, sizes), "arm": arm, "cap": cap if arm == CAPPED else None,
               **timed(found, runs[PLAIN]), **bytes_of}  # fmt: skip
    yield from equal_lengths(setting, model, settings, options)


def said(setting: Setting, sizes: Sizes) -> dict[str, Any]:
    """Of a line, what was trained."""
    named = {"setting": setting.name, "model": setting.model, "adapter": setting.adapter}
    return {**named, "checkpointing": setting.checkpointing, "rows": sizes.rows, "micro_batch": sizes.micro_batch}


def order_of(arm: str, rows: Rows, sizes: Sizes, seed: int) -> list[int]:
    """The rows of an arm's step."""
    if arm == GROUPED:
        return rows.grouped(sizes.rows, sizes.micro_batch, seed)
    return rows.drawn(sizes.rows * (4 if arm == DEFAULT else 1), seed)


def step_arm(arm: str, cap: int) -> StepArm:
    if arm in (PLAIN, GROUPED):
        return StepArm(kind=ACCUMULATION, name=arm)
    if arm == DEFAULT:
        return StepArm(kind=COREBATCH, name=arm, ratio=4, coreset=CoresetConfig(pool_factor=4))
    return StepArm(kind=SORTED, name=arm, coreset=CoresetConfig(pool_factor=1, micro_batches=way(arm, cap)))


def way(arm: str, cap: int) -> str | dict[str, Any]:
    """The setting `micro_batches` of an arm."""
    return {"by": "positions", "most": cap} if arm == CAPPED else arm


def step_settings(setting: Setting, options: argparse.Namespace) -> StepSettings:
    sizes = options.sizes
    return StepSettings(
        model=model_of(setting, options), adapter=setting.adapter, checkpointing=setting.checkpointing,
        large=sizes.rows, micro_batch=sizes.micro_batch, ratios=(2,), steps=1, seed=options.seed,
        max_length=max(options.max_length, 512),
    )  # fmt: skip


def model_of(setting: Setting, options: argparse.Namespace) -> str:
    return str(options.model) if setting.model == SMALL else setting.model


def built(setting: Setting, options: argparse.Namespace) -> Any:
    """The small Llama with its weights, the other with random ones; in a quick run two blocks of it."""
    if setting.model == SMALL or not options.quick:
        model = model_of(setting, options)
        return build_model(model, adapter=setting.adapter, random_weights=setting.model != SMALL, seed=options.seed)
    config = model_config(setting.model)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 64, 96
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return build_model(folder, adapter=setting.adapter, seed=options.seed)


def timed(found: Sequence[ArmRound], plain: Sequence[ArmRound]) -> dict[str, Any]:
    """Milliseconds of a step, how many times faster a trained token is than the plain arm's in the same round, and
    what the steps held."""
    faster = ratios([run.seconds / run.tokens for run in plain], [run.seconds / run.tokens for run in found])
    return {
        **spread("step_ms", [1000 * run.seconds for run in found]),
        **spread("faster", faster),
        "tokens": round(statistics.mean(run.tokens for run in found), 1),
        "positions_a_token": round(sum(run.cells for run in found) / sum(run.tokens for run in found), 4),
        "largest_micro_batch": max(run.largest for run in found),
        "scored": round(statistics.mean(run.scored for run in found), 1),
    }


def spread(key: str, values: Sequence[float]) -> dict[str, float]:
    found = Spread.of(values)
    return {name: round(value, 4) for name, value in
            ((key, found.value), (f"{key}_min", found.low), (f"{key}_max", found.high))}  # fmt: skip


def live_bytes(arm: str, model: Any, rows: Rows, settings: StepSettings, options: argparse.Namespace) -> dict[str, Any]:
    """The peak of live bytes in a step of fewer rows, the same for all arms, after two of the shortest row."""
    sizes = options.sizes
    drawn, short = rows.drawn(sizes.counted, options.seed), rows.shortest(sizes.counted)
    cap = largest_plain([rows.lengths[row] for row in drawn], sizes.micro_batch) // 2
    dataset = rows.dataset.select([*short, *short, *drawn])
    few = dataclasses.replace(settings, large=sizes.counted)
    found = run_arm(step_arm(arm, cap), model, dataset, few, number=0, memory=True)
    return {"counted_rows": sizes.counted, "start_bytes": found.start_bytes, "peak_bytes": found.peak_bytes}


def equal_lengths(
    setting: Setting, model: Any, settings: StepSettings, options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """Where every row has as many tokens there is nothing to gain; it should cost nothing either."""
    if setting.model != SMALL or setting.checkpointing:
        return
    sizes, generator = options.sizes, torch.Generator().manual_seed(options.seed)
    count = 2 * sizes.counted
    ids = torch.randint(3, 4096, (count, options.max_length), generator=generator).tolist()
    dataset = Dataset.from_dict({"input_ids": ids, "labels": ids}).with_format("torch")
    few = dataclasses.replace(settings, large=sizes.counted)
    runs: dict[str, list[ArmRound]] = {PLAIN: [], "positions": []}
    for number in range(2 * options.rounds):
        for arm in turned(list(runs), number):
            runs[arm].append(run_arm(step_arm(arm, 0), model, dataset, few, number=number, memory=False))
    for arm, found in runs.items():
        yield {**said(setting, sizes), "arm": f"{arm}, equal lengths", "rows": sizes.counted,
               "length": options.max_length, **timed(found, runs[PLAIN])}  # fmt: skip


# ---- the same weights ------------------------------------------------------------------------------------------------


def weights(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """How far the weights of a sorted run are from those of the plain one, after steps of real size."""
    rows, sizes = Rows.of(options), options.sizes
    cap = max(rows.lengths) * sizes.same // 8
    for adapter, dtype, steps, norms in (
        ("full", torch.float32, sizes.steps, nullcontext), ("lora", torch.float32, sizes.steps, nullcontext),
        ("full", torch.float64, sizes.double_steps, nullcontext),
        ("full", torch.float64, sizes.double_steps, norms_as_wide),
    ):  # fmt: skip
        first = build_model(str(options.model), adapter=adapter, random_weights=False, seed=options.seed).to(dtype)
        name = str(dtype).removeprefix("torch.") + ", its norms too" * (norms is norms_as_wide)
        with norms():
            plain = trained(first, rows, None, steps, options)
            for arm in ("positions", CAPPED):
                coreset = CoresetConfig(pool_factor=1, micro_batches=way(arm, cap))
                found = trained(first, rows, coreset, steps, options)
                yield {"model": SMALL, "adapter": adapter, "dtype": name, "arm": arm, "steps": steps,
                       "rows": sizes.same, "apart": apart(found, plain),
                       "moved": apart(plain, trained_numbers(first))}  # fmt: skip


@contextmanager
def norms_as_wide() -> Iterator[None]:
    """While open, a Llama's norms compute in the type of their inputs; else they do in float32, of float64 too."""

    def forward(norm: Any, states: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)
        return norm.weight * (states * scale)

    usual = LlamaRMSNorm.forward
    LlamaRMSNorm.forward = forward
    try:
        yield
    finally:
        LlamaRMSNorm.forward = usual


def trained(
    first: Any, rows: Rows, coreset: CoresetConfig | None, steps: int, options: argparse.Namespace
) -> dict[str, torch.Tensor]:
    """The trained parameters of a copy of the model after so many steps of AdamW."""
    sizes, model = options.sizes, copy.deepcopy(first)
    micro = sizes.same // 4
    set_seed(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder, per_device_train_batch_size=micro, gradient_accumulation_steps=4,
            max_steps=steps, learning_rate=1e-3, save_strategy="no", logging_strategy="no", report_to=[],
            disable_tqdm=True, use_cpu=True, seed=options.seed,
        )  # fmt: skip
        given = {"model": model, "args": args, "train_dataset": rows.dataset, "data_collator": collate}
        trainer = Trainer(**given) if coreset is None else CoresetTrainer(**given, coreset=coreset)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trained_numbers(model)


def collate(rows: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Padded on the right."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(values: Iterator[torch.Tensor], fill: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(each, (0, width - len(each)), value=fill) for each in values])

    return {
        "input_ids": padded((row["input_ids"] for row in rows), 0),
        "labels": padded((row["labels"] for row in rows), -100),
        "attention_mask": padded((torch.ones_like(row["input_ids"]) for row in rows), 0),
    }


def trained_numbers(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}


def apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> float:
    """The length of the difference of all parameters, by the length of `other`."""
    difference = sum(float((one[name].double() - other[name].double()).square().sum()) for name in other)
    return float((difference / sum(float(value.double().square().sum()) for value in other.values())) ** 0.5)


# ---- how rows are cut ------------------------------------------------------------------------------------------------


def layouts(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Positions of many steps' micro-batches on one rank, and how alike the work of two ranks is."""
    rows, sizes = Rows.of(options), options.sizes
    for world in (1, 2):
        for arm in WAYS:
            found = [
                cut_step(arm, [rows.lengths[row] for row in rows.drawn(sizes.rows, options.seed + step)], world, sizes)
                for step in range(sizes.layouts)
            ]
            yield {"arm": arm, "ranks": world, "rows": sizes.rows, "micro_batch": sizes.micro_batch,
                   "steps": sizes.layouts, **summed(found)}  # fmt: skip


def cut_step(arm: str, lengths: Sequence[int], world: int, sizes: Sizes) -> dict[str, float]:
    """What the micro-batches of a step of such rows hold, each rank having drawn as many."""
    count, asked = len(lengths), len(lengths) // (world * sizes.micro_batch)
    numbers = torch.arange(count)
    pool = Pool(
        ids=numbers, sources=torch.zeros(count, dtype=torch.long), lengths=torch.tensor(lengths),
        tokens=torch.tensor(lengths), eligible=torch.ones(count, dtype=torch.bool), ranks=numbers % world,
        rows=numbers // world, batches=numbers // world // sizes.micro_batch,
        widths=torch.zeros(count, dtype=torch.long),
    )  # fmt: skip
    cut = make_cut(way(arm, largest_plain(lengths, sizes.micro_batch) // 2), pool_factor=1)
    layout = Cutting(
        cut=cut, world=world, rows=sizes.micro_batch, every_row=False, stays=False, padding=Padding(token=0),
    ).lay_out(pool, numbers, asked)  # fmt: skip
    ranks = [[[lengths[row] for row in piece] for piece in pieces if piece] for pieces in layout.pieces]
    tokens = [sum(map(sum, pieces)) for pieces in ranks]
    positions = [sum(len(piece) * max(piece) for piece in pieces) for pieces in ranks]
    return {
        "positions_a_token": layout.positions / sum(lengths),
        "plain_positions_a_token": layout.positions_plain / sum(lengths),
        "largest_to_plain": layout.largest / layout.largest_plain,
        "micro_batches": max(map(len, layout.pieces)) / asked,
        "tokens_apart": max(tokens) / statistics.mean(tokens) - 1,
        "positions_apart": max(positions) / statistics.mean(positions) - 1,
    }


def summed(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means over steps, and the greatest of what should be small."""
    means = {key: round(statistics.mean(each[key] for each in found), 4) for key in found[0]}
    most = {f"{key}_max": round(max(each[key] for each in found), 4) for key in ("tokens_apart", "positions_apart")}
    return means | most


# ---- what transformers' grouping does --------------------------------------------------------------------------------


def losses(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The loss of steps (mean over their tokens) of the small Llama as it is, in random order and grouped by length."""
    rows, sizes = Rows.of(options), options.sizes
    model = build_model(str(options.model), adapter="full", random_weights=False)
    head, order = evaluated_head(model), sorted(range(len(rows.lengths)), key=lambda row: rows.lengths[row])
    sums, counts = torch.zeros(len(order), dtype=torch.float64), torch.zeros(len(order), dtype=torch.long)
    model.eval()
    with torch.no_grad():
        for start in range(0, len(order), 64):
            part = order[start : start + 64]
            sums[part], counts[part] = row_losses(model, head, collate([rows.dataset[row] for row in part]), 4096)
    orders: dict[str, Callable[[int], list[int]]] = {
        PLAIN: lambda seed: rows.drawn(len(rows.lengths), seed),
        GROUPED: lambda seed: grouped_order(rows.lengths, sizes.rows, seed),
    }
    for arm, drawn in orders.items():
        steps = [
            torch.tensor(epoch[start : start + sizes.rows])
            for epoch in map(drawn, range(options.seed, options.seed + sizes.orders))
            for start in range(0, len(epoch) - sizes.rows + 1, sizes.rows)
        ]
        yield {"model": SMALL, "arm": arm, "rows": sizes.rows, "epochs": sizes.orders,
               "token_mean": float(sums.sum() / counts.sum()), **loss_of_steps(steps, sums, counts)}  # fmt: skip


def loss_of_steps(steps: Sequence[torch.Tensor], sums: torch.Tensor, counts: torch.Tensor) -> dict[str, float]:
    """Mean and standard deviation over steps of their loss, and of their trained tokens by the mean."""
    found = torch.stack([sums[step].sum() / counts[step].sum() for step in steps])
    tokens = torch.stack([counts[step].sum() for step in steps]).double()
    return {
        "mean": float(found.mean()),
        "deviation": float(found.std()),
        "tokens_deviation": float(tokens.std() / tokens.mean()),
    }


# ---- the page --------------------------------------------------------------------------------------------------------


PARTS: dict[str, Callable[[argparse.Namespace], Iterator[dict[str, Any]]]] = {
    "cost": costs,
    "layout": layouts,
    "weights": weights,
    "loss": losses,
}


def page(lines: Sequence[dict[str, Any]]) -> str:
    """What stands in docs/evidence/measurements.md: a paragraph and a table for each part that has lines."""
    of = {part: [line for line in lines if line["part"] == part] for part in PARTS}
    written = {"cost": cost_page, "layout": layout_page, "weights": weights_page, "loss": loss_page}
    return "\n\n".join(f"{written[part](found)}\n\n{whence(found[0])}" for part, found in of.items() if found)


def whence(line: dict[str, Any]) -> str:
    data = f"{line['data']}, rows of at most {line['max_length']} tokens"
    return f"`python benchmarks/micro_batches.py`; {data}; {origin(line)}."


def cost_page(lines: Sequence[dict[str, Any]]) -> str:
    first = lines[0]
    unequal = [line for line in lines if "length" not in line]
    arms = list(dict.fromkeys(line["arm"] for line in unequal))
    of = {(line["setting"], line["arm"]): line for line in lines}
    settings = list(dict.fromkeys(line["setting"] for line in lines))
    others = [arm for arm in arms if arm != PLAIN]

    def faster(setting: str, arm: str) -> str:
        line = of.get((setting, arm))
        return "-" if line is None else f"{line['faster']:.2f}x ({line['faster_min']:.2f} to {line['faster_max']:.2f})"

    def memory(setting: str, arm: str) -> str:
        line = of[setting, arm]
        return f"{line['peak_bytes'] / 2**20:,.0f} MB ({line['peak_to_plain']:.2f})"

    times = [[s, f"{of[s, PLAIN]['step_ms'] / 1000:.1f} s", *(faster(s, arm) for arm in others)] for s in settings]
    held = [[arm, *(f"{f(of[settings[0], arm]):{form}}" for f, form in HELD)] for arm in arms]
    peaks = [[s, *(memory(s, arm) for arm in FEW)] for s in settings]
    equal = ", ".join(f"{faster(s, 'positions, equal lengths')} ({s})" for s in settings
                      if (s, "positions, equal lengths") in of)  # fmt: skip
    return f"""How many times faster a trained token is than in plain accumulation of {first["rows"]} rows in
micro-batches of {first["micro_batch"]} as the loader made them: median of the rounds, least and greatest.
`{CAPPED}`: with a cap of half the positions of the largest plain micro-batch. `{GROUPED}`: transformers'
own, whose steps are of rows that are as long as each other and so are other updates. `{DEFAULT}`:
`CoresetConfig(pool_factor=4)`, which draws four rows for one that it trains.

{table(["", "plain step", *others], times)}

What a step holds ({settings[0]}); scored tokens are those of forwards that choose.

{table(["", "trained tokens", "positions a token", "largest micro-batch, positions", "scored tokens"], held)}

Peak of live bytes in a step of {first["counted_rows"]} rows, weights and optimizer state included (by plain's):

{table(["", *FEW], peaks)}

At equal lengths there is nothing to gain: {equal}."""


HELD: tuple[tuple[Callable[[dict[str, Any]], float], str], ...] = (
    (lambda line: line["tokens"], ",.0f"),
    (lambda line: line["positions_a_token"], ".2f"),
    (lambda line: line["largest_micro_batch"], ",.0f"),
    (lambda line: line["scored"], ",.0f"),
)


def layout_page(lines: Sequence[dict[str, Any]]) -> str:
    of = {(line["arm"], line["ranks"]): line for line in lines}
    first = lines[0]
    rows = [["plain", f"{first['plain_positions_a_token']:.3f}", "1.00", "1.0", "-", "-"]]
    for arm in dict.fromkeys(line["arm"] for line in lines):
        one, two = of[arm, 1], of[arm, 2]
        rows.append([
            arm, f"{one['positions_a_token']:.3f}", f"{one['largest_to_plain']:.2f}", f"{one['micro_batches']:.1f}",
            *(f"{100 * two[f'{what}_apart']:.1f} % ({100 * two[f'{what}_apart_max']:.1f} %)"
              for what in ("tokens", "positions")),
        ])  # fmt: skip
    heads = ["", "positions a token", "largest, by plain's", "micro-batches, by those asked for"]
    return f"""{first["steps"]} steps of {first["rows"]} rows, cut and not trained: means over steps. On two ranks, how
much more the busier one has than the mean of both (at most in any step):

{table([*heads, "two ranks: tokens", "positions"], rows)}"""


def weights_page(lines: Sequence[dict[str, Any]]) -> str:
    heads = ["", "", "steps", "moved by", *dict.fromkeys(line["arm"] for line in lines)]
    runs: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for line in lines:
        runs.setdefault((line["adapter"], line["dtype"]), []).append(line)
    rows = [
        ["LoRA" if adapter == "lora" else "full", dtype, str(found[0]["steps"]), f"{found[0]['moved']:.2g}",
         *(f"{line['apart']:.1e}" for line in found)]
        for (adapter, dtype), found in runs.items()
    ]  # fmt: skip
    return f"""How far the trained parameters of the small Llama are from those of the plain run after so many steps of
{lines[0]["rows"]} rows (AdamW, learning rate 1e-3), by their length; and how far training moved them.
transformers computes a Llama's norms in float32 in a model of float64 too, where a rounding falls the other way at
times; the last line is without that:

{table(heads, rows)}"""


def loss_page(lines: Sequence[dict[str, Any]]) -> str:
    rows = [
        ["random" if line["arm"] == PLAIN else f"`{line['arm']}`", f"{line['mean']:.3f}", f"{line['deviation']:.3f}",
         f"{100 * line['tokens_deviation']:.0f} %"]
        for line in lines
    ]  # fmt: skip
    first = lines[0]
    return f"""What transformers' grouping does to the loss that a step minimises: over {first["epochs"]} epochs of
steps of {first["rows"]} rows, with the small Llama as it is, whose loss over all tokens is {first["token_mean"]:.3f}.
A step is a mean over its own tokens, so where steps differ in tokens, those of short rows count more.

{table(["order of rows", "mean over steps", "standard deviation", "standard deviation of a step's tokens"], rows)}"""


if __name__ == "__main__":
    main()

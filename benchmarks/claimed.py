"""Whether what is trained is what is claimed: the mean of the trained gradient over seeds, through the real trainer.

    python benchmarks/claimed.py --seeds 300

A tiny GPT-2 in float64 with LoRA or without. For each objective and each way to draw rows so many runs of
`CoresetTrainer`, each of four optimizer steps with a learning rate of 0, with a seed of its own for the order of rows
and for choosing. A step divides by what its large batch holds, D = sum_i a_i l_i (in a mean over examples sum_i a_i),
which differs from pool to pool, so that a mean of quotients is not quite the quotient of means. What is compared is
therefore the mean of D times the trained gradient, over the expectation of D, and the gradient of what is claimed,
sum_i u_i v_i dL_i / sum_i l_i over the rows of the data. With the objective `drawn` a row counts as often as it is
drawn. u_i, the rows' own weights v_i and dL_i are computed here, apart from corebatch.

The error is that of all parameters together. Where nothing is biased it is about one standard error; what another
objective would have had says by how much the two are told apart.

Lines go to benchmarks/results/claimed.jsonl, a table into docs/methods/objective.md; `--table` writes it from the lines
that are there. tests/invariants/test_claimed.py runs the same with few seeds.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from corebatch.batch.step import BatchStep
from corebatch.trainer import CoresetConfig, CoresetTrainer
from pages import ROOT, origin, provenance, table, write_between, write_lines

PAGE, OUTPUT = ROOT / "docs" / "methods" / "objective.md", ROOT / "benchmarks" / "results" / "claimed.jsonl"
ROWS = {"long": 24, "middle": 16, "short": 16, "rare": 8}
LENGTHS = {"long": (12, 20), "middle": (6, 12), "short": (3, 5), "rare": (3, 8)}
OBJECTIVES: dict[str, Any] = {
    "tokens": "tokens",
    "examples": "examples",
    "sources": "sources",
    "shares": {"long": 0.1, "rare": 0.4},
    "temperature": {"temperature": 0.5},
    "drawn": "drawn",
}
DRAWINGS: dict[str, dict[str, Any] | None] = {
    "as in the data": None,
    "skewed": {"shares": {"long": 0.125, "middle": 0.25, "short": 0.125, "rare": 0.5}},
    "equally often": {"temperature": 0.0},
}
CHOSEN: dict[str, dict[str, Any]] = {
    "all rows": {"pool_factor": 1},
    "cube": {"pool_factor": 2, "scorer": "label_counts", "selector": "cube"},
    "importance": {"pool_factor": 4, "scorer": "tokens", "selector": "importance"},
    "default": {"pool_factor": 4},
}
"""How rows are chosen. The default follows its errors over steps, and is not unbiased in a step."""
STEPS, ROWS_TRAINED = 4, 8


# ---- data and model --------------------------------------------------------------------------------------------------


def data(seed: int = 0) -> Dataset:
    """Rows of four sources of unlike length and with tokens of their own, so that their gradients tell them apart, each
    with a weight of its own."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for place, (source, count) in enumerate(ROWS.items()):
        first = 3 + 7 * place
        low, high = LENGTHS[source]
        for number in range(count):
            trained = int(torch.randint(low, high + 1, (1,), generator=generator))
            ids = torch.randint(first, first + 7, (trained + 2,), generator=generator).tolist()
            rows.append(
                {"input_ids": ids, "labels": [-100, -100, *ids[2:]], "source": source, "weight": 0.5 + number % 3}
            )
    return Dataset.from_list(rows)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    width = max(len(row["input_ids"]) for row in rows)

    def padded(key: str, value: int) -> Tensor:
        return torch.tensor([[*row[key], *[value] * (width - len(row[key]))] for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    return {"input_ids": padded("input_ids", 0), "labels": padded("labels", -100), "attention_mask": torch.tensor(mask)}


def tiny_model(lora: bool) -> Any:
    """In float64 throughout, so that what differs is what is trained."""
    set_seed(0)
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=32, n_embd=16, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.0, embd_pdrop=0.0,
            attn_pdrop=0.0, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).double()  # fmt: skip
    if not lora:
        return model
    adapters = LoraConfig(r=2, target_modules=["c_attn"], init_lora_weights=False, fan_in_fan_out=True)
    return get_peft_model(model, adapters, autocast_adapter_dtype=False)


def trained_parameters(model: Any) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


# ---- what is claimed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Truth:
    """What the rows of the data are.

    Attributes:
        gradients: [n, P], of each row's summed token loss.
        tokens, weights: [n], trained tokens and the column of weights.
        sources: n names.
    """

    gradients: Tensor
    tokens: Tensor
    weights: Tensor
    sources: Sequence[str]

    @classmethod
    def of(cls, model: Any, rows: Dataset) -> Truth:
        """By autograd, row by row."""
        parameters = trained_parameters(model)
        model.eval()
        found = []
        for row in rows:
            batch = collate([row])
            logits = model(input_ids=batch["input_ids"]).logits[0, :-1]
            loss = torch.nn.functional.cross_entropy(logits, batch["labels"][0, 1:], ignore_index=-100, reduction="sum")
            found.append(torch.cat([part.flatten() for part in torch.autograd.grad(loss, parameters)]))
        tokens = torch.tensor([sum(label != -100 for label in row["labels"][1:]) for row in rows], dtype=torch.float64)
        weights = torch.tensor(rows["weight"], dtype=torch.float64)
        return cls(torch.stack(found).double(), tokens, weights, list(rows["source"]))

    def shares(self, objective: Any) -> dict[str, float]:
        """omega_s of an objective that goes by source."""
        held: Counter[str] = Counter()
        for source, count in zip(self.sources, self.tokens.tolist(), strict=True):
            held[source] += count
        if objective == "sources":
            return {source: 1 / len(held) for source in held}
        if "temperature" in objective:
            powers = {source: count ** objective["temperature"] for source, count in held.items()}
            return {source: power / sum(powers.values()) for source, power in powers.items()}
        rest = sum(count for source, count in held.items() if source not in objective)
        left = 1 - sum(objective.values())
        return {source: objective.get(source, left * count / rest) for source, count in held.items()}

    def counts(self, objective: Any, weighted: bool) -> Tensor:
        """u_i v_i of every row, by what its summed loss is multiplied (over l_i in a mean over examples): [n]."""
        u = torch.ones_like(self.tokens)
        if objective == "examples":
            u = 1 / self.tokens
        elif objective not in ("tokens", "drawn"):
            omega = self.shares(objective)
            held = {source: float(self.tokens[self.rows_of(source)].sum()) for source in omega}
            whole = float(self.tokens.sum())
            u = torch.tensor([omega[source] * whole / held[source] for source in self.sources], dtype=torch.float64)
        return u * self.weights if weighted else u

    def rows_of(self, source: str) -> list[int]:
        return [row for row, own in enumerate(self.sources) if own == source]

    def often(self, drawing: Mapping[str, Any] | None) -> Tensor:
        """How much more often than in the data each row is drawn: n p_s / n_s, [n]."""
        count = len(self.sources)
        if drawing is None:
            return torch.ones(count, dtype=torch.float64)
        shares = drawing.get("shares") or dict.fromkeys(ROWS, 1 / len(ROWS))
        return torch.tensor([shares[s] * count / len(self.rows_of(s)) for s in self.sources], dtype=torch.float64)

    def size(self, objective: Any, drawing: Mapping[str, Any] | None) -> float:
        """The expectation of D / N."""
        if objective == "examples":
            return 1.0
        each = self.tokens * self.often(drawing) if objective == "drawn" else self.tokens
        return float(each.mean())

    def claimed(self, objective: Any, drawing: Mapping[str, Any] | None, weighted: bool) -> Tensor:
        """The gradient of what is claimed: [P]."""
        counts = self.counts(objective, weighted)
        if objective == "drawn":
            counts = counts * self.often(drawing)
        return counts @ self.gradients / len(self.sources) / self.size(objective, drawing)

    def divisor(self, objective: Any, drawing: Mapping[str, Any] | None, pool: Sequence[int]) -> float:
        """D of a large batch."""
        size = torch.ones_like(self.tokens) if objective == "examples" else self.tokens
        a = 1.0 if objective == "drawn" else 1 / self.often(drawing)
        return float((a * size)[torch.tensor(pool)].sum())

    def sample(self, case: Case, found: Sequence[tuple[Tensor, list[int]]]) -> Tensor:
        """The mean over a run's steps of the trained gradient times D over its expectation: [P]."""
        objective, drawing = OBJECTIVES[case.objective], DRAWINGS[case.drawing]
        each = [gradient * self.divisor(objective, drawing, pool) / len(pool) for gradient, pool in found]
        return torch.stack(each).mean(dim=0) / self.size(objective, drawing)


# ---- what is trained -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is claimed, and how rows are drawn and chosen."""

    objective: str
    drawing: str = "as in the data"
    chosen: str = "importance"
    lora: bool = False
    weighted: bool = False
    ranks: int = 1

    def coreset(self, seed: int) -> CoresetConfig:
        column = "weight" if self.weighted else None
        return CoresetConfig(
            objective=OBJECTIVES[self.objective], sampling=DRAWINGS[self.drawing], weight_column=column, seed=seed,
            **CHOSEN[self.chosen],
        )  # fmt: skip


class Reads(TrainerCallback):
    """Keeps the gradient that the optimizer gets."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.found: list[Tensor] = []

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        parts = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained_parameters(self.model)]
        self.found.append(torch.cat([part.flatten() for part in parts]).clone())


@contextmanager
def pools() -> Iterator[list[list[int]]]:
    """The example ids of each large batch, as the step saw them."""
    found: list[list[int]] = []
    honest = BatchStep.run

    def run(self: BatchStep, *args: Any, **kwargs: Any) -> Any:
        small = honest(self, *args, **kwargs)
        found.append(small.pool_ids.tolist())
        return small

    BatchStep.run = run  # type: ignore[method-assign]
    try:
        yield found
    finally:
        BatchStep.run = honest  # type: ignore[method-assign]


def gradients(case: Case, model: Any, rows: Dataset, seed: int, steps: int) -> list[tuple[Tensor, list[int]]]:
    """The gradients of a run's steps, all at the same weights, and the rows of their large batches."""
    reads, world = Reads(model), int(os.environ.get("WORLD_SIZE", "1"))
    with tempfile.TemporaryDirectory() as folder, pools() as found:
        args = TrainingArguments(
            folder, per_device_train_batch_size=4, gradient_accumulation_steps=ROWS_TRAINED // 4 // world,
            max_steps=steps, learning_rate=0.0, optim="sgd", max_grad_norm=0.0, seed=seed, data_seed=seed,
            save_strategy="no", logging_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
            ddp_backend="gloo" if world > 1 else None,
        )  # fmt: skip
        trainer: Any = CoresetTrainer(
            model=model, args=args, train_dataset=rows, data_collator=collate, callbacks=[reads],
            coreset=case.coreset(seed),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return list(zip(reads.found, found, strict=True))


@dataclass(frozen=True, kw_only=True)
class Found:
    """How far the mean over seeds is from what is claimed.

    Attributes:
        error: norm of the mean's error, over that of the expectation.
        standard: the standard error of that norm: sqrt(trace of the covariance / seeds), over the same.
        power: the error to what the nearest other objective claims, in standard errors.
    """

    error: float
    standard: float
    power: float

    @property
    def in_standard_errors(self) -> float:
        return self.error / self.standard if self.standard else 0.0


def measure(case: Case, seeds: Sequence[int], steps: int = STEPS) -> Found:
    """Over runs of these seeds and so many steps."""
    rows, model = data(), tiny_model(case.lora)
    truth = Truth.of(model, rows)
    each = torch.stack([truth.sample(case, gradients(case, model, rows, seed, steps)) for seed in seeds])
    claims = {name: truth.claimed(made, DRAWINGS[case.drawing], case.weighted) for name, made in OBJECTIVES.items()}
    wanted = claims[case.objective]
    off = {name: float((each.mean(dim=0) - claim).norm()) for name, claim in claims.items()}
    others = [far for name, far in off.items() if float((claims[name] - wanted).norm()) > 1e-6 * float(wanted.norm())]
    size = float(wanted.norm())
    standard = float((each.var(dim=0).sum() / len(seeds)).sqrt())
    return Found(error=off[case.objective] / size, standard=standard / size, power=min(others) / standard)


# ---- the page --------------------------------------------------------------------------------------------------------

CASES = (
    *(
        Case(objective=objective, drawing=drawing, weighted=drawing == "skewed", lora=drawing == "equally often")
        for objective in OBJECTIVES
        for drawing in DRAWINGS
    ),
    *(Case(objective=objective, drawing="skewed", chosen="cube", lora=True) for objective in OBJECTIVES),
    *(Case(objective=objective, drawing="skewed", chosen="all rows", weighted=True) for objective in OBJECTIVES),
    *(Case(objective=objective, chosen="default") for objective in ("tokens", "examples", "sources")),
    *(Case(objective="sources", drawing="skewed", ranks=2, lora=lora) for lora in (False, True)),
)


def line(case: Case, seeds: int) -> dict[str, Any]:
    """A case's line; on several ranks by processes of their own."""
    if case.ranks == 1:
        found = measure(case, range(1, seeds + 1))
    else:
        words = [f"--nproc_per_node={case.ranks}", __file__, "--case", json.dumps(asdict(case)), "--seeds", str(seeds)]
        command = [sys.executable, "-m", "torch.distributed.run", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found = Found(**json.loads(done.stdout.strip().splitlines()[-1]))
    return {**asdict(case), **asdict(found), "seeds": seeds, **provenance(1)}


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for each in lines:
        what = "LoRA" if each["lora"] else "all weights"
        how = f"{each['chosen']}{', two ranks' * (each['ranks'] == 2)}"
        weights = "of the rows" if each["weighted"] else "none"
        error, standard = each["error"], each["standard"]
        off = f"{100 * error:.1f} %", f"{100 * standard:.1f} %", f"{error / standard:.1f}", f"{each['power']:.0f}"
        rows.append([each["objective"], each["drawing"], how, what, weights, *off])
    heads = ["objective", "rows drawn", "rows chosen", "trained", "own weights"]
    heads += ["error", "one standard error", "in standard errors", "to the nearest other"]
    first = lines[0]
    made = f"{first['seeds']} seeds of {STEPS} steps each, {ROWS_TRAINED} of 8, 16 or 32 rows trained"
    return f"{table(heads, rows)}\n\n`python benchmarks/claimed.py`; {made}; {origin(dict(first))}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--case", type=json.loads, help="measures one, and prints it")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    options = parser.parse_args()
    quiet()
    if options.case is not None:
        found = measure(Case(**options.case), range(1, options.seeds + 1))
        print(json.dumps(asdict(found)), flush=True)
        return
    if not options.table:
        made = []
        for case in CASES:
            made.append(line(case, options.seeds))
            print({key: made[-1][key] for key in ("objective", "drawing", "chosen", "error", "standard")}, flush=True)
        write_lines(options.output, made)
    lines = [json.loads(each) for each in options.output.read_text(encoding="utf-8").splitlines()]
    write_between(PAGE, "claimed", page(lines))


def quiet() -> None:
    """Thousands of runs: no warnings, and nothing of what is imported is looked at when a run frees its memory."""
    torch.set_num_threads(1)
    logging.getLogger("corebatch").setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    main()

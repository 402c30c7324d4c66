"""What `corebatch advise` expects of a step's time, against what the trainer takes; time and memory told and measured.

    python benchmarks/advice.py --small-llama .cache/small-llama --data ../shared/data/mathmix

For each case (a model, a mixture, how steps are cut) the measurements `costs`, `padding` and `scoring` run as the
command runs them. Then steps are made by the trainer of the command line, as configured and with the keys of every
finding that has a factor of a step's time, in turn, on the same rows; a round is every arm once, and the ratio of
seconds a token is taken within a round. Mixtures: easy tasks and reasoning tasks (benchmarks/easy_tasks.py, the
demo's), mathmix, and text of a fixed length. Models: a Llama of 1 M parameters, one of 5.8 M, and SmolLM2-135M where
`--smollm2` says where it lies.

On a CPU with one thread all times are the process's own CPU time, which on an idle machine is the time that passes:
what else the machine does is no part of either side.

Lines go to --output and a table into docs/running/advise.md; `--table` writes it from the lines that are there.
`--quick` runs the first case with little time, and writes nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import easy_tasks
from corebatch.bench.advise import padding, scoring, shapes, steps
from corebatch.bench.advise.engine import PARTS, measure_all
from corebatch.bench.advise.finding import Finding
from corebatch.bench.advise.probe import Probe, make_probe
from corebatch.bench.timing import Spread, turned
from corebatch.config.settings import settings_from
from corebatch.config.values import with_keys
from corebatch.demo import DEMO_SOURCES, make_mixture
from corebatch.errors import CorebatchError
from pages import ROOT, origin, provenance, table, write_between, write_lines

HERE = Path(__file__).parent
PAGE, OUTPUT = ROOT / "docs" / "running" / "advise.md", HERE / "results" / "advice.jsonl"
TINY, SMALL, SMOLLM2 = "Llama 1 M", "Llama 5.8 M", "SmolLM2-135M"
EASY, REASONING, MATHMIX, FIXED = "easy tasks", "reasoning tasks", "mathmix", "fixed length"
MEASURED = ("costs", "padding", "scoring")
LORA = {"lora_r": 16, "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}
WIDTH = 128
"""Tokens of a row of fixed length."""
STEP_FACTORS = ("seconds a step", "seconds a token")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A run that is advised.

    Attributes:
        rows, micro_batches: of a step.
        keys: of the config, beside model and data.
        seconds: of the advice.
        rounds, steps: of each arm.
    """

    model: str
    mixture: str
    rows: int
    micro_batches: int
    keys: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 40
    rounds: int = 2
    steps: int = 2

    @property
    def name(self) -> str:
        how = "LoRA" if "lora_r" in self.keys else "full"
        drawn = self.keys.get("coreset", {}).get("pool_factor", 1)
        more = f", {drawn} drawn for one trained" if drawn > 1 else ""
        return f"{self.model}, {how}, {self.mixture}, {self.micro_batches} x {self.rows}{more}"


CASES = (
    Case(model=TINY, mixture=EASY, rows=8, micro_batches=4, steps=3),
    Case(model=TINY, mixture=REASONING, rows=16, micro_batches=1, steps=3),
    Case(model=TINY, mixture=MATHMIX, rows=4, micro_batches=4),
    Case(model=TINY, mixture=FIXED, rows=4, micro_batches=2),
    Case(model=SMALL, mixture=REASONING, rows=4, micro_batches=4, keys={**LORA, "coreset": {"pool_factor": 2}}),
    Case(model=SMALL, mixture=MATHMIX, rows=4, micro_batches=4, keys=LORA, seconds=90),
    Case(model=SMALL, mixture=FIXED, rows=4, micro_batches=2, keys=LORA, seconds=150, steps=1),
    Case(model=SMOLLM2, mixture=REASONING, rows=4, micro_batches=2, keys=LORA, seconds=150, steps=1),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small-llama", type=Path, default=ROOT / ".cache" / "small-llama")
    parser.add_argument("--tiny-llama", type=Path, default=ROOT / ".cache" / "tiny-llama")
    parser.add_argument("--smollm2", type=Path, help="the folder of SmolLM2-135M; without it that case is left out")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--only", nargs="+", help="cases with one of these in their names; the lines of others stay")
    parser.add_argument("--table", action="store_true", help="measure nothing, write the page")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.table:
        write_page(options.output)
        return
    torch.set_num_threads(options.threads)
    if options.threads == 1 and not torch.cuda.is_available():
        for module in (shapes, steps, scoring):
            vars(module)["time"] = CpuTime
    with tempfile.TemporaryDirectory() as folder:
        inputs = Inputs(Path(folder), options)
        chosen = [case for case in CASES if case.model != SMOLLM2 or options.smollm2 is not None]
        if options.only:
            chosen = [case for case in chosen if any(part in case.name for part in options.only)]
        names = [case.name for case in chosen]
        lines = [line for line in read_lines(options.output) if options.only and line["case"] not in names]
        for case in chosen[:1] if options.quick else chosen:
            began = time.monotonic()
            lines += list(of_case(case, inputs, options))
            if not options.quick:
                write_lines(options.output, lines)
            print(f"{case.name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if options.quick:
        print(page(lines))
        return
    write_page(options.output)


class CpuTime:
    """In the place of the module `time`: seconds of this process alone."""

    perf_counter = staticmethod(time.process_time)
    monotonic = staticmethod(time.monotonic)


# ---- inputs ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inputs:
    """Models and mixtures, made where they are asked for."""

    folder: Path
    options: argparse.Namespace

    def model(self, name: str) -> Path:
        """A folder; the small ones are made where there are none."""
        path: Path = {TINY: self.options.tiny_llama, SMALL: self.options.small_llama, SMOLLM2: self.options.smollm2}[
            name
        ]
        if not (path / "config.json").is_file():
            small = ["--steps", "0", "--vocabulary", "2048", "--hidden", "128", "--blocks", "4"] if name == TINY else []
            words = [sys.executable, HERE / "small_llama.py", "--data", self.options.data, "--output", path, *small]
            subprocess.run(words, check=True)
        return path

    def data(self, name: str) -> Path:
        """A file of JSON lines."""
        if name == MATHMIX:
            return Path(self.options.data) / "train.jsonl"
        if name == REASONING:
            sources = [dataclasses.replace(each, examples=max(20, each.examples // 8)) for each in DEMO_SOURCES]
            return Path(make_mixture(self.folder / "reasoning", seed=0, sources=sources, heldout_per_source=1).train)
        path = self.folder / f"{name}.jsonl"
        rows: Sequence[Mapping[str, Any]] = easy_tasks.rows(1200, 0) if name == EASY else fixed_rows(400)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path


def fixed_rows(count: int) -> list[dict[str, list[int]]]:
    """Rows of WIDTH token ids, all trained, as a corpus that was cut into blocks has them; the ids are random."""
    ids = torch.randint(3, 2000, (count, WIDTH), generator=torch.Generator().manual_seed(0)).tolist()
    return [{"input_ids": row, "labels": row} for row in ids]


def values_of(case: Case, inputs: Inputs) -> dict[str, Any]:
    """The case's config."""
    return {
        "model_name_or_path": str(inputs.model(case.model)),
        "datasets": [{"path": str(inputs.data(case.mixture))}],
        "dataset_cache": False,
        "output_dir": str(inputs.folder / "run"),
        "max_length": 256,
        "per_device_train_batch_size": case.rows,
        "gradient_accumulation_steps": case.micro_batches,
        "max_steps": 100,
        "learning_rate": 1e-4,
        "use_cpu": not torch.cuda.is_available(),
        "seed": inputs.options.seed,
        "coreset": {"pool_factor": 1},
        **case.keys,
    }


# ---- a case ----------------------------------------------------------------------------------------------------------


def of_case(case: Case, inputs: Inputs, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each finding with a factor of a step's time, and one of what a step was predicted to cost."""
    values = values_of(case, inputs)
    seconds = 3.0 if options.quick else case.seconds
    probe = make_probe(settings_from(values, case.name), seconds=seconds)
    probe.deadline = time.monotonic() + seconds  # without reading data and model
    findings, _ = measure_all(probe, {name: PARTS[name] for name in MEASURED})
    common = {"benchmark": "advice", "case": case.name, **provenance(options.seed)}
    costs = {
        finding.lever: dict(finding.numbers) for finding in findings if finding.lever in ("time of a step", "memory")
    }
    yield {**common, "kind": "costs", **{key: each for numbers in costs.values() for key, each in numbers.items()}}
    asked = [finding for finding in findings if finding.factor is not None and finding.of in STEP_FACTORS]
    for finding, ratios in measured(case, values, probe, asked, 1 if options.quick else case.rounds):
        yield {
            **common,
            "kind": "factor",
            "lever": finding.lever,
            "arm": finding.arm,
            "recommended": finding.recommended,
            "expected": finding.factor,
            "expected_low": finding.low,
            "expected_high": finding.high,
            "measured": ratios.value,
            "measured_min": ratios.low,
            "measured_max": ratios.high,
        }


def measured(
    case: Case, values: Mapping[str, Any], probe: Probe, findings: Sequence[Finding], rounds: int
) -> Iterator[tuple[Finding, Spread]]:
    """Seconds a token of each finding's arm over those as configured, by rounds of all arms in turn."""
    arms: list[Finding | None] = [None, *findings]
    took: list[list[float]] = [[] for _ in arms]
    for number in range(rounds):
        for place in turned(range(len(arms)), number):
            took[place].append(seconds_a_token(case, values, probe, arms[place], number))
    for finding, own in zip(findings, took[1:], strict=True):
        yield finding, Spread.of([one / other for one, other in zip(own, took[0], strict=True)])


def seconds_a_token(case: Case, values: Mapping[str, Any], probe: Probe, finding: Finding | None, number: int) -> float:
    """Of the steps that the trainer makes with the keys of a finding."""
    settings = settings_from(with_keys(values, {} if finding is None else finding.arm), case.name)
    own = dataclasses.replace(probe, settings=settings, args=settings.training_arguments(), deadline=float("inf"))
    rows = list(probe.order)
    if finding is not None and finding.lever == padding.GROUPED:
        rows = padding.rows_of(probe, padding.GROUPED)
    first = number * case.steps * own.batch_size * settings.coreset.pool_factor % len(rows)
    try:
        made = steps.make_steps(own, rows[first:] + rows[:first], case.steps)
    except CorebatchError as error:
        raise SystemExit(f"{case.name}: {finding and finding.lever}: {error}") from error
    return sum(made.seconds) / sum(made.tokens)


# ---- the page --------------------------------------------------------------------------------------------------------


def write_page(output: Path) -> None:
    """From the lines that are there."""
    lines = read_lines(output)
    write_between(PAGE, "advice", page(lines))


def read_lines(output: Path) -> list[dict[str, Any]]:
    """In the order of the cases; none where there is no file."""
    if not output.is_file():
        return []
    order = [case.name for case in CASES]
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return sorted(lines, key=lambda line: order.index(line["case"]))


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """How far factors were from what was measured, all of them, and what a step was predicted to cost."""
    factors = [line for line in lines if line["kind"] == "factor"]
    costs = [line for line in lines if line["kind"] == "costs"]
    off = [abs(line["expected"] / line["measured"] - 1) for line in factors]
    signs = [line for line in factors if clear(line)]
    right = sum((line["expected"] < 1) == (line["measured"] < 1) for line in signs)
    within = sum(each <= 0.25 for each in off)
    timed = [
        abs(line["predicted_train_seconds"] / line["train_seconds"] - 1) for line in costs if "train_seconds" in line
    ]
    parts = [
        f"Of {len(factors)} factors {within} are within 25 % of what was measured, the median is "
        f"{statistics.median(off):.0%} off, the worst {max(off):.0%}. Where the measured one is clear of 1 by 3 % or "
        f"more, {right} of {len(signs)} have the right sign.",
        table(
            ("case", "lever", "expected", "measured", "off by"),
            [
                (line["case"], line["lever"], spread(line, "expected", "low", "high"),
                 spread(line, "measured", "min", "max"), f"{line['expected'] / line['measured'] - 1:+.0%}")
                for line in factors
            ],
        ),
        *(
            [f"Forward and backward of a step were told from single micro-batches within {max(timed):.0%} of what the "
             f"trainer took (median {statistics.median(timed):.0%}); memory, beside what was measured:"]
            if timed else []
        ),
        table(
            ("case", "step, s", "forward and backward, s", "told, s", "memory, MB", "predicted, MB"),
            [[line["case"], *(number(line, key) for key in COSTS)] for line in costs],
        ),
        f"({origin({**lines[0], 'commit': ', '.join(dict.fromkeys(line['commit'] for line in lines))})}.)",
    ]  # fmt: skip
    return "\n\n".join(parts)


COSTS = ("step_seconds", "train_seconds", "predicted_train_seconds", "measured_mb", "predicted_mb")


def clear(line: Mapping[str, Any]) -> bool:
    """Whether the measured factor is clear of 1."""
    return abs(line["measured"] - 1) >= 0.03


def number(line: Mapping[str, Any], key: str) -> str:
    value = line.get(key)
    return "-" if value is None else f"{value:,.0f}" if key.endswith("mb") else f"{value:.3g}"


def spread(line: Mapping[str, Any], key: str, low: str, high: str) -> str:
    least, most = line[f"{key}_{low}"], line[f"{key}_{high}"]
    return f"{line[key]:.2f}" + ("" if least is None else f" ({least:.2f} to {most:.2f})")


if __name__ == "__main__":
    main()

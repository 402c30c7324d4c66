"""The paper's ablations and its reviewers' questions, measured: tables of docs/evidence/ablations.md.

    python benchmarks/small_llama.py
    python benchmarks/ablations.py --output benchmarks/results/ablations.jsonl
    python benchmarks/ablations.py --print benchmarks/results/ablations.jsonl

Three parts, `--parts`, of which each adds its lines to --output when it is done:

- gradients: one thing of a method changed at a time, by `bench gradients`: how near the small batch's gradient is to
  the large batch's and the population's, with its bias, length and cost.
- vocabulary: scoring and a training step of a tiny decoder with 131,072 words; seconds and live bytes.
- memory: live bytes of a step against its batch, in one micro-batch and accumulated.

One thread. About an hour on a CPU core. --quick runs tiny sizes, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import LlamaConfig

from corebatch.bench.gradients import parse_methods
from corebatch.bench.gradients.lines import worth, write_lines
from corebatch.bench.gradients.run import bench_gradients
from corebatch.bench.live_bytes import LiveBytes
from corebatch.bench.models import build_model
from corebatch.bench.steps.arm import Rows, run_arm
from corebatch.bench.steps.measure import bench_step
from corebatch.bench.steps.plan import ACCUMULATION, COREBATCH, SMALL, Shape, StepArm, StepSettings, plan
from corebatch.config.building import load_model, load_tokenizer, read_mixture
from corebatch.config.settings import load_settings
from corebatch.model import head_loss
from corebatch.model.modes import scoring_mode
from corebatch.record.provenance import provenance
from corebatch.scoring import Scorer, make_scorer
from corebatch.trainer import CoresetConfig

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("gradients", "vocabulary", "memory")

# ---- gradients -------------------------------------------------------------------------------------------------------

BALANCED = {"selector": "balanced"}  # the default when these were measured
ONE, THREE = ({**BALANCED, "scorer_options": {"num_blocks": blocks}} for blocks in (1, 3))
MEDOIDS = {"selector": "facility_location"}


def _zeroth(directions: int) -> dict[str, Any]:
    return {**BALANCED, "scorer": "zeroth_order", "scorer_options": {"num_directions": directions}}


def _options(selector: str, **options: Any) -> dict[str, Any]:
    return {"selector": selector, "selector_options": options}


ABLATIONS: dict[str, list[dict[str, dict[str, Any]]]] = {
    "Small sources kept whole or not": [
        {
            "balanced": THREE,
            "balanced, small kept": {**THREE, "small_sources": "auto"},
        },
        {
            "facility location": {**THREE, **MEDOIDS},
            "facility location, small kept": {**THREE, **MEDOIDS, "small_sources": "auto"},
        },
        {
            "random": {"scorer": "tokens", "selector": "random"},
            "random, small kept": {"scorer": "tokens", "selector": "random", "small_sources": "auto"},
        },
        {
            "CoLM's recipe": {"recipe": "colm"},
            "CoLM's recipe, none kept": {"recipe": "colm", "small_sources": None},
        },
    ],
    "Adam's normalisation": [
        {
            "facility location": {**THREE, **MEDOIDS},
            "facility location, Adam's map": {**THREE, **MEDOIDS, "normalise": "adam"},
            "facility location, optimizer's scale": {**THREE, **MEDOIDS, "normalise": "optimizer"},
        },
        {
            "balanced": THREE,
            "balanced, optimizer's scale": {**THREE, "normalise": "optimizer"},
        },
        {
            "zeroth order x facility location": {**_zeroth(1), **MEDOIDS},
            "zeroth order x facility location, Adam's map": {**_zeroth(1), **MEDOIDS, "normalise": "adam"},
        },
        {
            "CoLM's recipe": {"recipe": "colm"},
            "CoLM's recipe without Adam's map": {"recipe": "colm", "normalise": None},
        },
    ],
    "Sparsification": [
        {
            "facility location": {**THREE, **MEDOIDS},
            "facility location, top 2560": {**THREE, **MEDOIDS, "sparsify": "topk"},
            "facility location, top 256": {**THREE, **MEDOIDS, "sparsify": 256},
            "facility location, projection to 1024": {**THREE, **MEDOIDS, "sparsify": "projection"},
        },
        {
            "balanced": THREE,
            "balanced, projection to 1024": {**THREE, "sparsify": "projection"},
        },
        {
            "CoLM's recipe": {"recipe": "colm"},
            "CoLM's recipe without top 2560": {"recipe": "colm", "sparsify": None},
        },
    ],
    "Zeroth order against exact gradients": [
        {
            "facility location, exact, one block": {**ONE, **MEDOIDS},
            "zeroth order x facility location": {**_zeroth(1), **MEDOIDS},
            "zeroth order (4) x facility location": {**_zeroth(4), **MEDOIDS},
            "zeroth order (16) x facility location": {**_zeroth(16), **MEDOIDS},
            "facility location": {**THREE, **MEDOIDS},
        },
        {
            "balanced, one block (the default here)": BALANCED,
            "zeroth order x balanced": _zeroth(1),
            "zeroth order (4) x balanced": _zeroth(4),
            "zeroth order (16) x balanced": _zeroth(16),
            "balanced": THREE,
        },
    ],
    "Uniform against importance weights": [
        {
            "random": {"scorer": "tokens", "selector": "random"},
            "importance by tokens": {"scorer": "tokens", "selector": "importance"},
            "importance": {**THREE, "selector": "importance"},
        },
        {
            "facility location": {**THREE, **MEDOIDS},
            "facility location, cluster sizes, l1": {
                **THREE,
                **_options("facility_location", weights="cluster_size"),
            },
            "balanced": THREE,
        },
    ],
    "Distance": [
        {
            "facility location": {**THREE, **MEDOIDS},
            "facility location, l2": {**THREE, **_options("facility_location", metric="l2")},
            "facility location, cosine": {**THREE, **_options("facility_location", metric="cosine")},
        },
        {
            "facility location, cluster sizes, l1": {
                **THREE,
                **_options("facility_location", weights="cluster_size"),
            },
            "craig (l2)": {**THREE, "selector": "craig"},
            "craig, cosine": {**THREE, **_options("craig", metric="cosine")},
        },
        {
            "k-medoids (l1)": {**THREE, "selector": "k_medoids"},
            "k-medoids, l2": {**THREE, **_options("k_medoids", metric="l2")},
            "k-medoids, cosine": {**THREE, **_options("k_medoids", metric="cosine")},
        },
    ],
    "Calibration": [
        {
            "importance": {**THREE, "selector": "importance"},
            "importance, calibrated": {**THREE, **_options("importance", calibrate=True)},
        },
        {
            "pivotal": {**THREE, "selector": "pivotal"},
            "pivotal, calibrated": {**THREE, **_options("pivotal", calibrate=True)},
        },
        {
            "cube": {**THREE, "selector": "cube"},
            "cube, calibrated": {**THREE, **_options("cube", calibrate=True)},
        },
        {
            "balanced": THREE,
            "balanced, calibrated": {**THREE, **_options("balanced", calibrate=True)},
        },
    ],
}
"""By what is changed: groups of methods, in each of which the first is what the others are compared with."""

RATIOS = (
    "random",
    "importance by tokens",
    "CoLM's recipe",
    "zeroth order x facility location",
    "facility location",
    "importance",
    "balanced, one block (the default here)",
    "balanced",
    "balanced, calibrated",
)
"""Methods of the table that goes by the ratio of the batches."""

COST_RATIO = 2.85


def methods() -> dict[str, dict[str, Any]]:
    """All methods by name."""
    found: dict[str, dict[str, Any]] = {}
    for groups in ABLATIONS.values():
        for group in groups:
            for name, block in group.items():
                assert found.setdefault(name, block) == block, name
    return found


def gradients(args: argparse.Namespace) -> list[dict[str, Any]]:
    overrides = ["--model_name_or_path", str(args.model), "--datasets", f"[{{path: {args.data}/train.jsonl}}]"]
    settings = load_settings(ROOT / "examples" / "bench.yaml", overrides)
    tokenizer = load_tokenizer(settings.model)
    moments = [int(moment) for moment in args.moments.split(",")]
    sizes: dict[str, Any] = {"moments": moments, "draws": args.draws, "cost_rows": 16, "cost_rounds": 3}
    if args.quick:
        sizes = {"moments": (1,), "draws": 100, "population": 48, "large": 16, "budgets": (8, 4, 2), "warm_up": 1}
        sizes |= {"cost_rows": 4, "cost_rounds": 1}
    lines = bench_gradients(
        load_model(settings),
        tokenizer,
        read_mixture(settings, tokenizer).dataset,
        parse_methods([{"name": name, "coreset": block} for name, block in methods().items()]),
        learning_rate=float(settings.training["learning_rate"]),
        cost_ratios=(COST_RATIO,),
        seed=0,
        console=Console(stderr=True),
        **sizes,
    )
    chosen = [line for line in lines if line["metric"] == "adam"]
    parts = {
        name: [title for title, groups in ABLATIONS.items() if any(name in g for g in groups)] for name in methods()
    }
    model = {"model": "small-llama"}
    return [
        {**line, **model, "kind": "ablation", "part": "gradients", "ablations": parts[line["method"]]}
        for line in chosen
    ]


# ---- vocabulary ------------------------------------------------------------------------------------------------------

WORDS = 131072
WIDTH, LENGTH = 64, 64


def _decoder(words: int) -> dict[str, Any]:
    return LlamaConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        use_cache=False,
    ).to_dict()


@contextmanager
def _one_chunk(wanted: bool) -> Iterator[None]:
    """Logits of all label positions at once, as if the head were not called in chunks."""
    before = head_loss.CHUNK_ELEMENTS
    if wanted:
        head_loss.CHUNK_ELEMENTS = 2**62
    try:
        yield
    finally:
        head_loss.CHUNK_ELEMENTS = before


class _OwnLogits:
    """Each example's loss from the model's own logits [B, T, V]."""

    def run(self, model: Any, batch: Mapping[str, torch.Tensor]) -> None:
        with scoring_mode(model), torch.no_grad():
            logits, targets = model(input_ids=batch["input_ids"]).logits[:, :-1].float(), batch["labels"][:, 1:]
            losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            losses.view(targets.shape).sum(dim=1)


def _live(model: Any, batch: Mapping[str, torch.Tensor], work: Callable[[Any], Any]) -> int:
    """Bytes that live at the peak above what lived before."""
    live = LiveBytes()
    live.track([*model.parameters(), *model.buffers(), *batch.values()])
    before = live.live_bytes
    with live:
        work(batch)
    return live.peak_bytes - before


def vocabulary(args: argparse.Namespace) -> list[dict[str, Any]]:
    words = 4096 if args.quick else WORDS
    rounds, sizes = (1, (2, 4)) if args.quick else (3, (4, 8, 16))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "decoder.json"
        path.write_text(json.dumps(_decoder(words)))
        lines = _scored(str(path), words, sizes, rounds)
        settings = StepSettings(
            model=str(path),
            large=4 if args.quick else 16,
            micro_batch=2 if args.quick else 4,
            ratios=(2,),
            length=LENGTH,
            steps=1,
            rounds=1 if args.quick else 3,
            arms=dict.fromkeys(
                (
                    "full, no reuse",
                    "last_layer 3 blocks",
                    "first 2 blocks",
                    "window 32",
                    "every 4",
                    "two phase",
                    "remembered",
                )
            ),
        )
        for line in bench_step(plan(settings)):
            spread = {"low": line["step_ms_min"], "high": line["step_ms_max"]}
            lines.append(
                {
                    **line,
                    "kind": "ablation",
                    "part": "vocabulary, step",
                    "method": f"{line['arm']}, {line['small']} of {line['large']}",
                    "model": f"llama, 2 blocks of {WIDTH}",
                    "vocabulary": words,
                    "spread": spread,
                }
            )
    return lines


def _scored(path: str, words: int, sizes: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    model = build_model(path, adapter="lora", seed=0).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    scorers: dict[str, Scorer] = {
        "loss": make_scorer("loss"),
        "last_layer, one block": make_scorer("last_layer", {"num_blocks": 1}),
        "zeroth_order": make_scorer("zeroth_order"),
    }
    arms: list[tuple[str, str, Callable[[Any], Any]]] = [
        (name, how, lambda batch, scorer=scorer: scorer.run(model, batch))
        for name, scorer in scorers.items()
        for how in ("in chunks", "all label positions at once")
    ]
    arms.append(("loss", "the model's own logits", lambda batch: _OwnLogits().run(model, batch)))
    common = {
        "kind": "ablation",
        "part": "vocabulary, scoring",
        "model": f"llama, 2 blocks of {WIDTH}",
        "vocabulary": words,
        "tokens": LENGTH,
        "rounds": rounds,
        "seed": 0,
        **provenance(),
    }
    lines = []
    for size in sizes:
        ids = torch.randint(1, words, (size, LENGTH), generator=torch.Generator().manual_seed(0))
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        seconds: dict[tuple[str, str], list[float]] = {(name, how): [] for name, how, _ in arms}
        peaks: dict[tuple[str, str], int] = {}
        for number in range(1 + rounds):
            for name, how, work in arms:
                with _one_chunk(how == "all label positions at once"):
                    if number == 0:  # warm-up, and bytes, whose counting takes time
                        peaks[name, how] = _live(model, batch, work)
                        continue
                    start = time.process_time()  # one thread; a machine that is shared does not count
                    work(batch)
                    seconds[name, how].append(time.process_time() - start)
        for (name, how), times in seconds.items():
            chunked = seconds[name, "in chunks"]
            ratios = [one / other for one, other in zip(chunked, times, strict=True)]
            lines.append(
                {
                    **common,
                    "method": name,
                    "logits": how,
                    "rows": size,
                    "all_logits_mb": size * LENGTH * words * 4 / 2**20,
                    "seconds": statistics.median(times),
                    "spread": {"low": min(times), "high": max(times)},
                    "chunked_to_this": statistics.median(ratios),
                    "chunked_to_this_spread": {"low": min(ratios), "high": max(ratios)},
                    "live_mb": peaks[name, how] / 2**20,
                }
            )
    return lines


# ---- memory ----------------------------------------------------------------------------------------------------------


OURS: dict[str, dict[str, Any]] = {
    "corebatch, full scoring": {"scoring": "full"},
    "corebatch, no scoring": {"scoring": "none"},
}


def memory(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Plain training on 8 to 128 rows in one micro-batch, corebatch on half of twice as many, and both
    accumulated; with checkpointing only the first three sizes."""
    batches = (2, 4) if args.quick else (8, 16, 32, 64, 128)
    large, micro = (8, 2) if args.quick else (128, 8)
    lines = []
    for checkpointing in (False, True):
        for number, batch in enumerate(batches):
            if checkpointing and number > 2:
                break
            lines.append(_step_bytes(args, checkpointing, StepArm(kind=SMALL, name="plain", ratio=2), 2 * batch, batch))
            if number < len(batches) - 1:  # twice as many as the last need not be drawn to see how it grows
                for name, block in OURS.items():
                    arm = StepArm(kind=COREBATCH, name=name, ratio=2, coreset=CoresetConfig.from_dict(block))
                    lines.append(_step_bytes(args, checkpointing, arm, 2 * batch, batch))
        if not checkpointing:  # with it: step.jsonl
            lines.append(_step_bytes(args, checkpointing, StepArm(kind=ACCUMULATION, name="plain"), large, micro))
            for name, block in OURS.items():
                arm = StepArm(kind=COREBATCH, name=name, ratio=2, coreset=CoresetConfig.from_dict(block))
                lines.append(_step_bytes(args, checkpointing, arm, large, micro))
    return lines


def _step_bytes(
    args: argparse.Namespace, checkpointing: bool, arm: StepArm, large: int, micro_batch: int
) -> dict[str, Any]:
    length = 16 if args.quick else 64
    settings = StepSettings(
        model=str(args.model),
        checkpointing=checkpointing,
        large=large,
        micro_batch=micro_batch,
        ratios=(2,),
        length=length,
        steps=1,
        rounds=1,
    )
    model = build_model(settings.model, adapter="lora", seed=0)
    rows = Rows([Shape(length, length)], 3 * large, model.config.vocab_size, 0)
    run = run_arm(arm, model, rows, settings, number=0, memory=True)
    assert run.peak_bytes is not None
    assert run.start_bytes is not None
    return {
        "kind": "ablation",
        "part": "memory",
        "method": arm.name,
        "model": "small-llama",
        "adapter": "lora",
        "precision": settings.precision,
        "checkpointing": checkpointing,
        "coreset": None if arm.coreset is None else arm.coreset.to_dict(),
        "drawn": large // arm.ratio if arm.kind == SMALL else large,
        "trained": large // arm.ratio,
        "micro_batch": micro_batch,
        "tokens": length,
        "seed": 0,
        "spread": None,  # bytes are counted, and the same in every run
        "start_mb": run.start_bytes / 2**20,
        "peak_mb": run.peak_bytes / 2**20,
        "above_start_mb": (run.peak_bytes - run.start_bytes) / 2**20,
        "reuse_mb": run.reuse_mb,
        **provenance(),
    }


# ---- tables ----------------------------------------------------------------------------------------------------------


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def _where(lines: Sequence[Mapping[str, Any]]) -> str:
    machine, versions = lines[0]["hardware"], lines[0]["versions"]
    commits = ", ".join(sorted({str(line["commit"]) for line in lines}))
    return (
        f"{lines[0]['time'][:10]}, commit {commits}; {machine['machine']}, {machine['cpu_cores']} cores, "
        f"{machine['torch_threads']} thread, GPU {machine['gpu'] or 'none'}; torch {versions['torch']}, transformers "
        f"{versions['transformers']}"
    )


def _against(line: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[float, float, float]:
    """Difference of two effective batches over the same windows of 50 steps, and its 95 % interval (bootstrap over
    windows)."""

    def effective(errors: torch.Tensor) -> torch.Tensor:
        return 1 / (1 + errors)

    own, other = (torch.tensor(each["errors"], dtype=torch.float64) for each in (line, first))
    picks = torch.randint(len(own), (2000, len(own)), generator=torch.Generator().manual_seed(0))
    differences = effective(own[picks].mean(dim=1)) - effective(other[picks].mean(dim=1))
    low, high = torch.quantile(differences, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(effective(own.mean()) - effective(other.mean())), low, high


def _effective(line: Mapping[str, Any]) -> str:
    """Effective batch in one step, and over windows of 50."""
    return " / ".join(f"{line['windows'][length]['effective']:.2f}" for length in ("1", "50"))


def _worth(line: Mapping[str, Any]) -> str:
    """Effective examples over the longest window by tokens."""
    return f"{worth(line, line['cost_ratios'][f'{COST_RATIO:g}']['cost_tokens']):.2f}"


def _mark(line: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    _, low, high = _against(line, first)
    return " ▲" if low > 0 else " ▼" if high < 0 else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def print_gradients(lines: Sequence[Mapping[str, Any]]) -> None:
    budgets = sorted({line["budget"] for line in lines}, reverse=True)
    moments = sorted({line["after_steps"] for line in lines})
    found = {(line["method"], line["after_steps"], line["budget"]): line for line in lines}
    any_line = lines[0]
    if "windows" not in any_line:
        sys.exit("These lines are of independent draws and know no windows of steps: measure again.")
    print(
        f"N = {any_line['large']}, P = {any_line['population']}, {any_line['draws']} steps, seed {any_line['seed']}, "
        f"Adam's metric, {any_line['sources']} sources; c = {any_line['c']:.2f} ({any_line['c_low']:.2f} to "
        f"{any_line['c_high']:.2f}), with checkpointing {any_line['c_checkpointing']:.2f}. {_where(lines)}.\n"
    )
    last = moments[-1]
    for title, groups in ABLATIONS.items():
        print(f"### {title}\n")
        titles = ["method", *(f"M = {b}: eff. of 1 / 50 steps | error | bias | length" for b in budgets)]
        titles += [f"after {m} steps: {' / '.join(map(str, budgets))}" for m in moments[:-1]]
        small = "Small" in title
        titles += [f"kept of {budgets[0]} / {budgets[1]} / {budgets[2]}"] if small else []
        rows = []
        for group in groups:
            first = next(iter(group))
            for name in group:
                row = [f"**{name}**" if name == first else name]
                for budget in budgets:
                    line = found[name, last, budget]
                    mark = _mark(line, found[first, last, budget])
                    window = line["windows"]["50"]
                    row += [f"{_effective(line)} ± {window['effective_spread']:.2f}{mark}"]
                    row += [f"{window['error']:.2f} ± {window['error_spread']:.2f}"]
                    row += [_percent(line["bias_given_pool"]), f"{window['length']:.2f}"]
                for moment in moments[:-1]:
                    cells = []
                    for budget in budgets:
                        line = found[name, moment, budget]
                        mark = _mark(line, found[first, moment, budget]).strip()
                        cells.append(f"{line['windows']['50']['effective']:.2f}{mark}")
                    row.append(" / ".join(cells))
                if small:
                    row.append(" / ".join(f"{found[name, last, budget]['kept']:.1f}" for budget in budgets))
                rows.append(row)
        _table(" | ".join(titles).split(" | "), rows)
    print("### Ratios\n")
    titles = ["method"]
    titles += [p for b in budgets for p in (f"1/{any_line['large'] // b}: eff. of 1 / 50 steps", "bias", "worth")]
    rows = []
    for name in RATIOS:
        row = [name]
        for budget in budgets:
            line = found[name, last, budget]
            row += [_effective(line), _percent(line["bias_given_pool"]), _worth(line)]
        rows.append(row)
    _table(titles, rows)
    print("### First against zeroth order: cost\n")
    rows = []
    for group in ABLATIONS["Zeroth order against exact gradients"]:
        for name in group:
            line = found[name, last, budgets[0]]
            row = [name, f"{line['s']:.2f} ({line['s_low']:.2f} to {line['s_high']:.2f})", f"{line['select_ms']:.1f}"]
            for budget in budgets:
                line = found[name, last, budget]
                row += [_effective(line), _worth(line)]
            rows.append(row)
    titles = ["method", "s, forwards of scoring", "ms to choose"]
    _table([*titles, *(p for b in budgets for p in (f"M = {b}: eff.", "worth"))], rows)


def print_vocabulary(lines: Sequence[Mapping[str, Any]]) -> None:
    scored = [line for line in lines if line["part"] == "vocabulary, scoring"]
    print(f"### Scoring with {scored[0]['vocabulary']:,} words\n")
    print(f"{scored[0]['rounds']} rounds, rows of {scored[0]['tokens']} tokens, all trained. {_where(scored)}.\n")
    sizes = sorted({line["rows"] for line in scored})
    found = {(line["method"], line["logits"], line["rows"]): line for line in scored}
    rows = []
    for name, how in dict.fromkeys((line["method"], line["logits"]) for line in scored):
        line = found[name, how, sizes[-1]]
        spread, ratio = line["spread"], line["chunked_to_this_spread"]
        rows.append(
            [
                name,
                how,
                *(f"{found[name, how, size]['live_mb']:.0f}" for size in sizes),
                f"{line['seconds']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})",
                "-"
                if how == "in chunks"
                else f"{line['chunked_to_this']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})",
            ]
        )
    titles = ["scorer", "logits", *(f"live, MB, {size} rows" for size in sizes)]
    _table([*titles, f"CPU seconds, {sizes[-1]} rows", "time of chunks / of this"], rows)
    logits = " / ".join(f"{found[name, how, size]['all_logits_mb']:.0f}" for size in sizes)
    print(f"All logits of these rows would be {logits} MB.\n")
    steps = [line for line in lines if line["part"] == "vocabulary, step"]
    first = steps[0]
    print(f"### A training step with {first['vocabulary']:,} words\n")
    print(
        f"LoRA, checkpointing, micro-batch {first['micro_batch']}, rows of {LENGTH} tokens, {first['rounds']} rounds, "
        f"seed {first['seed']}. {_where(steps)}.\n"
    )
    rows = [
        [
            line["method"],
            f"{line['step_ms']:.0f} ({line['step_ms_min']:.0f} to {line['step_ms_max']:.0f})",
            f"{line['to_accumulation']:.2f}",
            f"{(line['peak_bytes'] - line['start_bytes']) / 2**20:.0f}",
            "-" if line["score_share"] is None else _percent(line["score_share"]),
        ]
        for line in steps
    ]
    _table(["arm", "ms a step", "time / accumulation's", "live above the start, MB", "scoring"], rows)


def print_memory(lines: Sequence[Mapping[str, Any]]) -> None:
    print("### Live bytes of a step\n")
    first = lines[0]
    print(
        f"MB (2^20) above the {first['start_mb']:.0f} that live at a step's start; LoRA, {first['precision']}, rows of "
        f"{first['tokens']} tokens, all trained, seed {first['seed']}. {_where(lines)}.\n"
    )
    names = list(dict.fromkeys(line["method"] for line in lines))
    found = {(line["checkpointing"], line["trained"], line["micro_batch"], line["method"]): line for line in lines}
    rows = []
    for checkpointing, trained, micro in dict.fromkeys(key[:3] for key in found):
        cells = [found.get((checkpointing, trained, micro, name)) for name in names]
        rows.append(
            [
                "with" if checkpointing else "without",
                str(trained),
                "one" if trained == micro else f"of {micro} rows",
                *("-" if cell is None else f"{cell['above_start_mb']:.0f}" for cell in cells),
            ]
        )
    _table(["checkpointing", "rows trained", "micro-batch", *names], rows)


def print_tables(path: Path) -> None:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for part, show in (("gradients", print_gradients), ("vocabulary", print_vocabulary), ("memory", print_memory)):
        here = [line for line in lines if line["part"].partition(",")[0] == part]
        if here:
            show(here)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "small-llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--draws", type=int, default=400, help="steps of the part gradients")
    parser.add_argument("--moments", default="10,200", help="of the part gradients: after how many AdamW steps")
    parser.add_argument("--output", type=Path, default=None, help="JSON lines are added here")
    parser.add_argument("--print", type=Path, default=None, metavar="FILE", help="print the tables of a file, and end")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    if args.print is not None:
        print_tables(args.print)
        return
    if not (args.model / "config.json").is_file():
        sys.exit(f"A model should be in {args.model}: run benchmarks/small_llama.py. Found none.")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        kept = args.output or Path(folder) / "ablations.jsonl"
        for part in args.parts:
            start, cpu = time.perf_counter(), time.process_time()
            write_lines({"gradients": gradients, "vocabulary": vocabulary, "memory": memory}[part](args), kept)
            took = f"{time.perf_counter() - start:.0f} s, {time.process_time() - cpu:.0f} s of a core"
            print(f"{part}: {took}", file=sys.stderr, flush=True)
        print_tables(kept)


if __name__ == "__main__":
    main()

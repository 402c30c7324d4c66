"""The paper's ablations and its reviewers' questions, measured: `python benchmarks/ablations.py` writes the tables of
docs/evidence/ablations.md, `--table` from the lines that are there.

Three parts, `--parts`, of which each writes its lines when it is done:

- gradients: one thing of a method changed at a time, by `bench gradients`: how near the small batch's gradient is to
  the large batch's and the population's, with its bias, length and cost.
- vocabulary: scoring and a training step of a tiny decoder with 131,072 words; seconds and live bytes.
- memory: live bytes of a step against its batch, in one micro-batch and accumulated.

One thread. About an hour on a CPU core. --quick runs tiny sizes, to see that it runs, and writes nothing.
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
from corebatch.bench.gradients.lines import worth
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
from pages import ROOT, table, write_between, write_lines
from tables import read, source

OUTPUT, PAGE = ROOT / "benchmarks" / "results" / "ablations.jsonl", ROOT / "docs" / "evidence" / "ablations.md"
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
            "balanced, one block": BALANCED,
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
    "balanced, one block",
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


def _where(lines: Sequence[Mapping[str, Any]]) -> str:
    return f"`python benchmarks/ablations.py`; seed {lines[0]['seed']}; {source(list(lines))}"


def _against(line: Mapping[str, Any], first: Mapping[str, Any]) -> tuple[float, float]:
    """95 % interval (bootstrap over windows) of the difference of two effective batches over the same windows of 50
    steps."""
    own, other = (torch.tensor(each["errors"], dtype=torch.float64) for each in (line, first))
    picks = torch.randint(len(own), (2000, len(own)), generator=torch.Generator().manual_seed(0))
    differences = 1 / (1 + own[picks].mean(dim=1)) - 1 / (1 + other[picks].mean(dim=1))
    low, high = torch.quantile(differences, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def _lengths(line: Mapping[str, Any]) -> tuple[str, str]:
    """One step, and the windows over which methods are compared: of 50 steps, where the series has a hundred."""
    return "1", "50" if len(line["errors"]) < line["draws"] else "1"


def _effective(line: Mapping[str, Any]) -> str:
    return " / ".join(f"{line['windows'][length]['effective']:.2f}" for length in _lengths(line))


def _worth(line: Mapping[str, Any]) -> str:
    """Effective examples over the longest window by tokens."""
    return f"{worth(line, line['cost_ratios'][f'{COST_RATIO:g}']['cost_tokens']):.2f}"


def _mark(line: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    low, high = _against(line, first)
    return " ▲" if low > 0 else " ▼" if high < 0 else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


Found = Mapping[tuple[str, int, int], Mapping[str, Any]]
"""Lines by method, moment and budget."""


def gradient_tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By the markers of the page.

    Raises:
        SystemExit: lines of before there were windows of steps.
    """
    first = lines[0]
    if "windows" not in first:
        sys.exit("Lines of gradients should know windows of steps. Found independent draws: measure this part again.")
    budgets = sorted({line["budget"] for line in lines}, reverse=True)
    moments = sorted({line["after_steps"] for line in lines})
    found = {(line["method"], line["after_steps"], line["budget"]): line for line in lines}
    earlier = f", and in columns that say so after {moments[0]}" if len(moments) > 1 else ""
    settings = f"""N = {first["large"]}, P = {first["population"]}, {first["draws"]} steps, Adam's metric,
{first["sources"]} sources; after {moments[-1]} AdamW steps{earlier}. c = {first["c"]:.2f}
({first["c_low"]:.2f} to {first["c_high"]:.2f}), with checkpointing {first["c_checkpointing"]:.2f}.

{_where(lines)}"""
    tables = {"settings of the ablations": settings}
    for title, groups in ABLATIONS.items():
        tables[f"ablation: {title}"] = _changed(groups, found, budgets, moments, kept="Small" in title)
    tables["ratios"] = _ratios(found, budgets, moments[-1])
    tables["first against zeroth order"] = _zeroth_costs(found, budgets, moments[-1])
    return tables


def _changed(
    groups: Sequence[Mapping[str, Any]], found: Found, budgets: Sequence[int], moments: Sequence[int], *, kept: bool
) -> str:
    """One table: in each group the first method is what the others are compared with."""
    *earlier, last = moments
    length = _lengths(next(iter(found.values())))[1]
    titles = ["method"]
    for budget in budgets:
        titles += [f"M = {budget}: eff. of 1 / {length} steps", "error", "bias", "length"]
    titles += [f"after {moment}: {' / '.join(map(str, budgets))}" for moment in earlier]
    titles += [f"kept of {' / '.join(map(str, budgets))}"] * kept
    rows = []
    for group in groups:
        first = next(iter(group))
        for name in group:
            row = [f"**{name}**" if name == first else name]
            for budget in budgets:
                line = found[name, last, budget]
                mark, window = _mark(line, found[first, last, budget]), line["windows"][length]
                row += [f"{_effective(line)} ± {window['effective_spread']:.2f}{mark}"]
                row += [f"{window['error']:.2f} ± {window['error_spread']:.2f}"]
                row += [_percent(line["bias_given_pool"]), f"{window['length']:.2f}"]
            for moment in earlier:
                lines = [(found[name, moment, budget], found[first, moment, budget]) for budget in budgets]
                cells = [f"{own['windows'][length]['effective']:.2f}{_mark(own, other)}" for own, other in lines]
                row.append(" / ".join(cells))
            row += [" / ".join(f"{found[name, last, budget]['kept']:.1f}" for budget in budgets)] * kept
            rows.append(row)
    return table(titles, rows)


def _ratios(found: Found, budgets: Sequence[int], moment: int) -> str:
    large, titles = next(iter(found.values()))["large"], ["method"]
    for budget in budgets:
        titles += [f"1/{large // budget}: eff. of {' / '.join(_lengths(next(iter(found.values()))))} steps"]
        titles += ["bias", "worth"]
    rows = []
    for name in RATIOS:
        row = [name]
        for budget in budgets:
            line = found[name, moment, budget]
            row += [_effective(line), _percent(line["bias_given_pool"]), _worth(line)]
        rows.append(row)
    return f"*worth* at c = {COST_RATIO}, s as measured in this run.\n\n{table(titles, rows)}"


def _zeroth_costs(found: Found, budgets: Sequence[int], moment: int) -> str:
    rows = []
    for name in (name for group in ABLATIONS["Zeroth order against exact gradients"] for name in group):
        line = found[name, moment, budgets[0]]
        row = [name, f"{line['s']:.2f} ({line['s_low']:.2f} to {line['s_high']:.2f})", f"{line['select_ms']:.1f}"]
        for budget in budgets:
            row += [_effective(found[name, moment, budget]), _worth(found[name, moment, budget])]
        rows.append(row)
    titles = ["method", "s, forwards of scoring", "ms to choose"]
    return table([*titles, *(title for b in budgets for title in (f"M = {b}: eff.", "worth"))], rows)


def vocabulary_tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By the markers of the page."""
    scored = [line for line in lines if line["part"] == "vocabulary, scoring"]
    trained = [line for line in lines if line["part"] == "vocabulary, step"]
    return {"scoring with a large vocabulary": _scoring(scored), "training with a large vocabulary": _training(trained)}


def _scoring(lines: Sequence[Mapping[str, Any]]) -> str:
    sizes = sorted({line["rows"] for line in lines})
    found = {(line["method"], line["logits"], line["rows"]): line for line in lines}
    rows = []
    for name, how in dict.fromkeys((line["method"], line["logits"]) for line in lines):
        line = found[name, how, sizes[-1]]
        spread, ratio = line["spread"], line["chunked_to_this_spread"]
        cells = [f"{found[name, how, size]['live_mb']:.0f}" for size in sizes]
        cells.append(f"{line['seconds']:.2f} ({spread['low']:.2f} to {spread['high']:.2f})")
        times = f"{line['chunked_to_this']:.2f} ({ratio['low']:.2f} to {ratio['high']:.2f})"
        rows.append([name, how, *cells, "-" if how == "in chunks" else times])
    titles = ["scorer", "logits", *(f"live, MB, {size} rows" for size in sizes)]
    titles += [f"CPU seconds, {sizes[-1]} rows", "time of chunks / of this"]
    first = lines[0]
    logits = " / ".join(f"{found[first['method'], first['logits'], size]['all_logits_mb']:.0f}" for size in sizes)
    return f"""Scoring with {first["vocabulary"]:,} words: live MB above what lived before; {first["rounds"]} rounds,
rows of {first["tokens"]} tokens, all trained. All logits of these rows would be {logits} MB.

{table(titles, rows)}

{_where(lines)}"""


def _training(lines: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [
            line["method"],
            f"{line['step_ms']:.0f} ({line['step_ms_min']:.0f} to {line['step_ms_max']:.0f})",
            f"{line['to_accumulation']:.2f}",
            f"{(line['peak_bytes'] - line['start_bytes']) / 2**20:.0f}",
            "-" if line["score_share"] is None else _percent(line["score_share"]),
        ]
        for line in lines
    ]
    titles = ["arm", "ms a step", "time / accumulation's", "live above the start, MB", "scoring"]
    first = lines[0]
    return f"""A training step with {first["vocabulary"]:,} words: LoRA, checkpointing, rows of {LENGTH} tokens,
{first["micro_batch"]} of them in a micro-batch; {first["rounds"]} rounds.

{table(titles, rows)}

{_where(lines)}"""


def memory_tables(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """By the markers of the page."""
    names = list(dict.fromkeys(line["method"] for line in lines))
    found = {(line["checkpointing"], line["trained"], line["micro_batch"], line["method"]): line for line in lines}
    rows = []
    for checkpointing, trained, micro in dict.fromkeys(key[:3] for key in found):
        row = ["with" if checkpointing else "without", str(trained), "one" if trained == micro else f"of {micro} rows"]
        for name in names:
            line = found.get((checkpointing, trained, micro, name))
            row.append("-" if line is None else f"{line['above_start_mb']:.0f}")
        rows.append(row)
    first = lines[0]
    text = f"""MB (2^20) above the {first["start_mb"]:.0f} that live at a step's start; LoRA, {first["precision"]},
rows of {first["tokens"]} tokens, all trained. Bytes are counted, and the same in every run.

{table(["checkpointing", "rows trained", "micro-batch", *names], rows)}

{_where(lines)}"""
    return {"live bytes of a step": text}


TABLES = {"gradients": gradient_tables, "vocabulary": vocabulary_tables, "memory": memory_tables}


def tables(lines: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> dict[str, str]:
    """What the page has between its markers, of these parts."""
    found: dict[str, str] = {}
    for part in parts:
        here = [line for line in lines if _part(line) == part]
        found |= TABLES[part](here) if here else {}
    return found


def _part(line: Mapping[str, Any]) -> str:
    return str(line["part"].partition(",")[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "small-llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--draws", type=int, default=400, help="steps of the part gradients")
    parser.add_argument("--moments", default="10,200", help="of the part gradients: after how many AdamW steps")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="its lines of other parts are kept")
    parser.add_argument("--table", action="store_true", help="measure nothing, write these parts of the page")
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    lines = [] if args.quick or not args.output.is_file() else read(args.output)
    if not args.table:
        if not (args.model / "config.json").is_file():
            sys.exit(f"A model should be in {args.model}: run benchmarks/small_llama.py. Found none.")
        torch.set_num_threads(1)
        for part in args.parts:
            start, cpu = time.perf_counter(), time.process_time()
            measured = {"gradients": gradients, "vocabulary": vocabulary, "memory": memory}[part](args)
            lines = [line for line in lines if _part(line) != part] + measured
            if not args.quick:
                write_lines(args.output, lines)
            took = f"{time.perf_counter() - start:.0f} s, {time.process_time() - cpu:.0f} s of a core"
            print(f"{part}: {took}", file=sys.stderr, flush=True)
    for name, text in tables(lines, args.parts).items():
        if args.quick:
            print(f"{name}\n\n{text}\n")
        else:
            write_between(PAGE, name, text)


if __name__ == "__main__":
    main()

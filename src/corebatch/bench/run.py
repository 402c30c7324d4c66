"""`corebatch bench gradients`: trains a little, measures at several moments, writes lines and a plot."""

from __future__ import annotations

import dataclasses
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from corebatch.bench.gradients import Moment, measure
from corebatch.bench.methods import Pair
from corebatch.errors import InputError
from corebatch.mixture import PaddingCollator
from corebatch.scoring import seeded
from corebatch.trainer.record import hardware, now, versions
from corebatch.trainer.weighted_loss import weighted_loss

ROWS_AT_A_TIME = 16


def bench_gradients(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    pairs: Sequence[Pair],
    *,
    moments: Sequence[int] = (10, 200),
    population: int = 384,
    large: int = 128,
    budgets: Sequence[int] = (64, 32, 16),
    draws: int = 60,
    train_rows: int = 32,
    learning_rate: float = 5e-4,
    b_std: float | None = 0.02,
    seed: int = 0,
    device: str = "cpu",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measures every pair after each number of AdamW steps on random batches of `train_rows` rows.

    Args:
        model: with adapters, or with all weights trained.
        dataset: tokenised rows (`input_ids`, `labels`); its first `population` rows after a seeded shuffle are
            measured on, the others are trained on (all of them, if there are no others).
        b_std: LoRA's B starts from N(0, b_std^2), since with B = 0 no gradient reaches A; None leaves it.

    Returns:
        One record a measurement, with the settings, hardware, versions and commit.

    Raises:
        InputError: fewer rows than the population.
    """
    if len(dataset) < population:
        raise InputError(f"The data should have at least the population's {population} rows. Found {len(dataset)}.")
    model = model.to(device).eval()
    if b_std is not None:
        generator = seeded(seed, "adapters")
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name and parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * b_std)
    order = torch.randperm(len(dataset), generator=seeded(seed, "population")).tolist()
    measured = sorted(order[:population], key=lambda i: len(dataset[i]["input_ids"]))
    others = order[population:] or order
    collate = PaddingCollator(tokenizer)

    def batch(rows: Sequence[int]) -> dict[str, Tensor]:
        made = collate([dataset[i] for i in rows])
        return {key: value.to(device) for key, value in made.items()}

    batches = [batch(measured[i : i + ROWS_AT_A_TIME]) for i in range(0, population, ROWS_AT_A_TIME)]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    common = {
        "kind": "gradients",
        "model": getattr(model.config, "_name_or_path", ""),
        "trained_numbers": sum(p.numel() for p in trained),
        "learning_rate": learning_rate,
        "train_rows": train_rows,
        "b_std": b_std,
        "seed": seed,
        "device": device,
        **provenance(),
    }
    found: list[dict[str, Any]] = []
    taken = 0
    for moment in sorted(moments):
        for _ in range(moment - taken):
            picks = torch.randint(len(others), (train_rows,), generator=seeded(seed, "train", taken)).tolist()
            _train_step(model, optimizer, [batch([others[i] for i in picks])])
            taken += 1
        if console is not None:
            console.print(f"after {moment} steps: {population} exact gradients, {len(pairs)} pairs", highlight=False)
        here = Moment(model=model, batches=batches, second_moments=_second_moments(optimizer, trained))
        measured_here = measure(here, pairs, large=large, budgets=budgets, draws=draws, seed=seed)
        found += [{**common, "after_steps": moment, **dataclasses.asdict(each)} for each in measured_here]
    return found


def _train_step(model: Any, optimizer: torch.optim.Optimizer, batches: Sequence[dict[str, Tensor]]) -> None:
    tokens = sum(int((b["labels"][:, 1:] != -100).sum()) for b in batches)
    for part in batches:
        loss, _ = weighted_loss(model, model, part, torch.ones(len(part["labels"]), device=part["labels"].device))
        (loss / tokens).backward()
    optimizer.step()
    optimizer.zero_grad()


def _second_moments(optimizer: torch.optim.Optimizer, trained: Sequence[Any]) -> Tensor | None:
    if any(not optimizer.state.get(p) for p in trained):
        return None
    beta2 = optimizer.param_groups[0]["betas"][1]
    return torch.cat(
        [optimizer.state[p]["exp_avg_sq"].flatten() / (1 - beta2 ** float(optimizer.state[p]["step"])) for p in trained]
    )


def provenance() -> dict[str, Any]:
    """Hardware, versions, commit and time of a measurement."""
    return {"hardware": hardware(), "versions": versions(), "commit": commit(), "time": now()}


def commit() -> str | None:
    """The commit of the working tree, with "+" if it has changes; None outside a repository."""
    try:
        here = Path(__file__).parent
        revision = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return revision + ("+" if changed else "")


def table_rows(lines: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The lines of one metric as rows of a table."""
    return [
        {
            "after": line["after_steps"],
            "M": line["budget"],
            "method": line["method"],
            "error (random = 1)": f"{line['error_to_large']:.3f} ± {line['error_spread']:.3f}",
            "effective batch": f"{line['effective_batch']:.2f}",
            "uncorrected": f"{line['effective_batch_uncorrected']:.2f}",
            "of 50 steps": f"{line['effective_batch_averaged']:.2f}",
            "bias": f"{100 * line['bias_share']:.0f} %",
            "length": f"{line['length']:.2f}",
            "cosine": f"{line['cosine']:.2f}",
            "score ms": f"{line['score_ms']:.0f}",
            "select ms": f"{line['select_ms']:.1f}",
        }
        for line in lines
        if line["metric"] == metric
    ]


def write_lines(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Appends JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def plot(lines: Sequence[dict[str, Any]], path: Path) -> None:
    """Effective batch against the budget, a line for each method, a panel for each moment; in Adam's metric where
    there is one. Needs matplotlib (extra `report`)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metric = "adam" if any(line["metric"] == "adam" for line in lines) else "raw"
    lines = [line for line in lines if line["metric"] == metric]
    moments = sorted({line["after_steps"] for line in lines})
    figure = Figure(figsize=(5.5 * len(moments), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    for number, moment in enumerate(moments):
        axes = figure.add_subplot(1, len(moments), number + 1)
        here = [line for line in lines if line["after_steps"] == moment]
        for index, method in enumerate(dict.fromkeys(line["method"] for line in here)):
            points = sorted((line["budget"], line["effective_batch"]) for line in here if line["method"] == method)
            style = ("-", "--", ":")[index // 10 % 3]
            axes.plot(*zip(*points, strict=True), style, marker="o", markersize=3, label=method)
        axes.set_title(f"after {moment} steps")
        axes.set_xscale("log", base=2)
        axes.set_xlabel("small batch M")
        axes.set_ylabel(f"effective batch / N ({metric} metric)")
        axes.set_ylim(0, 1.05)
    axes.legend(fontsize=6)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    figure.savefig(part, dpi=120)
    part.replace(path)

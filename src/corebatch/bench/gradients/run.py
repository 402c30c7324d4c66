"""`corebatch bench gradients`: trains a little, measures at several moments, writes lines and plots."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from corebatch.bench.gradients.costs import Costs, Ratio, measure_costs
from corebatch.bench.gradients.estimate import WARM_UP, Moment, Past, check_cost_ratios, measure
from corebatch.bench.gradients.methods import Pair
from corebatch.bench.gradients.population import ROWS_AT_A_TIME, Population, remembered
from corebatch.errors import ConfigError, InputError
from corebatch.files import replacing
from corebatch.memory import FeatureMemory
from corebatch.mixture import PaddingCollator
from corebatch.model.weighted_loss import weighted_loss
from corebatch.record.provenance import provenance
from corebatch.sampling.tags import DEFAULT_COLUMN, tag
from corebatch.seeds import seeded
from corebatch.text import say
from corebatch.types import IGNORED, SOURCE


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
    cost_ratios: Sequence[float] = (),
    cost_rows: int = 128,
    cost_rounds: int = 5,
    skip_unfit: bool = False,
    source_column: str = DEFAULT_COLUMN,
    warm_up: int = WARM_UP,
    device: str = "cpu",
    console: Console | None = None,
) -> list[dict[str, Any]]:
    """Measures every pair after each number of AdamW steps on random batches of `train_rows` rows.

    Features that a pair remembers are computed on the way, `age` steps before each moment; where fewer steps have been
    trained, before the first one. A normaliser's own history (CoLM's Adam map) is of as many steps as were trained, at
    most `warm_up`; see `measure`. What scoring and training cost is measured once, at the first moment.

    Args:
        model: with adapters, or with all weights trained.
        dataset: tokenised rows (`input_ids`, `labels`); its first `population` rows after a seeded shuffle are
            measured on, the others are trained on (all of them, if there are no others).
        b_std: LoRA's B starts from N(0, b_std^2), since with B = 0 no gradient reaches A; None leaves it.
        cost_ratios: values of c = (forward + backward) / forward beside the measured ones.
        cost_rows, cost_rounds: how many rows are timed, and how often.
        source_column: names each row's source; without such a column there is one source.
        warm_up: the most steps of a normaliser's history; 0 leaves it empty, as at a run's first step.
        skip_unfit: leave out, with a note, pairs whose early exit lies behind the model's last block.

    Returns:
        One record a measurement, with the settings, hardware, versions and commit.

    Raises:
        InputError: fewer rows than the population, or a c that is not above 1.
        ConfigError: a source column that is not there, or an early exit behind the model's last block.
    """
    check_cost_ratios(cost_ratios)
    if min(population, large, draws) < 1:
        raise InputError(f"population, large and draws should be at least 1. Found {population}, {large} and {draws}.")
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

    def by_length(rows: Sequence[int]) -> list[int]:
        return sorted(rows, key=lambda i: len(dataset[i]["input_ids"]))

    measured = by_length(order[:population])
    others = order[population:] or order
    collate = PaddingCollator(tokenizer)
    tagged, table = tag(dataset, source_column)
    sources = torch.tensor([int(tagged[i][SOURCE]) for i in range(len(dataset))])

    def batch(rows: Sequence[int]) -> dict[str, Tensor]:
        made = collate([dataset[i] for i in rows])
        return {key: value.to(device) for key, value in made.items()}

    def in_batches(rows: Sequence[int]) -> list[dict[str, Tensor]]:
        return [batch(rows[i : i + ROWS_AT_A_TIME]) for i in range(0, len(rows), ROWS_AT_A_TIME)]

    batches = in_batches(measured)
    pairs = _fitting(model, batches[0], pairs, skip_unfit, console)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    common = {
        "kind": "gradients",
        "model": getattr(model.config, "_name_or_path", ""),
        "trained_numbers": sum(p.numel() for p in trained),
        "learning_rate": learning_rate,
        "train_rows": train_rows,
        "b_std": b_std,
        "sources": len(table.counts),
        "seed": seed,
        "device": device,
        **provenance(),
    }
    found: list[dict[str, Any]] = []
    examples = Population.of(batches, sources[measured], table)
    costs: Costs | None = None
    visits = _look_back(pairs, moments, console)
    past: dict[int, dict[str, Past]] = {moment: {} for moment in moments}
    taken = 0
    for stop in sorted({*moments, *visits}):
        for _ in range(stop - taken):
            picks = torch.randint(len(others), (train_rows,), generator=seeded(seed, "train", taken)).tolist()
            _train_step(model, optimizer, in_batches(by_length([others[i] for i in picks])))
            taken += 1
        wanted = visits.get(stop, [])
        memories: dict[str, FeatureMemory] = remembered([pair for _, pair in wanted], model, examples, seed)
        for moment, pair in wanted:
            key = str(pair.remembered)
            past[moment][key] = Past(memories[key], moment - stop)
        if stop not in past:
            continue
        if costs is None:
            costs = measure_costs(model, examples, pairs, rows=cost_rows, rounds=cost_rounds, seed=seed)
            common |= {"cost_rows": costs.rows, "cost_rounds": costs.rounds, "forward_ms": costs.forward_ms}
            _say(console, _costs_text(costs))
        _say(console, f"after {stop} steps: {population} exact gradients, {len(pairs)} pairs")
        here = Moment(
            model=model,
            batches=batches,
            second_moments=_second_moments(optimizer, trained),
            sources=examples.sources,
            table=table,
            optimizer=optimizer,
        )
        measured_here = measure(
            here,
            pairs,
            large=large,
            budgets=budgets,
            draws=draws,
            seed=seed,
            costs=costs,
            cost_ratios=cost_ratios,
            past=past.pop(stop),
            warm_up=min(stop, warm_up),
        )
        found += [{**common, "after_steps": stop, **dataclasses.asdict(each)} for each in measured_here]
    return found


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        say(console, text)


def _fitting(
    model: Any, batch: dict[str, Tensor], pairs: Sequence[Pair], skip: bool, console: Console | None
) -> list[Pair]:
    """The pairs without those whose early exit the model has no block for; such a one is an error unless `skip`."""
    fitting = []
    for pair in pairs:
        try:
            with pair.way.strategy.changed_forward()(model, batch):
                fitting.append(pair)
        except ConfigError as error:
            if not skip:
                raise
            _say(console, f"Left out: {pair.name}. {error}")
    return fitting


def _look_back(
    pairs: Sequence[Pair], moments: Sequence[int], console: Console | None
) -> dict[int, list[tuple[int, Pair]]]:
    """After which steps memories are filled: for which moment, and for which pair."""
    visits: dict[int, list[tuple[int, Pair]]] = {}
    for moment in sorted(set(moments)):
        for pair in pairs:
            if pair.way.age is not None:
                visits.setdefault(max(0, moment - pair.way.age), []).append((moment, pair))
                if pair.way.age > moment:
                    _say(console, f"after {moment} steps: features of {pair.name} are {moment} steps old")
    return visits


def _costs_text(costs: Costs) -> str:
    def text(ratio: Ratio) -> str:
        return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"

    again = costs.training_checkpointing
    return (
        f"{costs.rows} rows, {costs.rounds} rounds: a forward takes {costs.forward_ms:.3g} ms an example, one with all "
        f"logits {text(costs.all_logits)} of it; c = {text(costs.training)}, with checkpointing "
        f"{'not known' if again is None else text(again)}"
    )


def _train_step(model: Any, optimizer: torch.optim.Optimizer, batches: Sequence[dict[str, Tensor]]) -> None:
    tokens = sum(int((b["labels"][:, 1:] != IGNORED).sum()) for b in batches)
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


def table_rows(lines: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """The lines of one metric as rows of a table: within a moment and a budget the most effective examples by cost
    first.

    The cost is that by tokens, in trainings of one random example. Where values of c were given (`per_cost_ratios`)
    they are printed in the place of the measured ones, and the first of them sorts. Titles have two lines, so that a
    long method fits a console of 180 columns.
    """
    rows = []
    for line in lines:
        if line["metric"] != metric:
            continue
        given = line["per_cost_ratios"]
        if given:
            cost = next(iter(given.values()))["cost_tokens"]
            worth = {f"per cost\nc = {c}": at["tokens"] for c, at in given.items()}
            worth |= {f"reused\nc = {c}": at["tokens_reuse"] for c, at in given.items()}
        else:
            cost = line["cost_tokens"]
            worth = {
                "per cost": line["per_cost_tokens"],
                "per cost,\ncheckpointed": line["per_cost_tokens_checkpointing"],
                "and\nreused": line["per_cost_tokens_reuse"],
            }
        row = {
            "after": line["after_steps"],
            "M": line["budget"],
            "method": line["method"],
            "eff.": f"{line['effective_batch']:.2f}",
            "bias": f"{100 * line['bias_share']:.0f} %",
            "length\nto large": f"{line['length_to_large']:.2f}",
            "s": f"{line['s']:.2f}",
            "cost by\ntokens": f"{cost:.1f}",
            **{name: "-" if value is None else f"{value:.2f}" for name, value in worth.items()},
        }
        rows.append((line["after_steps"], -line["budget"], -next(iter(worth.values())), row))
    return [row for *_, row in sorted(rows, key=lambda each: each[:3])]


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
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Whole or not at all."""
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix[1:] or None)

"""`corebatch bench gradients`: trains a little, and measures at several moments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from corebatch.bench.gradients.costs import Costs, measure_costs
from corebatch.bench.gradients.estimate import (
    DRAWS,
    WARM_UP,
    Past,
    Snapshot,
    check_cost_ratios,
    check_objectives,
    measure,
)
from corebatch.bench.gradients.measurement import Measurement
from corebatch.bench.gradients.methods import Method
from corebatch.bench.gradients.population import ROWS_AT_A_TIME, Objective, Population, remembered
from corebatch.bench.timing import Spread
from corebatch.errors import ConfigError, InputError
from corebatch.mixture import PaddingCollator
from corebatch.model.weighted_loss import weighted_loss
from corebatch.record.provenance import provenance
from corebatch.sampling.tags import DEFAULT_COLUMN, tag
from corebatch.seeds import seeded
from corebatch.text import say
from corebatch.types import IGNORED, SOURCE


@dataclass(frozen=True, kw_only=True)
class GradientSettings:
    """How gradients are measured.

    Attributes:
        moments: after how many optimizer steps.
        population, large, budgets, draws: P, N, values of M, T.
        objectives: what the large batch claims, "tokens" or "sources", or in turn each of both.
        train_rows: rows of a training step.
        b_std: LoRA's B starts from N(0, b_std^2), since with B = 0 no gradient reaches A; None leaves it.
        cost_ratios: values of c = (forward + backward) / forward beside the measured ones.
        cost_rows, cost_rounds: how many rows are timed, and how often.
        skip_unfit: leave out, with a note, methods whose early exit lies behind the model's last block.
        source_column: names each row's source; without such a column there is one source.
        warm_up: the most steps before those that are measured; 0 begins with nothing carried, as a run does.
        micro_batch: rows of a training micro-batch, by which positions are counted.

    Raises:
        InputError: a size below 1, or a c that is not above 1.
    """

    moments: Sequence[int] = (200,)
    population: int = 384
    large: int = 128
    budgets: Sequence[int] = (64, 32, 16)
    draws: int = DRAWS
    objectives: Sequence[Objective] = ("tokens",)
    train_rows: int = 32
    learning_rate: float = 5e-4
    b_std: float | None = 0.02
    seed: int = 0
    cost_ratios: Sequence[float] = ()
    cost_rows: int = 128
    cost_rounds: int = 5
    skip_unfit: bool = False
    source_column: str = DEFAULT_COLUMN
    warm_up: int = WARM_UP
    micro_batch: int = 8
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_cost_ratios(self.cost_ratios)
        for name in ("population", "large", "draws", "micro_batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} should be at least 1. Found {getattr(self, name)}.")


def bench_gradients(
    model: Any,
    tokenizer: Any,
    dataset: Any,
    methods: Sequence[Method],
    *,
    console: Console | None = None,
    **settings: Any,
) -> list[dict[str, Any]]:
    """Measures every method after each number of AdamW steps on random batches of `train_rows` rows.

    Features that a method remembers are computed on the way, `age` steps before each moment; where fewer steps have
    been trained, before the first one. Before the steps that are measured come as many as were trained, at most
    `warm_up`, in which what a method carries fills (CoLM's Adam map, past errors); see `measure`. What scoring and
    training cost is measured once, at the first moment.

    Args:
        model: with adapters, or with all weights trained.
        dataset: tokenised rows (`input_ids`, `labels`); its first `population` rows after a seeded shuffle are
            measured on, the others are trained on (all of them, if there are no others).
        settings: fields of GradientSettings.

    Returns:
        One record a measurement, with the settings, hardware, versions and commit.

    Raises:
        InputError: settings that are out of range, or fewer rows than the population.
        ConfigError: a source column that is not there, or an early exit behind the model's last block.
    """
    made = GradientSettings(**settings)
    check_objectives(made.objectives, methods)
    bench = _Bench(model, dataset, PaddingCollator(tokenizer), made, console)
    return bench.run(methods)


class _Bench:
    """A model on its way, and the examples that are measured on.

    Raises:
        InputError: fewer rows than the population.
        ConfigError: a source column that is not there.
    """

    def __init__(
        self, model: Any, dataset: Any, collate: PaddingCollator, settings: GradientSettings, console: Console | None
    ) -> None:
        if len(dataset) < settings.population:
            raise InputError(
                f"The data should have at least the population's {settings.population} rows. Found {len(dataset)}."
            )
        self.settings, self.console = settings, console
        self.model = model.to(settings.device).eval()
        self._dataset, self._collate = dataset, collate
        if settings.b_std is not None:
            draw_adapters(self.model, settings.b_std, settings.seed)
        order = torch.randperm(len(dataset), generator=seeded(settings.seed, "population")).tolist()
        measured = self._by_length(order[: settings.population])
        self._others = order[settings.population :] or order
        tagged, self.table = tag(dataset, settings.source_column)
        sources = torch.tensor([int(tagged[i][SOURCE]) for i in range(len(dataset))])
        self.batches = self._in_batches(measured)
        self.population = Population.of(self.batches, sources[measured], self.table)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=settings.learning_rate, weight_decay=0.0)

    def run(self, methods: Sequence[Method]) -> list[dict[str, Any]]:
        """The records, by moment."""
        settings = self.settings
        methods = _fitting(self.model, self.batches[0], methods, settings.skip_unfit, self.console)
        common = self._common()
        costs: Costs | None = None
        found: list[dict[str, Any]] = []
        for steps, past in self._moments(methods):
            if costs is None:
                costs = measure_costs(
                    self.model,
                    self.population,
                    methods,
                    rows=settings.cost_rows,
                    rounds=settings.cost_rounds,
                    seed=settings.seed,
                )
                common |= {"cost_rows": costs.rows, "cost_rounds": costs.rounds, "forward_ms": costs.forward_ms}
                _say(self.console, _costs_text(costs))
            text = f"after {steps} steps: {settings.population} exact gradients, {len(methods)} pairs"
            _say(self.console, text)
            measured = self._measure(methods, costs, past, steps)
            found += [{**common, "after_steps": steps, **dataclasses.asdict(each)} for each in measured]
        return found

    def _moments(self, methods: Sequence[Method]) -> Iterator[tuple[int, dict[str, Past]]]:
        """Trains up to each moment: (steps, what was remembered for it on the way)."""
        settings = self.settings
        visits = _look_back(methods, settings.moments, self.console)
        past: dict[int, dict[str, Past]] = {moment: {} for moment in settings.moments}
        taken = 0
        for stop in sorted({*settings.moments, *visits}):
            for number in range(taken, stop):
                self._train(number)
            taken = stop
            wanted = visits.get(stop, [])
            memories = remembered([method for _, method in wanted], self.model, self.population, settings.seed)
            for moment, method in wanted:
                key = str(method.remembered)
                past[moment][key] = Past(memories[key], moment - stop)
            if stop in past:
                yield stop, past.pop(stop)

    def _train(self, number: int) -> None:
        generator = seeded(self.settings.seed, "train", number)
        picks = torch.randint(len(self._others), (self.settings.train_rows,), generator=generator).tolist()
        train_step(self.model, self.optimizer, self._in_batches(self._by_length([self._others[i] for i in picks])))

    def _measure(
        self, methods: Sequence[Method], costs: Costs, past: Mapping[str, Past], steps: int
    ) -> list[Measurement]:
        settings = self.settings
        snapshot = Snapshot(
            model=self.model,
            batches=self.batches,
            second_moments=second_moments_of(self.optimizer, self.trained),
            sources=self.population.sources,
            table=self.table,
            optimizer=self.optimizer,
        )
        return measure(
            snapshot,
            methods,
            large=settings.large,
            budgets=settings.budgets,
            draws=settings.draws,
            objectives=settings.objectives,
            seed=settings.seed,
            costs=costs,
            cost_ratios=settings.cost_ratios,
            past=past,
            warm_up=min(steps, settings.warm_up),
            micro_batch=settings.micro_batch,
        )

    def _common(self) -> dict[str, Any]:
        """What all records have."""
        settings = self.settings
        return {
            "kind": "gradients",
            "model": getattr(self.model.config, "_name_or_path", ""),
            "trained_numbers": sum(p.numel() for p in self.trained),
            "learning_rate": settings.learning_rate,
            "train_rows": settings.train_rows,
            "b_std": settings.b_std,
            "sources": len(self.table.counts),
            "seed": settings.seed,
            "device": settings.device,
            **provenance(),
        }

    def _by_length(self, rows: Sequence[int]) -> list[int]:
        return sorted(rows, key=lambda i: len(self._dataset[i]["input_ids"]))

    def _in_batches(self, rows: Sequence[int]) -> list[dict[str, Tensor]]:
        parts = [rows[i : i + ROWS_AT_A_TIME] for i in range(0, len(rows), ROWS_AT_A_TIME)]
        made = [self._collate([self._dataset[i] for i in part]) for part in parts]
        return [{key: value.to(self.settings.device) for key, value in batch.items()} for batch in made]


def draw_adapters(model: Any, b_std: float, seed: int) -> None:
    """LoRA's B from N(0, b_std^2)."""
    generator = seeded(seed, "adapters")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * b_std)


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        say(console, text)


def _fitting(
    model: Any, batch: dict[str, Tensor], methods: Sequence[Method], skip: bool, console: Console | None
) -> list[Method]:
    """The methods without those whose early exit the model has no block for; such a one is an error unless `skip`."""
    fitting = []
    for method in methods:
        try:
            with method.way.strategy.changed_forward()(model, batch):
                fitting.append(method)
        except ConfigError as error:
            if not skip:
                raise
            _say(console, f"Left out: {method.name}. {error}")
    return fitting


def _look_back(
    methods: Sequence[Method], moments: Sequence[int], console: Console | None
) -> dict[int, list[tuple[int, Method]]]:
    """After which steps memories are filled: for which moment, and for which method."""
    visits: dict[int, list[tuple[int, Method]]] = {}
    for moment in sorted(set(moments)):
        for method in methods:
            if method.way.age is not None:
                visits.setdefault(max(0, moment - method.way.age), []).append((moment, method))
                if method.way.age > moment:
                    _say(console, f"after {moment} steps: features of {method.name} are {moment} steps old")
    return visits


def _costs_text(costs: Costs) -> str:
    def text(spread: Spread) -> str:
        return f"{spread.value:.2f} ({spread.low:.2f} to {spread.high:.2f})"

    again = costs.training_checkpointing
    return (
        f"{costs.rows} rows, {costs.rounds} rounds: a forward takes {costs.forward_ms:.3g} ms an example, one with all "
        f"logits {text(costs.all_logits)} of it; c = {text(costs.training)}, with checkpointing "
        f"{'not known' if again is None else text(again)}"
    )


def train_step(model: Any, optimizer: torch.optim.Optimizer, batches: Sequence[dict[str, Tensor]]) -> None:
    """One optimizer step on the mean over the trained tokens of all batches."""
    tokens = sum(int((b["labels"][:, 1:] != IGNORED).sum()) for b in batches)
    for part in batches:
        loss, _ = weighted_loss(model, model, part, torch.ones(len(part["labels"]), device=part["labels"].device))
        (loss / tokens).backward()
    optimizer.step()
    optimizer.zero_grad()


def second_moments_of(optimizer: torch.optim.Optimizer, trained: Sequence[Any]) -> Tensor | None:
    """[D]: bias-corrected, of all that is trained; None before the first step."""
    if any(not optimizer.state.get(p) for p in trained):
        return None
    beta2 = optimizer.param_groups[0]["betas"][1]
    return torch.cat(
        [optimizer.state[p]["exp_avg_sq"].flatten() / (1 - beta2 ** float(optimizer.state[p]["step"])) for p in trained]
    )

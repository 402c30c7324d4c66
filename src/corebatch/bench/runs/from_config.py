"""A comparison out of a config: its parts, its steps, and its data."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from corebatch.batch.online import OnlineObjective
from corebatch.bench.runs.arms import DEFAULT_ARMS, OBJECTIVE_ARMS, Arm, make_arms
from corebatch.bench.runs.held_out_means import Shares, kept_and_target, mean_of, shares_of
from corebatch.bench.runs.settings import CompareSettings, TuneSettings
from corebatch.bench.runs.subsets import job_of
from corebatch.config.building import load_model, load_tokenizer, read_mixture, read_target
from corebatch.config.settings import Settings, settings_from
from corebatch.errors import ConfigError
from corebatch.evaluation import HeldoutLoss, evaluate, heldout_loss, parse_task
from corebatch.mixture import Mixture, PaddingCollator
from corebatch.optimizers import takes_betas

PARTS = 8
"""Of the held-out rows, by which pilots tell what rows add to the spread."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a config says of a comparison.

    Attributes:
        settings: of the reference's run.
        own: the `compare:` block.
        arms: the reference first.
        metric: the held-out mean that the objective is about.
    """

    settings: Settings
    own: CompareSettings
    arms: Sequence[Arm]
    metric: str

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Parts:
        """Of a config's keys. `where`: the config's name, for errors. Raises ConfigError: settings that do not go
        together."""
        settings = settings_from({key: value for key, value in values.items() if key != "compare"}, where)
        own = CompareSettings.from_dict(values.get("compare"))
        block = values.get("coreset") or {}
        if settings.coreset.sampling is not None:  # shares may stand in entries of `datasets`
            block = {**block, "sampling": settings.coreset.sampling.plain()}
        objective = settings.coreset.claimed
        wanted = (*DEFAULT_ARMS, *(OBJECTIVE_ARMS if settings.coreset.weighs else ())) if own.arms is None else own.arms
        arms = make_arms(wanted, own.extra_arms, settings.coreset, block, settings.training)
        others = own.arms is None or any(str(arm).partition("@")[0] not in own.extra_arms for arm in own.arms)
        if settings.coreset.pool_factor < 2 and (others or not own.extra_arms):
            raise ConfigError(
                f"{where}: coreset.pool_factor should be at least 2, or nothing is chosen; with 1 a comparison is of "
                "arms of your own: compare.extra_arms, with compare.arms naming none but these, or []. Found "
                "coreset.pool_factor 1."
            )
        for arm in arms:
            _check_held_out(arm, where)
            _check_tuned(arm, own.tune, where)
            if arm.method.subset is not None:
                job_of(arm, settings)
        metric = mean_of(objective)
        tune = dataclasses.replace(own.tune, metric=own.tune.metric or metric)
        return cls(settings=settings, own=dataclasses.replace(own, tune=tune), arms=arms, metric=metric)

    def shares(self, train: Mixture, held_out: Any) -> Shares:
        """Of the sources, in means of the held-out loss that have shares of their own. Raises ConfigError: the
        objective names a source that is not there, or none of those that are held out; so does `compare.kept`."""
        coreset = self.settings.coreset
        counted = {name: count.trained_tokens for name, count in train.counts.items()}
        shares = shares_of(coreset.claimed, coreset.source_tokens or counted, held_out["source"])
        return {**shares, **kept_and_target(self.own.kept or tuple(coreset.replay or ()), held_out["source"])}


def _check_held_out(arm: Arm, where: str) -> None:
    online = OnlineObjective.of(arm.coreset.claimed, 0)
    if online is not None and online.method.needs_held_out:
        raise ConfigError(
            f"{where}: a comparison measures by its held-out rows, which no arm may follow. Found the objective online "
            f"{online.method.name} in the arm {arm.name}."
        )


def _check_tuned(arm: Arm, tune: TuneSettings, where: str) -> None:
    optim = str(arm.training.get("optim", ""))
    if tune.enabled and tune.adam_beta2 is not None and not takes_betas(optim):
        raise ConfigError(
            f"{where}: compare.tune.adam_beta2 is tuned for every arm, and optim {optim!r} has none. Found it in the "
            f"arm {arm.name}: leave one of them out."
        )


def reference_steps(settings: Settings, rows: int, drawn: int) -> int:
    """Optimizer steps of the config: max_steps, or so many epochs."""
    args = settings.training_arguments()
    return args.max_steps if args.max_steps > 0 else max(1, math.ceil(args.num_train_epochs * rows / drawn))


def read_data(parts: Parts, device: str) -> RunData:
    """Data and model of the comparison in this process."""
    settings, own = parts.settings, parts.own
    tokenizer = load_tokenizer(settings.model)
    train = read_mixture(settings, tokenizer)
    held = read_mixture(settings, tokenizer, evaluation=True).dataset
    collate = PaddingCollator(tokenizer)
    names, shares = sorted(set(held["source"])), parts.shares(train, held)
    tune, final = split_rows(held["source"], own.tune.held_out if own.tune.enabled else 0.0)
    if own.final_rows is not None:
        final = random.Random(3).sample(final, min(own.final_rows, len(final)))
    curve = random.Random(1).sample(final, min(own.curve_rows, len(final)))

    def batches(rows: Sequence[int]) -> HeldOut:
        return HeldOut.of(held, rows, collate, own.eval_rows, device, names, shares)

    return RunData(
        make_model=lambda: load_model(settings),
        tokenizer=tokenizer,
        train=train.dataset,
        collate=collate,
        tune=batches(random.Random(2).sample(tune, min(own.tune.rows, len(tune)))),
        curve=batches(curve),
        final=batches(final),
        parts=lambda: [batches(rows) for rows in parts_of(held["source"], final)],
        evaluate_tasks=task_accuracy(own, tokenizer) if own.tasks else None,
        target=read_target(settings, tokenizer),
    )


def task_accuracy(own: CompareSettings, tokenizer: Any) -> Callable[[Any], dict[str, Any]]:
    """Model -> `tasks`: share of correct answers by task, and for tasks of several sources their mean; and of these
    `task_sources`: the share of each source. Raises ConfigError, DataError: a task that is unknown or cannot be
    read."""
    tasks = [parse_task(task) for task in own.tasks]

    def measure(model: Any) -> dict[str, Any]:
        found: dict[str, float] = {}
        by_source: dict[str, dict[str, float]] = {}
        for task in tasks:
            result = evaluate(model, tokenizer, task, progress=False)
            found[task.name] = result.overall.accuracy
            if len(result.sources) > 1:
                found[f"{task.name}, mean of sources"] = result.source_mean
                by_source[task.name] = {name: count.accuracy for name, count in result.sources.items()}
        return {"tasks": found, "task_sources": by_source}

    return measure


def split_rows(sources: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Held-out rows for tuning and for the final evaluation: this share of each source, drawn once and for all."""
    rows: dict[str, list[int]] = defaultdict(list)
    for number, source in enumerate(sources):
        rows[source].append(number)
    tune: list[int] = []
    for name in sorted(rows):
        own = rows[name][:]
        random.Random(name).shuffle(own)
        tune += own[: round(share * len(own))] if len(own) > 1 else []
    kept = set(tune)
    return sorted(tune), [n for n in range(len(sources)) if n not in kept]


def parts_of(sources: Sequence[str], rows: Sequence[int]) -> list[list[int]]:
    """The rows in parts of about equal size, each source dealt over all of them."""
    order = sorted(rows, key=lambda row: sources[row])
    count = max(1, min(PARTS, len(order) // 2))
    return [order[k::count] for k in range(count)]


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out rows as batches on the model's device; `source` [N] indexes `names`. `shares`: of sources, by the name
    of each mean that has shares of its own."""

    batches: Sequence[Mapping[str, Tensor]]
    names: Sequence[str]
    shares: Shares = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        dataset: Any,
        rows: Sequence[int],
        collate: Callable[[Any], Any],
        size: int,
        device: str,
        names: Sequence[str],
        shares: Shares,
    ) -> HeldOut:
        """Batches of `size` rows, sorted by length."""
        order = sorted(rows, key=lambda i: (len(dataset[i]["input_ids"]), i))
        batches = []
        for start in range(0, len(order), size):
            found = [dataset[i] for i in order[start : start + size]]
            batch = {key: value.to(device) for key, value in collate(found).items()}
            batch["source"] = torch.tensor([names.index(row["source"]) for row in found])
            batches.append(batch)
        return cls(batches=batches, names=names, shares=shares)

    def loss(self, model: Any) -> dict[str, Any]:
        """Nats a token by each mean, and by source."""
        return loss_values(heldout_loss(model, self.batches, source_names=list(self.names)), self.shares)


def loss_values(found: HeldoutLoss, shares: Shares) -> dict[str, Any]:
    """As a line has it. A mean with shares is one of the sources that have rows here."""
    sources = {name: means.token_mean for name, means in sorted(found.sources.items())}
    line = {"token": found.token_mean, "example": found.example_mean, "source": found.source_mean}
    for mean, of in shares.items():
        there = {name: share for name, share in of.items() if name in sources and share > 0}
        if there:
            line[mean] = sum(share * sources[name] for name, share in there.items()) / sum(there.values())
    return {**line, "sources": sources}


@dataclass(frozen=True, kw_only=True)
class RunData:
    """What a process needs to run jobs: how to make the model, and the data.

    Attributes:
        make_model: a fresh model, on no device; the same for the same seed of the global generator.
        train: tokenised rows with a column `source`.
        tune, curve, final: held-out rows, by what they are for.
        evaluate_tasks: model -> what `task_accuracy` measures.
        parts: makes parts of the rows of `final`, for pilots.
        target: rows for arms with a `coreset.target`, or None.
    """

    make_model: Callable[[], Any]
    tokenizer: Any
    train: Any
    collate: Callable[[Any], dict[str, Tensor]]
    tune: HeldOut
    curve: HeldOut
    final: HeldOut
    parts: Callable[[], Sequence[HeldOut]] = tuple
    evaluate_tasks: Callable[[Any], dict[str, Any]] | None = None
    target: Any = None

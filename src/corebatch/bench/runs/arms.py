"""The arms of a comparison: what each draws, chooses and trains, and the budget that ends it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from corebatch.batch.budget import CONSTANT
from corebatch.errors import ConfigError, CorebatchError
from corebatch.launch.subset_settings import SubsetSettings
from corebatch.options import hint
from corebatch.trainer import CoresetConfig
from corebatch.trainer.auto import AUTO
from corebatch.trainer.recipes import RECIPES

Budget = Literal["wall_clock", "flops", "steps"]
BUDGETS: tuple[Budget, ...] = ("wall_clock", "flops", "steps")
REFERENCE = "coreset"
"""The method of the user's `coreset:` block. Its steps set the budget of all others."""


@dataclass(frozen=True)
class ComparedMethod:
    """A way to choose what a step trains.

    Attributes:
        name: a word.
        title: for readers.
        baseline: whether the reference is tested against it in the main table.
        coreset: what replaces keys of the `coreset:` block, all of it but those in `_KEPT`.
        plain: whether all that is drawn is trained, for the plain Trainer's own objective unless it is said otherwise.
        large: whether that is the whole large batch, in more accumulation steps.
        weighted: whether a plain method trains for the objective of the `coreset:` block, by weights and drawing.
        unsorted: the plain method that this one is but for sorting the rows of a step before they are cut into
            micro-batches: the same update with less padding.
        training: what replaces training arguments.
        subset: which rows are kept once, before training.
    """

    name: str
    title: str
    coreset: Mapping[str, Any] = field(default_factory=dict)
    baseline: bool = False
    plain: bool = False
    large: bool = False
    weighted: bool = False
    unsorted: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    subset: SubsetSettings | None = None

    @property
    def weighs_rows(self) -> bool:
        """Whether the rows that are kept may have weights of their own."""
        return self.subset is not None and self.subset.made.weighted

    @property
    def own_objective(self) -> bool:
        """Whether it trains for an objective of its own, whatever the `coreset:` block says."""
        recipe = RECIPES.get(str(self.coreset.get("recipe", "")), {})
        return bool({"objective", "loss"} & {*recipe, *self.coreset})


PLAIN = (
    ComparedMethod("plain_large", "plain, large batch (accumulated)", baseline=True, plain=True, large=True),
    ComparedMethod("plain_small", "plain, small batch", baseline=True, plain=True),
    ComparedMethod(
        "plain_weighted", "plain, small batch, weighted for the objective", baseline=True, plain=True, weighted=True
    ),
    ComparedMethod(
        "plain_sources",
        "plain, small batch, sources drawn equally often",
        {"objective": "drawn", "sampling": {"temperature": 0.0}},
        baseline=True,
        plain=True,
    ),
)
"""Methods that train all that is drawn. Each has a twin that sorts."""
_SORTED = {"plain_small": "plain_sorted"}

METHODS: dict[str, ComparedMethod] = {
    method.name: method
    for method in (
        *PLAIN,
        *(
            dataclasses.replace(
                method,
                name=_SORTED.get(method.name, f"{method.name}_sorted"),
                title=f"{method.title}, sorted by length within a step",
                unsorted=method.name,
            )
            for method in PLAIN
        ),
        ComparedMethod("random", "random out of the pool", {"scorer": "tokens", "selector": "random"}, baseline=True),
        ComparedMethod(
            "tokens_importance",
            "importance by the square root of trained tokens, no scoring",
            {"scorer": "tokens", "selector": "importance"},
            baseline=True,
        ),
        ComparedMethod(
            "random_small_kept",
            "random, small sources kept",
            {"scorer": "tokens", "selector": "random", "small_sources": "auto"},
        ),
        ComparedMethod("stratified", "stratified by source", {"scorer": "tokens", "selector": "stratified"}),
        ComparedMethod("hard", "largest loss", {"scorer": "loss", "selector": "hard"}),
        ComparedMethod("length", "longest", {"scorer": "length", "selector": "hard"}),
        ComparedMethod("following", "error feedback on label counts, no scoring", {"recipe": "following"}),
        ComparedMethod("colm", "CoLM as published", {"recipe": "colm"}),
    )
}
"""The built-in methods beside the user's own."""

DEFAULT_ARMS = (
    *("plain_large_sorted", "plain_sorted@steps", "plain_sorted@flops", "plain_sorted", "random", "tokens_importance"),
    *("random_small_kept", "stratified", "hard", "length", "colm"),
)
"""The plain ones are sorted, as every small batch that is chosen is: what is claimed of choosing is not sorting's."""
OBJECTIVE_ARMS = ("plain_weighted_sorted", "plain_sources_sorted")
"""By default as well where the objective is another than the plain Trainer's."""
_CLAIM = ("objective", "weight_column", "source_tokens", "sampling", "replay")
"""Keys of the user's block that say what the update should be, and which rows come for it."""
_KEPT = ("pool_factor", "seed", "source_column", "padding_free", "micro_batches", "budget", *_CLAIM)
"""Keys of the user's block that every method has in common, where it can have them."""

SUBSET_WEIGHT = "subset_weight"
"""The column of a subset's weights, where the data have none of their own to multiply."""

SET_BY_COMPARISON = ("learning_rate", "adam_beta2", "max_steps", "num_train_epochs", "seed", "data_seed", "output_dir")
"""Training arguments that no arm has of its own."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """A method that ends where a budget does.

    Attributes:
        coreset: settings of the method, with pool_factor 1 for a plain one.
        small: rows that a step of the reference trains; large: rows that it draws.
    """

    method: ComparedMethod
    budget: Budget
    coreset: CoresetConfig
    training: Mapping[str, Any]
    micro_batch: int
    accumulation: int

    @property
    def name(self) -> str:
        return f"{self.method.name}@{self.budget}"

    @property
    def objective(self) -> str:
        """What the update estimates, in words."""
        words = self.coreset.claimed.in_words()
        return words if self.coreset.small_sources is None else f"{words}, small sources kept"

    @property
    def rows_trained(self) -> int:
        """Of one step, at most."""
        return self.micro_batch * self.accumulation

    @property
    def rows_drawn(self) -> int:
        """Of one step, at most."""
        return self.rows_trained * self.coreset.pool_factor


def make_arms(
    wanted: Sequence[str],
    extra: Mapping[str, Mapping[str, Any]],
    coreset: CoresetConfig,
    block: Mapping[str, Any],
    training: Mapping[str, Any],
) -> list[Arm]:
    """The arms by their names, the reference first.

    Args:
        wanted: "method" (at equal wall-clock) or "method@budget".
        extra: arms of the user's own: name -> {title, coreset, training, baseline, large, subset}.
        coreset: of the reference.
        block: the same as it stands in the config.
        training: training arguments of the reference.

    Raises:
        ConfigError: an unknown method, budget or key, or settings that do not go together.
    """
    methods = dict(METHODS)
    for name, values in extra.items():
        methods[name] = _own(name, values, block, coreset)
    methods[REFERENCE] = ComparedMethod(name=REFERENCE, title="the coreset block of the config", coreset=dict(block))
    arms: dict[str, Arm] = {}
    for text in (REFERENCE, *wanted, *(name for name in extra if not _named(name, wanted))):
        name, _, budget = str(text).partition("@")
        if name not in methods:
            raise ConfigError(
                f"compare.arms should name {', '.join(methods)}, or one of extra_arms. "
                f"Found {name!r}.{hint(name, methods)}"
            )
        if (budget or "wall_clock") not in BUDGETS:
            raise ConfigError(f"compare.arms: a budget should be {', '.join(BUDGETS)}. Found {text!r}.")
        if name == REFERENCE and budget not in ("", "wall_clock"):
            raise ConfigError(f"compare.arms: {REFERENCE} sets the budgets and has none of its own. Found {text!r}.")
        if methods[name].subset is not None and budget == "flops":
            raise ConfigError(
                f"compare.arms: choosing a subset is measured in seconds, so that its arm is at equal wall_clock or "
                f"steps. Found {text!r}."
            )
        method = _told_apart(methods[name], methods, coreset, training)
        arm = _arm(method, budget or "wall_clock", coreset, training)  # type: ignore[arg-type]  # checked above
        arms[arm.name] = arm
    return list(arms.values())


def by_method(arms: Sequence[Arm]) -> dict[str, Arm]:
    """The first arm of each method; an arm's budget does not matter for what a step is."""
    return {arm.method.name: arm for arm in reversed(arms)}


def _named(name: str, wanted: Sequence[str]) -> bool:
    return any(str(text).partition("@")[0] == name for text in wanted)


def _told_apart(
    method: ComparedMethod, methods: Mapping[str, ComparedMethod], coreset: CoresetConfig, training: Mapping[str, Any]
) -> ComparedMethod:
    """The method, or where its step has one micro-batch and so nothing to sort, the plain one, which says so."""
    if method.large or not method.unsorted or _accumulation(training) > 1 or coreset.cut.most is not None:
        return method
    plain = methods[method.unsorted]
    return dataclasses.replace(plain, title=f"{plain.title} (sorted it is the same: one micro-batch a step)")


def _accumulation(training: Mapping[str, Any]) -> int:
    return int(training.get("gradient_accumulation_steps") or 1)


def _own(name: str, values: Any, block: Mapping[str, Any], reference: CoresetConfig) -> ComparedMethod:
    keys = ("title", "coreset", "training", "baseline", "large", "subset")
    if name in METHODS or name == REFERENCE or not name.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(
            f"compare.extra_arms should have names of their own, of letters, digits, - and _. Found {name!r}."
        )
    if not isinstance(values, Mapping):
        raise ConfigError(f"compare.extra_arms.{name} should be a block of {', '.join(keys)}. Found {values!r}.")
    for key in values:
        if key not in keys:
            raise ConfigError(
                f"compare.extra_arms.{name} has the keys {', '.join(keys)}. Found {key!r}.{hint(key, keys)}"
            )
    training = dict(values.get("training") or {})
    for key in SET_BY_COMPARISON:
        if key in training:
            raise ConfigError(
                f"compare.extra_arms.{name}.training should leave {', '.join(SET_BY_COMPARISON)} to the comparison, "
                f"which tunes rates and fixes steps and seeds for all arms. Found {key!r}."
            )
    own, large = values.get("coreset") or {}, bool(values.get("large", False))
    if "replay" in own:
        own = {**_claimed_anew(block, reference), **own}
    for key in own if large else ():
        if key != "micro_batches":
            raise ConfigError(
                f"compare.extra_arms.{name} trains the whole large batch, so that of `coreset` it takes micro_batches "
                f"alone. Found {key!r}."
            )
    return ComparedMethod(
        name=name,
        title=str(values.get("title", name)),
        baseline=bool(values.get("baseline", False)),
        plain=large,
        large=large,
        coreset=dict(own) if large or "recipe" in own else {**block, **own},
        training=training,
        subset=_subset(name, values.get("subset")),
    )


def _claimed_anew(block: Mapping[str, Any], reference: CoresetConfig) -> dict[str, Any]:
    """What the block says of the objective and of drawing, without what the reference's own replay made of it: another
    replay is another claim."""
    said = {key: block[key] for key in ("objective", "loss", "weight_column", "source_tokens") if key in block}
    sampling, replayed = block.get("sampling"), reference.replay or {}
    if isinstance(sampling, Mapping) and isinstance(shares := sampling.get("shares"), Mapping):
        left = {name: share for name, share in shares.items() if replayed.get(name) != share}
        sampling = {**sampling, "shares": left} if left else "none"
    return {"objective": AUTO, **said, "sampling": sampling or "none"}


def _subset(name: str, block: Any) -> SubsetSettings | None:
    if block is None:
        return None
    try:
        subset = SubsetSettings.from_dict(block)
    except CorebatchError as error:
        raise ConfigError(f"compare.extra_arms.{name}: {error}") from error
    if subset.output is not None:
        raise ConfigError(
            f"compare.extra_arms.{name}: a comparison keeps subsets in its own folder. Found subset.output "
            f"{subset.output!r}."
        )
    return subset


def _arm(method: ComparedMethod, budget: Budget, coreset: CoresetConfig, training: Mapping[str, Any]) -> Arm:
    training = {**training, **method.training}
    micro, accumulation = int(training.get("per_device_train_batch_size") or 8), _accumulation(training)
    apart = method.own_objective or (method.plain and not method.weighted)
    values = {key: getattr(coreset, key) for key in _KEPT if not (apart and key in _CLAIM)}
    if method.large:
        accumulation *= coreset.pool_factor
    if method.plain:
        cut = coreset.cut if coreset.cut.by != "plain" else "positions"
        values |= {"pool_factor": 1, "budget": CONSTANT, "micro_batches": cut if method.unsorted else "plain"}
    try:
        chosen = CoresetConfig.from_dict({**values, **method.coreset})
        if method.weighs_rows and chosen.weight_column is None:
            chosen = chosen.changed(weight_column=SUBSET_WEIGHT)
    except ConfigError as error:
        raise ConfigError(f"The arm {method.name}: {error}") from error
    return Arm(
        method=method, budget=budget, coreset=chosen, training=training, micro_batch=micro, accumulation=accumulation
    )

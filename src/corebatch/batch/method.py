"""The method of a step: what is done with features and sources to choose the small batch.

    1 groups    = split(source_ids, budget)      small sources are kept whole, if asked for
    2 features  = scorer(model, batch)           one row an example; the model is left as it was
    3 features  = normalise(features)            as the optimizer will
    4 features  = sparsify(features)             per source
    5 selection = select(features, budget)       indices and weights; with error feedback it makes up for earlier errors
    6 an ordinary forward, backward and optimizer step on the small batch (the trainer's)

Stage 2 runs where the rows are, rank by rank; stages 1 and 3 to 5 run on the rows of all ranks together, the same on
every rank. `select` is stages 1 and 5 for features that a caller has already.

Shape suffixes: N rows of the large batch, M rows of the small batch, P features.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from corebatch.batch.feedback import ErrorFeedback
from corebatch.batch.target_settings import TargetSettings
from corebatch.errors import ConfigError, InputError, NonFiniteError
from corebatch.scoring import LossUnit, Scorer, Scores, extents
from corebatch.seeds import seeded
from corebatch.selectors import SELECTORS, Selector, make_selector
from corebatch.selectors.checks import check_column
from corebatch.selectors.random import Random
from corebatch.sources import (
    Keeping,
    Leftovers,
    SmallSources,
    check_cap,
    encode_sources,
    small_candidates,
    split,
    with_shares,
)
from corebatch.transforms import Normaliser, Sparsifier
from corebatch.types import Selection, SourceGroup

DEFAULT_SELECTOR = "cube"
"""Exactly unbiased given the rows, whatever they look like; the nearest of such (docs/methods/selectors.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What one step chose.

    Attributes:
        selection: indices into the rows of the large batch, and weights.
        groups: how the rows were split by source.
        at_random: whether the step's rows were drawn at random (`CoresetStep.random_every`).
    """

    selection: Selection
    groups: Sequence[SourceGroup]
    at_random: bool = False


@dataclass(kw_only=True)
class CoresetStep:
    """The method and its state. The stages are the statements of `choose`.

    Attributes:
        scorer: stage 2; a trainer calls it on each rank's rows.
        selector: stage 5.
        normalise: stage 3, or None.
        sparsify: stage 4, or None.
        small_sources: ids of the sources that are kept whole.
        small_sources_cap: the share of the budget that they take together, at most; None: all are kept.
        leftovers: who gets the rows that shares of sources, rounded down, leave over.
        replay: sources that have a share of the chosen rows each, by number.
        source_names: names[s] is the name of source s; None where sources go by their numbers.
        feedback: carries the errors of choices into the next ones, or None.
        target: how `validation` is kept up to date, for a selector that follows it.
        validation: [1, P], the mean feature of the target's rows, unnormalised; None before the first look at it.
        seed: of all randomness, together with the number of the step.
        loss: what is minimised.
        random_every: at every so-many-th step rows are drawn at random out of all, with weights of one, so that they
            tell the noise of the gradient; what such a step misses is carried as any other is. 0: never.
    """

    scorer: Scorer
    selector: Selector
    normalise: Normaliser | None = None
    sparsify: Sparsifier | None = None
    small_sources: frozenset[int] = frozenset()
    small_sources_cap: float | None = None
    leftovers: Leftovers = "random"
    replay: Mapping[int, float] = field(default_factory=dict)
    feedback: ErrorFeedback | None = None
    source_names: Sequence[str] | Mapping[int, str] | None = None
    target: TargetSettings | None = None
    validation: Tensor | None = None
    seed: int = 0
    loss: LossUnit = "token_mean"
    random_every: int = 0

    def __post_init__(self) -> None:
        self._check_target()
        if self.selector.weighted and self.normalise is not None and not self.normalise.linear:
            raise ConfigError(
                f"normalise {self.normalise.name!r} maps each example by itself, so weights that make a mean of "
                f"gradients honest mean nothing after it. It goes with uniform selectors; found the weighted "
                f"{self.selector.name!r}. Use normalise 'optimizer' or none."
            )
        if self.selector.weighted and self.sparsify is not None and self.sparsify.name == "topk":
            raise ConfigError(
                f"sparsify 'topk' gives every source columns of its own, and the weighted selector "
                f"{self.selector.name!r} chooses once over all sources. Use sparsify 'projection' or none."
            )
        if self.feedback is not None and not self.selector.follows:
            raise ConfigError(
                f"coreset.feedback needs a selector that can make up for earlier errors: "
                f"{', '.join(name for name, kind in SELECTORS.items() if kind().follows)}. "
                f"Found {self.selector.name!r}."
            )

    def _check_target(self) -> None:
        """Raises ConfigError for a selector that lacks its target, a target that nothing follows, or a stage that would
        map it otherwise than the pool."""
        follows = "validation" in self.selector.requires
        if follows and self.target is None:
            raise ConfigError(
                f"selector {self.selector.name!r} needs validation gradients: in a Trainer give coreset.target "
                "(every, rows) and target_dataset, elsewhere use corebatch.select(..., validation=...). Found none."
            )
        if self.target is not None and not follows:
            guided = [name for name, kind in SELECTORS.items() if "validation" in kind.requires]
            raise ConfigError(
                f"coreset.target goes with a selector that follows it: {', '.join(guided)}. "
                f"Found {self.selector.name!r}."
            )
        maps = (("normalise", self.normalise, ("optimizer", "sgd")), ("sparsify", self.sparsify, ("projection",)))
        for key, stage, known in maps:
            if follows and stage is not None and stage.name not in known:
                raise ConfigError(
                    f"coreset.target is mapped as the pool is, one row at a time: {key} should be "
                    f"{' or '.join(known)}, or none. Found {stage.name!r}."
                )

    @property
    def scores(self) -> bool:
        """Whether the selector looks at scores at all."""
        return bool(self.selector.requires & {"features", "losses"})

    def choose(
        self,
        scores: Scores,
        source_ids: Tensor,
        budget: int,
        *,
        step: int,
        second_moments: Tensor | None = None,
        share: float = 1.0,
        costs: Tensor | None = None,
        factors: Tensor | None = None,
        ids: Tensor | None = None,
    ) -> Choice:
        """Stages 1 and 3 to 5 on the large batch of all ranks.

        Args:
            scores: of the N rows, in the order of a global example id: ties go to the smaller.
            source_ids: LongTensor [N].
            budget: M.
            step: the number of the optimizer step; with the seed it determines all randomness.
            second_moments: [P], the live optimizer's, for a normaliser that needs them.
            share: of the large batch that these rows are, where others are chosen apart from them.
            costs: [N], what training each row costs, for a selector that looks at it.
            factors: [N], by how much each row's loss counts in what the step claims, beside its unit; None: ones. What
                is chosen by are features, losses and sizes times these.
            ids: LongTensor [N], their numbers in the data set, by which error feedback knows them again.

        Raises:
            NonFiniteError: a feature or loss is NaN or infinite; the rows are named.
        """
        groups = self._split(source_ids, budget, seeded(self.seed, step, "split"))
        check_finite(scores.features, scores.losses)
        extent = extents(scores.tokens, self.loss)
        scores, extent, root = claimed(scores, extent, factors)
        features, validation = scores.features, self.validation
        if self.normalise is not None:
            shapes = self.scorer.shapes() if self.normalise.needs_shapes else None
            features = self.normalise(features, second_moments, shapes)
            validation = None if validation is None else self.normalise(validation.to(features), second_moments, shapes)
        if self.sparsify is not None:
            features = self.sparsify(features, source_ids)
            validation = None if validation is None else self.sparsify(validation.to(features), source_ids[:1])
        carried, sizes = None, root if self.selector.draws and self.scorer.sized_by_tokens else None
        if self.feedback is not None:
            sizes = features.double().norm(dim=1) if sizes is None else sizes  # columns for sources are no part of it
            features, carried = self.feedback.look(features, source_ids, extent, share, ids)
        generator = seeded(self.seed, step, "select")
        losses = scores.features[:, 0] if self.scorer.stands_for_loss else scores.losses
        at_random = self.random_every > 0 and (step + 1) % self.random_every == 0
        selection = Random().select(features, budget, generator) if at_random else self.selector.select(
            features, budget, generator, groups=groups, losses=losses, validation=validation, carried=carried,
            sizes=sizes, costs=costs,
        )  # fmt: skip
        if self.feedback is not None:
            self.feedback.update(selection, share)
        if self.normalise is not None:
            self._remember(scores.features, selection, groups)
        return Choice(selection=selection, groups=groups, at_random=at_random)

    def _split(self, source_ids: Tensor, budget: int, generator: torch.Generator) -> list[SourceGroup]:
        """Stage 1: which rows are chosen together."""
        if self.replay:
            return with_shares(source_ids, budget, self.replay, self.source_names, generator)
        return split(
            source_ids,
            budget,
            keeping=Keeping(self.small_sources, self.small_sources_cap, self.selector.weighted),
            names=self.source_names,
            per_source=self.selector.per_source,
            generator=generator if self.leftovers == "random" else None,
        )

    def _remember(self, features: Tensor, selection: Selection, groups: Sequence[SourceGroup]) -> None:
        """The normaliser's history takes the chosen examples of the large sources only (CoLM)."""
        assert self.normalise is not None
        kept = [group.members for group in groups if group.keep]
        chosen = selection.indices.cpu()
        if kept:
            chosen = chosen[~torch.isin(chosen, torch.cat(kept))]
        self.normalise.update(features[chosen.to(features.device)])


def claimed(scores: Scores, extent: Tensor, factors: Tensor | None) -> tuple[Scores, Tensor, Tensor]:
    """Scores, extents and the sizes that follow from extents alone, [N] each, as they count in what a step claims."""
    root = extent.double().sqrt()
    if factors is None:
        return scores, extent, root
    each = factors.to(scores.features)
    losses = None if scores.losses is None else scores.losses * each
    scores = dataclasses.replace(scores, features=scores.features * each[:, None], losses=losses)
    return scores, extent * factors.to(extent.device), root * factors.to(extent.device)


def check_finite(features: Tensor, losses: Tensor | None) -> None:
    """Raises NonFiniteError that names the rows, if a feature or a loss is not finite."""
    for what, values in (("loss", losses), ("feature", features)):
        if values is None:
            continue
        bad = ~torch.isfinite(values.view(len(values), -1)).all(dim=1)
        if bool(bad.any()):
            rows = bad.nonzero().flatten().tolist()
            shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
            raise NonFiniteError(f"Every {what} should be finite. Found NaN or infinity in {len(rows)} rows: {shown}.")


def select(
    features: Tensor,
    budget: int,
    source_ids: Tensor | Sequence[str | int] | None = None,
    selector: str | Selector = DEFAULT_SELECTOR,
    *,
    selector_options: Mapping[str, Any] | None = None,
    small_sources: SmallSources = None,
    small_sources_cap: float | None = None,
    losses: Tensor | None = None,
    validation: Tensor | None = None,
    costs: Tensor | None = None,
    seed: int = 0,
    objective_weights: Tensor | None = None,
) -> Selection:
    """Chooses `budget` rows of `features`, on plain tensors, without any trainer or model.

    Above 4,096 rows some selectors work in blocks: time and memory grow with N (docs/methods/selectors.md).

    Args:
        features: float Tensor [N, P]: one row an example, for instance its gradient.
        budget: M, how many rows to choose, 0 <= M <= N.
        source_ids: the source of each row: integer Tensor [N] or a list of N names. None: one source.
        selector: a name in `corebatch.selectors.SELECTORS`, or an instance.
        selector_options: keyword arguments for a selector that is given by name.
        small_sources: "auto" keeps whole all sources whose share of the rows is below 1 / (number of sources); a list
            names them instead; None keeps none. For more of them than the budget see `corebatch.sources.Keeping`.
        small_sources_cap: the share of the budget, in (0, 1], that they take together, at most; None: no cap.
        losses: float Tensor [N], for selectors that choose by loss.
        validation: float Tensor [V, P], for selectors that are guided by validation gradients.
        costs: float Tensor [N], positive, for instance tokens: samplers have pi ~ norm / cost^p (`cost_power`).
        seed: of the random selectors; the global random state is not touched.
        objective_weights: float Tensor [N], u_i of at least 0 (`corebatch.objective`): how much row i counts. Rows are
            chosen by u_i g_i; u_i is to be multiplied into what is trained, beside the weights that are returned.

    Returns:
        Selection with ascending indices [M] and weights [M] such that (1/M) sum_i w_i u_i g_i estimates the mean of
        all N rows' u_i g_i (uniform selectors: ones).

    Raises:
        InputError (a ValueError): other shapes, a budget outside [0, N], NaN, a missing argument, an unknown selector.
    """
    chosen_by = make_selector(selector, selector_options)
    if not isinstance(features, Tensor) or features.ndim != 2:
        found = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else repr(type(features).__name__)
        raise InputError(f"Parameter `features` should be a Tensor [N, P]. Found {found}.")
    check_cap(small_sources_cap, small_sources)
    groups = None
    if source_ids is not None and isinstance(budget, int) and 0 <= budget <= len(features):
        ids, names = encode_sources(source_ids, len(features))
        small = small_candidates(Counter(ids.tolist()), names, small_sources)
        keeping = Keeping(small, small_sources_cap, chosen_by.weighted)
        rounding = seeded(seed, "split")
        groups = split(ids, budget, keeping=keeping, names=names, per_source=chosen_by.per_source, generator=rounding)
    elif small_sources is not None:
        small_candidates({}, [], small_sources)  # an error in the policy is an error without sources too
    if objective_weights is not None:
        features, losses = _under(objective_weights, features, losses)
    given = {"losses": losses, "validation": validation, "costs": costs}
    return chosen_by.select(features, budget, seeded(seed, "select"), groups=groups, **given)


def _under(objective_weights: Tensor, features: Tensor, losses: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Features and losses times u_i. Raises InputError for weights that are none."""
    weights = check_column("objective_weights", objective_weights, len(features))
    if len(weights) and float(weights.min()) < 0:
        raise InputError(f"`objective_weights` should not be negative. Found {float(weights.min())}.")
    each = weights.to(features.device)
    if losses is not None:
        losses = check_column("losses", losses, len(features)).to(features.device) * each
    return features.double() * each[:, None] if features.is_floating_point() else features, losses

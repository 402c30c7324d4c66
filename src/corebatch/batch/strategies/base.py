"""What ways of scoring have in common: checked options, what they need of other settings, what they cost.

A way of scoring says how the pool of a step gets its features: exactly, cheaply, or from memory. With every way but
"full" some features are approximate or unknown. They steer which examples are likely to be chosen; the weights
M / (N pi) keep the estimate of the large batch's gradient honest whatever the proxy.

Shape suffixes: E rows of this rank that are scored.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor, nn

from corebatch.batch.method import Choice, CoresetStep
from corebatch.batch.plan import Draw, Plan
from corebatch.batch.strategies.options import check_option, is_number, one_of, option, whole
from corebatch.scoring import LossUnit, Scores

Need = tuple[bool, str]
"""Whether something is so, and what it is, with what was found."""


class OtherSettings(Protocol):
    """What a strategy looks at of a CoresetConfig."""

    @property
    def pool_factor(self) -> int: ...
    @property
    def normalise(self) -> Any: ...
    @property
    def sparsify(self) -> Any: ...
    @property
    def small_sources(self) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Strategy(ABC):
    """A way of scoring. Options are keys of the block `coreset.scoring`.

    Attributes:
        rows: how many of the longest rows one scoring forward takes (it takes more if they are shorter), or "auto":
            a micro-batch's worth, on a GPU more as memory allows. Halved, with a warning, when memory runs out.
        way: the key in `STRATEGIES`.
        in_words: what is scored, with options in braces, and `drawn`: how rows without features are drawn.
        stands_for_another: whether it only becomes one of the others when a run begins.
        own_forward: whether its forwards are other ones than the model's on whole examples, so that their losses are
            not the examples', and their price is one of its own.
        first_pass_differs: whether steps cost more in the first pass over the data than later.
        prices_reuse: whether there is a price at which the first forward of all that is trained was the scoring's.
        step_options: the options that make a difference to a single step.
        supposed: what a measurement of a single step supposes of the run around it, a choice of
            age: how many optimizer steps ago what is remembered was computed;
            known: the share of the examples that is remembered;
            visits: features were scored for the purpose, once in so many visits of an example;
            cost: they were scored at so many forwards a visit.
    """

    rows: int | Literal["auto"] = whole("auto", 1)

    way: ClassVar[str]
    in_words: ClassVar[str] = "every row that is drawn"
    stands_for_another: ClassVar[bool] = False
    own_forward: ClassVar[bool] = False
    first_pass_differs: ClassVar[bool] = False
    prices_reuse: ClassVar[bool] = False
    step_options: ClassVar[tuple[str, ...]] = ()
    supposed: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            check_option(field, getattr(self, field.name))

    # ---- what it asks for and what it is ----------------------------------------------------------------------------

    def needs(self, others: OtherSettings, step: CoresetStep) -> Sequence[Need]:
        """What it needs of the other settings."""
        return (needs_forward(step),) if self.own_forward else ()

    def resolve(self, again: bool, fits: Callable[[Strategy], bool], *, taught: bool = True) -> Strategy:
        """The strategy that this one stands for in a run: itself, but for "auto".

        Args:
            again: whether the run will see examples more than once.
            fits: whether the other settings are what a strategy needs.
            taught: whether rows may be chosen by what training teaches of them.
        """
        return self

    @property
    def scores_exactly(self) -> bool:
        """Whether there are ordinary scoring forwards, whose work training could reuse."""
        return False

    @property
    def reuse(self) -> bool | Literal["auto"]:
        """Whether the scoring forward serves as training's first."""
        return False

    @property
    def remembers(self) -> bool:
        """Whether features or losses are kept from step to step."""
        return False

    @property
    def learns(self) -> bool:
        """Whether the examples that are trained are remembered."""
        return False

    @property
    def only_learns(self) -> bool:
        """Whether nothing is remembered but what training teaches."""
        return False

    # ---- a step -----------------------------------------------------------------------------------------------------

    def plan(self, draw: Draw) -> Plan:
        """Which rows are scored: all that may be chosen, unless a strategy spares some."""
        return Plan(candidates=draw.candidates, budget=draw.budget, exact=draw.candidates)

    def shorten(self, row: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What forwards see of a row without padding."""
        return row

    def lengths(self, lengths: Tensor) -> Tensor:
        """Tokens that forwards see of rows of so many."""
        return lengths

    def changed_forward(self) -> Callable[[nn.Module, Mapping[str, Tensor]], AbstractContextManager[None]]:
        """Contexts for forwards of one model on batches, in which it is another one; asked for once a run."""
        return lambda model, batch: nullcontext()

    def scale(self, rows: Sequence[Mapping[str, Tensor]], tokens: Tensor, loss: LossUnit) -> Tensor | None:
        """What the features of rows are multiplied by, [E], or None for ones.

        Args:
            rows: as `shorten` gives them.
            tokens: LongTensor [E], trained tokens of the whole rows.
            loss: the unit of the features.
        """
        return None

    def choose(self, draw: Draw, plan: Plan, scores: Scores | None, second_moments: Tensor | None) -> Choice:
        """The small batch, as rows of the plan's candidates.

        Args:
            scores: of the plan's rows, in their order; None if there are none.
            second_moments: the optimizer's, in the order of the features, for a normaliser that needs them.

        Raises:
            NonFiniteError: a feature or loss is not finite; the rows are named.
        """
        assert scores is not None
        sources = draw.pool.sources[plan.candidates]
        return draw.method.choose(
            scores,
            sources,
            draw.budget,
            step=draw.step,
            second_moments=second_moments,
            costs=draw.costs(plan.candidates),
            factors=draw.factors(plan.candidates),
            ids=draw.pool.ids[plan.candidates],
        )

    # ---- what it costs ----------------------------------------------------------------------------------------------

    @property
    def period(self) -> int | None:
        """Steps from one that scores to the next, where those between them do not; None where all steps are alike."""
        return None

    def price(self, supposed: Mapping[str, Any], scored: float) -> float:
        """Scoring forwards that an example of the large batch costs, in the mean over a run: in those of `full`, or of
        its own.

        Args:
            supposed: values of some of `supposed`.
            scored: the share of the large batch's tokens that is in the rows that a step scores.
        """
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Reusing(Strategy):
    """A strategy with ordinary scoring forwards, which may serve as the first ones of training.

    Attributes:
        reuse: whether the scoring forward serves as the first forward of activation checkpointing for the chosen
            examples; "auto": where that is exact and fits. It needs checkpointing and no active dropout.
        reuse_place: keep the blocks' inputs on the "device" or in "host" memory.
        reuse_gb: at most so many gigabytes (2^30 bytes) are kept; None: half of what is free when training begins.
    """

    reuse: bool | Literal["auto"] = one_of("auto", True, False, "auto")
    reuse_place: Literal["device", "host"] = one_of("device", "device", "host")
    reuse_gb: float | None = option(
        None, "a number of at least 0", lambda value: value is None or (is_number(value) and 0 <= value < math.inf)
    )

    @property
    def scores_exactly(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class Remembering(Reusing):
    """A strategy with a memory of examples.

    Attributes:
        learn: whether the examples that are trained are remembered, with exact features out of their own backward.
    """

    learn: bool = one_of(True, True, False)

    supposed: ClassVar[tuple[str, ...]] = ("age", "known")

    @property
    def remembers(self) -> bool:
        return True

    @property
    def learns(self) -> bool:
        return self.remembers and self.learn


# ---- needs that several have -----------------------------------------------------------------------------------------


def needs_forward(step: CoresetStep) -> Need:
    """There must be forwards to spare, whose features a proxy may stand for."""
    fits = step.scores and step.scorer.needs_forward and not step.scorer.stands_for_loss
    return (
        fits,
        "a scorer with a forward and without a reference, and a selector that looks at it. "
        f"Found scorer {step.scorer.name!r} and selector {step.selector.name!r}",
    )


def needs_of_parts(others: OtherSettings, step: CoresetStep, *more: Need) -> tuple[Need, ...]:
    """What is needed where a pool is divided by a proxy, whose preferences weights undo; `more` before the last."""
    selector, sources = step.selector, others.small_sources
    return (
        needs_forward(step),
        (selector.weighted, f"a weighted selector, whose weights keep the estimate honest. Found {selector.name!r}"),
        *more,
        (sources is None, f"small_sources none, since rows are chosen in parts of its own. Found {sources!r}"),
    )

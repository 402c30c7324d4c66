"""How each arm looks in all drawings: a colour and a marker for its method, a line style for its budget."""

from __future__ import annotations

from dataclasses import dataclass

from corebatch.bench.runs.comparison import Comparison
from corebatch.rendering import svg

_COLORS = (svg.POOL, svg.TRAINED, *(svg.EXTRA[i] for i in (1, 2, 3, 0, 4)))
_MARKERS = ("s", "^", "D", "v", "P", "X", "*", "p")
_FIRST = ("plain_small", "plain_large", "random", "tokens_importance")  # so that pages agree on their colours
_MOST_SHOWN = 6
_SWATCH_SIZE = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Colour (hexadecimal, one of the report's), marker and dashes as matplotlib takes them."""

    color: str
    marker: str
    dash: tuple[float, ...]
    wide: bool

    @property
    def line(self) -> str | tuple[int, tuple[float, ...]]:
        return (0, self.dash) if self.dash else "-"

    @property
    def variable(self) -> str:
        """The colour's name in the style sheet."""
        return svg.VARIABLES[self.color]

    @property
    def shape(self) -> str:
        """The marker as the `d` of an SVG path, around the origin, in pixels."""
        return svg.marker_path(self.marker, _SWATCH_SIZE)


def looks(comparison: Comparison) -> dict[str, Look]:
    """The look of each arm of the plan. The reference's method stands out; with many methods colours repeat, with
    other markers."""
    plan = comparison.plan
    reference = plan.reference_arm
    present = list(
        dict.fromkeys(arm.method for arm in plan.arms if reference is None or arm.method != reference.method)
    )
    methods = [*(m for m in _FIRST if m in present), *(m for m in present if m not in _FIRST)]
    usual = reference.budget if reference is not None else plan.arms[0].budget
    others = [budget for budget in ("steps", "flops", "wall_clock") if budget != usual]
    made = {}
    for arm in plan.arms:
        dash: tuple[float, ...] = () if arm.budget == usual else (1, 1.4)
        if arm.budget == others[0]:
            dash = (4, 1.6)
        if reference is not None and arm.method == reference.method:
            made[arm.name] = Look(color=svg.CHOSEN, marker="o", dash=dash, wide=True)
        else:
            place = methods.index(arm.method)
            color, marker = _COLORS[place % len(_COLORS)], _MARKERS[place % len(_MARKERS)]
            made[arm.name] = Look(color=color, marker=marker, dash=dash, wide=False)
    return made


def shown_first(comparison: Comparison) -> set[str]:
    """The arms that are drawn before a reader chooses: all of a few, else the reference and the baselines at its
    budget."""
    plan = comparison.plan
    reference = plan.reference_arm
    if len(plan.arms) <= _MOST_SHOWN or reference is None:
        return {arm.name for arm in plan.arms}
    return {arm.name for arm in plan.arms if arm is reference or (arm.baseline and arm.budget == reference.budget)}

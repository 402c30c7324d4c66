"""How each arm looks in all drawings: a colour and a marker for its method, a line style for its budget."""

from __future__ import annotations

from dataclasses import dataclass

from corebatch.bench.runs.comparison import Comparison
from corebatch.rendering import svg

_COLOURS = (svg.POOL, svg.TRAINED, *(svg.EXTRA[i] for i in (1, 2, 3, 0, 4)))
_MARKERS = ("s", "^", "D", "v", "P", "X", "*", "p")
_FIRST = ("plain_small", "plain_large", "random", "tokens_importance")  # so that pages agree on their colours
_MOST_SHOWN = 6

_SHAPES = {  # of a legend's swatch, around (17, 6)
    "o": '<circle cx="17" cy="6" r="4"/>',
    "s": '<path d="M13.5 2.5h7v7h-7z"/>',
    "^": '<path d="M17 1.5l4.5 8.5h-9z"/>',
    "D": '<path d="M17 1l5 5-5 5-5-5z"/>',
    "v": '<path d="M17 10.5L12.5 2h9z"/>',
    "P": '<path d="M15.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z"/>',
    "X": '<path d="M13 3.5L14.5 2 17 4.5 19.5 2 21 3.5 18.5 6 21 8.5 19.5 10 17 7.5 14.5 10 13 8.5 15.5 6z"/>',
    "*": '<path d="M17 1l1.3 3.5 3.7.1-2.9 2.3 1 3.6L17 8.4l-3.1 2.1 1-3.6L12 4.6l3.7-.1z"/>',
    "p": '<path d="M17 1.5l4.6 3.4-1.8 5.5h-5.6L12.4 4.9z"/>',
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Colour (hexadecimal, one of the report's), marker and dashes as matplotlib takes them."""

    colour: str
    marker: str
    dash: tuple[float, ...]
    wide: bool

    @property
    def line(self) -> str | tuple[int, tuple[float, ...]]:
        return (0, self.dash) if self.dash else "-"

    def swatch(self) -> str:
        """An `<svg>` for a legend."""
        colour = f"var(--{svg.VARIABLES[self.colour]})"
        width = 3 if self.wide else 2
        dashes = f' stroke-dasharray="{" ".join(f"{width * each:g}" for each in self.dash)}"' if self.dash else ""
        line = f'<line x1="0" y1="6" x2="34" y2="6" stroke="{colour}" stroke-width="{width}"{dashes}/>'
        shape = f'<g fill="{colour}">{_SHAPES[self.marker]}</g>'
        return f'<svg class="swatch" viewBox="0 0 34 12" width="34" height="12" aria-hidden="true">{line}{shape}</svg>'


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
            made[arm.name] = Look(colour=svg.CHOSEN, marker="o", dash=dash, wide=True)
        else:
            place = methods.index(arm.method)
            colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
            made[arm.name] = Look(colour=colour, marker=marker, dash=dash, wide=False)
    return made


def shown_first(comparison: Comparison) -> set[str]:
    """The arms that are drawn before a reader chooses: all of a few, else the reference and the baselines at its
    budget."""
    plan = comparison.plan
    reference = plan.reference_arm
    if len(plan.arms) <= _MOST_SHOWN or reference is None:
        return {arm.name for arm in plan.arms}
    return {arm.name for arm in plan.arms if arm is reference or (arm.baseline and arm.budget == reference.budget)}

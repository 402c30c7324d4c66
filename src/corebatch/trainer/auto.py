"""What `auto` stands for among the settings: a default that computes no forward in order to choose.

Left to itself a run chooses by counts of labels, which need no model, and carries its errors (`recipe: following`), so
that over steps every source, and what is trained of each label, has its weight. Whoever asks for a way of scoring or of
using gradients gets features of gradients, and a choice that is unbiased in every step by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corebatch.batch.feedback import RHO
from corebatch.batch.strategies import Strategy, Unscored, shortest
from corebatch.batch.strategies.two_phase import TwoPhase
from corebatch.selectors import make_selector

AUTO = "auto"
GRADIENTS, COUNTS = "last_layer", "label_counts"
CARRIES, ALONE = "balanced", "cube"


def resolved(settings: Mapping[str, Any], strategy: Strategy) -> dict[str, Any]:
    """`scorer`, `selector` and `feedback` without "auto".

    The scorer is `label_counts`, and `last_layer` where a selector, a way of scoring, scorer_options, normalise or
    sparsify is named. The selector is `balanced` on `label_counts` and where feedback is named; `cube` on others and
    where nothing can be carried: feedback is none, a first phase draws, or rows are drawn by their tokens alone.
    Feedback is 0.99 where `balanced` was not named but is what "auto" stands for, else none.

    Args:
        settings: fields of CoresetConfig.
        strategy: its way of scoring.
    """
    scorer, selector, feedback = settings["scorer"], settings["selector"], settings["feedback"]
    named = [settings[key] for key in ("scorer_options", "normalise", "sparsify")]
    left = is_auto(selector) and shortest(strategy) == AUTO and not any(each not in (None, {}) for each in named)
    if is_auto(scorer):
        scorer = COUNTS if left else GRADIENTS
    chosen = selector
    if is_auto(selector):
        alone = feedback is None or isinstance(strategy, TwoPhase | Unscored)
        chosen = CARRIES if not alone and (scorer == COUNTS or not is_auto(feedback)) else ALONE
    if is_auto(feedback):
        follows = is_auto(selector) and make_selector(chosen, settings["selector_options"]).follows
        feedback = RHO if follows else None
    return {"scorer": scorer, "selector": chosen, "feedback": feedback}


def is_auto(value: object) -> bool:
    """Whether a setting is left to us."""
    return isinstance(value, str) and value == AUTO

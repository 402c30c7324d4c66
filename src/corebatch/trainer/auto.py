"""What `auto` stands for among the settings: a default that computes no forward in order to choose.

Left to itself a run chooses by counts of labels, which need no model, and carries its errors (`recipe: following`):
after some steps every source, and what is trained of each label, has its weight. Whoever asks for another way of
scoring, or of using gradients, gets features of gradients.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corebatch.batch.strategies import Strategy, Unscored, shortest
from corebatch.batch.strategies.two_phase import TwoPhase
from corebatch.selectors import Selector, make_selector

AUTO, RHO = "auto", 0.99
GRADIENTS, COUNTS = "last_layer", "label_counts"
CARRIES, ALONE = "balanced", "cube"


def resolved(settings: Mapping[str, Any], strategy: Strategy) -> dict[str, Any]:
    """`scorer`, `selector` and `feedback` without "auto".

    The selector is `balanced`, and `cube` where nothing can be carried: feedback is none, a first phase draws, or rows
    are drawn by their tokens alone. The scorer is `label_counts`, and `last_layer` where a selector, a way of scoring,
    scorer_options, normalise or sparsify was named. Feedback is 0.99 for a selector that can make up for earlier
    errors, and none for others.

    Args:
        settings: fields of CoresetConfig.
        strategy: its way of scoring.
    """
    scorer, selector, feedback = settings["scorer"], settings["selector"], settings["feedback"]
    alone = feedback is None or isinstance(strategy, TwoPhase | Unscored)
    named = [settings[key] for key in ("scorer_options", "normalise", "sparsify")]
    left = selector == AUTO and shortest(strategy) == AUTO and not any(each not in (None, {}) for each in named)
    if isinstance(selector, str) and selector == AUTO:
        selector = ALONE if alone else CARRIES
    if isinstance(scorer, str) and scorer == AUTO:
        scorer = COUNTS if left else GRADIENTS
    if isinstance(feedback, str) and feedback == AUTO:
        feedback = RHO if not alone and _follows(selector, settings["selector_options"]) else None
    return {"scorer": scorer, "selector": selector, "feedback": feedback}


def _follows(selector: str | Selector, options: Mapping[str, Any]) -> bool:
    return make_selector(selector, options).follows

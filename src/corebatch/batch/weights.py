"""The law of weights: every factor between a row's loss and the update, in one place.

What a step claims, of the N rows of the large batch, L_i being row i's summed token loss and l_i its trained tokens:

    sum_i a_i u_i L_i / sum_i a_i l_i          or in a mean over examples          sum_i a_i u_i (L_i / l_i) / sum_i a_i

u_i is the objective's weight, times the row's own (`corebatch.objective`), and a_i corrects for rows that are drawn
more or less often than they are in the data (`corebatch.sampling`); both are 1 by default. What is trained, of the M
rows of the small batch, with the selector's weights w_i, whose (1/M) sum_i w_i g_i estimates (1/N) sum_i g_i for
g_i = a_i u_i dL_i:

    sum_i a_i u_i w_i L_i / ((M/N) sum_{i in N} a_i l_i)                           and with L_i / l_i and a_i likewise

w_i = M / (N pi_i) for a selector that draws with inclusion probabilities pi_i, which it has in proportion to
a_i u_i size_i. Rows that count nothing (u_i = 0) are not among the N where there are M others. Rows that are chosen in
parts (source groups; rows that are known and rows that are not) have the part's weights times `part_scale`; rows out of
a first phase that drew E of N have theirs times E / (N pi1_i) (Saerndal, Swensson and Wretman 1992, chapter 9). A
uniform selector claims its own rows alone: w_i = 1, and the denominator is their own tokens.

A selector's weights are at most (1 + floor) / floor, 11 by default. That does not bound what a row is trained with: two
phases multiply two such weights (121), and parts have `part_scale` besides, which is large where many rows share few
places: 100 of 128 rows that share one place of 16 have 12.5 times their weight (137).

Behind this file a loss is multiplied by what the engine and the Trainer divide by: the number of ranks, and perhaps of
micro-batches (`as_the_trainer_wants` in the trainer).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from corebatch.batch.claims import Claim
from corebatch.scoring import LossUnit


@dataclass(frozen=True, slots=True)
class LossWeights:
    """What the rows of a small batch are trained with.

    Attributes:
        rows: [M], what each chosen row's summed token loss is multiplied by; None: the plain loss is the right one.
        denominator: what the sum over all ranks is divided by; None: the Trainer's own count of what is trained.
    """

    rows: Tensor | None = None
    denominator: Tensor | None = None


def part_scale(large: int, small: int, of_part: int, chosen_of_part: int) -> float:
    """(M / N)(N_part / M_part): by what the weights of a part that was chosen by itself are multiplied, so that all
    parts together estimate the mean over N."""
    return (small * of_part) / (large * chosen_of_part)


def loss_weights(
    selected: Tensor,
    chosen: Tensor,
    tokens: Tensor,
    *,
    loss: LossUnit,
    weighted: bool,
    slots: int,
    groups: bool = False,
    claim: Claim | None = None,
) -> LossWeights:
    """The weights of one step.

    Args:
        selected: float32 [M], the selector's weights.
        chosen: LongTensor [M], which of the candidates were chosen.
        tokens: LongTensor [N], trained tokens of the candidates.
        loss: what is minimised.
        weighted: whether the selector's weights are more than ones.
        slots: places in the micro-batches of all ranks; with fewer rows some are left, for which a weight of 0 stands.
        groups: whether the plain loss is a mean over each micro-batch, so that it matters which rows meet.
        claim: of the candidates; None: every row counts by its tokens, or in a mean over examples equally.
    """
    tokens = tokens.to(selected.device)
    trained = tokens[chosen.to(selected.device)]
    large, small = len(tokens), len(chosen)
    each = 1 if loss == "token_mean" else trained.clamp(min=1)
    if claim is None or claim.factors is None:
        if loss == "example_mean":
            return LossWeights(selected / each, torch.tensor(float(small), device=selected.device))
        if weighted:
            return LossWeights(selected, tokens.sum().clamp(min=1).double().mul(small / large).to(torch.float32))
        if small >= slots and not groups:
            return LossWeights()
        return LossWeights(selected, trained.sum().clamp(min=1).float())
    chosen = chosen.to(claim.parts.device)
    whole = float(claim.parts.sum()) or 1.0
    divisor = whole * small / large if weighted else float(claim.parts[chosen].sum())  # or its own rows alone
    if claim.total is not None:
        divisor *= claim.total / whole
    factors = claim.factors[chosen].to(selected.device)
    return LossWeights(
        (selected.double() * factors / each).float(),
        torch.tensor(divisor or 1.0, dtype=torch.float32, device=selected.device),
    )

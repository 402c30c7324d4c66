"""Which tokens an example trains, and how often: features that need no forward."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from corebatch.model.rows import trained_tokens
from corebatch.options import check_count
from corebatch.scoring.base import LossUnit, Scorer, Scores
from corebatch.seeds import seeded
from corebatch.types import IGNORED


class LabelCounts(Scorer):
    """Features [N, width]: how often each token is a label, hashed to few columns with random signs.

    A token's loss pulls its logit up and all others down, so a part of what examples' gradients have in common follows
    from which labels they hold; docs/evidence/measurements.md has what a choice by them is worth. Counts add up as
    gradients do: a choice whose weighted counts meet the large batch's, step after step, trains each token as often as
    the large batch would. Feature hashing: Weinberger et al. 2009 (arXiv 0902.2206). Inclusion is in proportion to the
    square root of trained tokens, as with `tokens`; for a mean over examples counts are divided by the example's
    tokens, and sizes are equal.

    Args:
        width: columns.
    """

    name = "label_counts"
    needs_forward = False
    sized_by_tokens = True

    def __init__(self, *, width: int = 512) -> None:
        check_count("scorer_options.width", width, least=1)
        self.width = width

    def _run(self, model: nn.Module, batch: Mapping[str, Tensor], loss: LossUnit, seed: int) -> Scores:
        labels = batch["labels"][:, 1:].cpu()
        tokens = trained_tokens(batch["labels"])
        rows, columns = (labels != IGNORED).nonzero(as_tuple=True)
        words = labels[rows, columns]
        generator = seeded(seed, "label counts")
        # A hash of the token by random numbers of its own, whatever the size of the vocabulary.
        a, b, c, d = torch.randint(1, _PRIME, (4,), generator=generator).tolist()
        places = (a * words + b) % _PRIME % self.width
        signs = (((c * words + d) % _PRIME) >> 7) % 2 * 2 - 1
        counts = torch.zeros(len(labels), self.width)
        counts.index_put_((rows, places), signs.float(), accumulate=True)
        if loss == "example_mean":
            counts = counts / tokens.cpu().clamp(min=1)[:, None]
        return Scores(features=counts.to(batch["labels"].device), losses=None, tokens=tokens)


_PRIME = 2_147_483_647
"""2^31 - 1: products with a token's number stay within 63 bits."""

"""The recipe on one number an example reaches what the paper's algorithm reaches on all coordinates."""

from __future__ import annotations

import pytest
import torch
from literal_colm import LiteralColm, objective

from corebatch.scoring import Scores
from corebatch.trainer import CoresetConfig

N, M, P, H = 64, 32, 48, 16
RARE = (5, 3, 20, 5, 32, 0, 40, 7, 31, 5, 12, 5)
"""How many rows are of the small source, step by step: at times more than half of the budget, all of it, and more."""
NAMES = ("algebra", "geometry", "logic", "rare")
SMALL = {3}


@pytest.mark.parametrize("spread", ["normal", "heavy"])
@pytest.mark.parametrize("seed", range(4))
def test_the_factored_recipe_reaches_the_literal_objective(seed: int, spread: str) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    z = normal(P)
    literal = LiteralColm(P, H)
    step = CoresetConfig.colm().build()
    step.small_sources, step.source_names = frozenset(SMALL), NAMES
    for t in range(len(RARE)):
        p = 3.0 * normal(N) + 0.5
        if spread == "heavy":
            p = p * normal(N).exp()
        sources = torch.randint(0, 3, (N,), generator=generator)
        sources[torch.randperm(N, generator=generator)[: RARE[t]]] = 3
        gradients = p[:, None] * z
        space = literal.features(gradients, sources)  # before the choice, which updates the histories
        wanted = literal.choose(gradients, sources, M, SMALL)

        scores = Scores(features=p[:, None], losses=None, tokens=torch.ones(N, dtype=torch.long))
        choice = step.choose(scores, sources, M, step=t)
        found = choice.selection.indices.tolist()
        assert choice.selection.uniform
        assert len(found) == len(wanted) == M
        small = [row for row in range(N) if sources[row] == 3][:M]
        assert set(small) <= set(found) & set(wanted)
        for source in range(4):
            assert sum(int(sources[row]) == source for row in found) == sum(
                int(sources[row]) == source for row in wanted
            )
        best, reached = objective(space, wanted, SMALL), objective(space, found, SMALL)
        assert abs(reached - best) <= 1e-4 * best, f"step {t}"


def test_the_first_step_uses_raw_features() -> None:
    step = CoresetConfig.colm().build()
    assert step.normalise is not None
    features = torch.tensor([[1e-3], [-2.0], [5.0]])
    assert torch.equal(step.normalise(features), features)
    step.normalise.update(features)
    assert not torch.equal(step.normalise(features), features)

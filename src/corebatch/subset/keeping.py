"""From arrays as a caller has them to what is kept: every argument is checked here.

Shape suffixes: N rows, P feature columns, Q queries, V rows of the target.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from corebatch.errors import InputError
from corebatch.seeds import seeded
from corebatch.selectors.checks import check_column
from corebatch.sources import encode_sources
from corebatch.subset.base import Subset, SubsetMethod, SubsetProblem
from corebatch.subset.matrix import Matrix
from corebatch.subset.methods import make_subset

Values = Matrix | Tensor | NDArray[Any]


def keep_rows(
    count: int,
    keep: float,
    method: str | SubsetMethod,
    *,
    options: Mapping[str, Any] | None = None,
    features: Values | None = None,
    target: Values | None = None,
    scores: Tensor | None = None,
    losses: Values | None = None,
    texts: Sequence[str] | None = None,
    target_texts: Sequence[str] | None = None,
    sources: Tensor | Sequence[str | int] | None = None,
    tokens: Tensor | None = None,
    seed: int = 0,
) -> Subset:
    """Choose once which rows of a data set are kept, and with what weights.

    Args:
        count: N.
        keep: the share of rows that is kept, in (0, 1]; at least one row is.
        method: a name of `SUBSETS`, or an instance.
        options: of a name.
        features: [N, P]; `target` is [V, P] and `losses` [N, Q], all as `SubsetProblem` has them.
        scores: floating Tensor [N], a difficulty.
        texts: and `target_texts`, as `SubsetProblem` has them.
        sources: as `corebatch.select` takes them; None: one source.
        tokens: integer Tensor [N]; None: one each.
        seed: of all randomness.

    Raises:
        ConfigError: the method or an option is unknown or out of range.
        InputError: an argument is not as above, or one that the method needs is missing.
        NonFiniteError: NaN or inf; the row is named.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise InputError(f"`count` should be the number of rows, at least 1. Found {count!r}.")
    chosen = make_subset(method, options)
    ids, names = encode_sources(sources, count)
    whole, part = matrix("features", features, count), matrix("target", target)
    if whole is not None and part is not None and whole.width != part.width:
        raise InputError(f"`target` should have as many columns as `features`, {whole.width}. Found {part.width}.")
    check_texts("texts", texts, count)
    check_texts("target_texts", target_texts)
    return chosen.choose(
        SubsetProblem(
            count=count,
            budget=budget_of(keep, count),
            sources=ids,
            source_names=tuple(names),
            tokens=_tokens(tokens, count),
            scores=None if scores is None else check_column("scores", scores, count),
            texts=texts,
            target_texts=target_texts,
            generator=seeded(seed, "subset"),
            features=whole,
            target=part,
            losses=matrix("losses", losses, count),
        )
    )


def budget_of(keep: object, count: int) -> int:
    """How many of `count` rows a share is: the nearest whole number, and at least one. Raises InputError: no share."""
    if isinstance(keep, bool) or not isinstance(keep, int | float) or not 0 < keep <= 1:
        raise InputError(f"`keep` should be a share of the rows in (0, 1]. Found {keep!r}.")
    return max(1, round(keep * count))


def matrix(name: str, values: Values | None, count: int | None = None) -> Matrix | None:
    """A checked matrix, with `count` rows unless None."""
    if values is None:
        return None
    found = values if isinstance(values, Matrix) else Matrix(values, name)
    found.check(count)
    return found


def check_texts(name: str, texts: Sequence[str] | None, count: int | None = None) -> None:
    """Raises InputError unless these are `count` texts (None: one at least), or none are given."""
    if texts is None:
        return
    if isinstance(texts, str) or not len(texts) or (count is not None and len(texts) != count):
        wanted = "at least one text" if count is None else f"a text for each of the {count} rows"
        found = "one string" if isinstance(texts, str) else str(len(texts))
        raise InputError(f"`{name}` should be {wanted}. Found {found}.")


def _tokens(tokens: Tensor | None, count: int) -> Tensor:
    if tokens is None:
        return torch.ones(count, dtype=torch.long)
    if tokens.shape != (count,) or tokens.is_floating_point() or bool((tokens < 0).any()):
        raise InputError(
            f"`tokens` should be an integer tensor [{count}], not negative. "
            f"Found dtype {tokens.dtype}, shape {tuple(tokens.shape)}."
        )
    return tokens.detach().cpu().long()

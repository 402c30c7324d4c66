"""Error feedback: what choices were off by so far is made up for by the next ones.

    E <- rho (E + estimate - mean)        estimate = (1/M) sum_S w_i f_i,   mean = (1/N) sum_N f_i

A selector that follows minimises |estimate - mean + E|^2 in place of |estimate - mean|^2. Then the sum of the errors of
T steps is bounded, where that of independent choices grows with sqrt(T) and that of biased ones with T: training, which
moves along such sums, takes the large batch's path. The idea is that of herding (Welling 2009) and of sigma-delta
modulation; for the order of examples within an epoch GraB (arXiv 2205.10733) and CD-GraB (2302.00845) use it.

Features say little of what an example's own gradient is, so that errors of the gradient which they do not see still add
up, and a row that others stand for in feature space may never come. So there is a column for each example as well,
which carries how much less it was trained than it counts: E_i <- rho (E_i + w_i 1[i in S] / M - 1 / N) whenever i is in
the large batch. Over several passes every example is then trained as much as it counts, whatever the features are, as
it is where all rows are trained in turn; in the first pass nothing is carried for it.

Shape suffixes: N rows of the large batch, M of the small, P feature columns, W columns of what is carried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from corebatch.errors import CheckpointError, ConfigError
from corebatch.memory import WIDTH, narrowed
from corebatch.options import is_number
from corebatch.types import Selection

_DRIFT = 0.2  # weight of the newest pool in the running levels
RHO = 0.99
"""The share of past errors that the default makes up for."""
EXAMPLES = 1.0
_SOURCES = 128  # columns for sources; of more, some share one


def make_feedback(value: object, seed: int) -> ErrorFeedback | None:
    """From the key `coreset.feedback`: None, rho, or a mapping of `rho` and `examples` (see `ErrorFeedback`).

    Raises:
        ConfigError: another form, an unknown key, or a number out of range.
    """
    if value is None:
        return None
    options = dict(value) if isinstance(value, Mapping) else {"rho": value}
    unknown = [key for key in options if key not in ("rho", "examples")]
    if unknown:
        raise ConfigError(f"coreset.feedback should have the keys rho and examples. Found {unknown[0]!r}.")
    rho, examples = options.get("rho", RHO), options.get("examples", EXAMPLES)
    if not is_number(rho) or not 0 <= rho < 1:
        raise ConfigError(f"coreset.feedback should be none or a number of at least 0 and below 1. Found {rho!r}.")
    if not is_number(examples) or not 0 <= examples < math.inf:
        raise ConfigError(f"coreset.feedback.examples should be a number of at least 0. Found {examples!r}.")
    return ErrorFeedback(float(rho), seed, examples=float(examples))


class ErrorFeedback:
    """The sum of past errors, in a space of few columns.

    Beside the features there are a column for each source with the trained tokens of its rows (in a mean over examples
    a one), and a constant: so that every source keeps its weight over steps, and all weights together average 1. Each
    of the three counts as much as the features do.

    Errors of features are kept relative to their running mean norm: gradients drift together while a model trains, and
    under an optimizer that divides by their size an old error counts relative to the gradients of its time.

    Args:
        rho: the share of E that is left after a step, in [0, 1).
        seed: of the sketch that makes features narrow: the memory's, so that exact and remembered features meet.
        width: of the features that are carried, at most.
        examples: what a one in an example's own column counts as, in mean norms of a row's features; 0: no such
            columns.

    Attributes:
        examples: the same; 0 as well where no example comes twice, as in a stream.
    """

    def __init__(self, rho: float, seed: int, width: int = WIDTH, examples: float = EXAMPLES) -> None:
        self.rho, self.seed, self.width, self.examples = rho, seed, width, examples
        self._error: Tensor | None = None
        self._levels: tuple[float, float] | None = None
        self._columns = torch.zeros(0, 0, dtype=torch.float64)
        self._ids: Tensor | None = None
        self._owed = torch.zeros(0)  # by number: -N E_i, in whole weights of an example

    @property
    def size(self) -> float:
        """|E|, in mean norms of a row's features."""
        return 0.0 if self._error is None else float((self._error * self._units).norm())

    def look(
        self, features: Tensor, sources: Tensor, extents: Tensor, share: float = 1.0, ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Takes a step's features in.

        Args:
            features: [N, P].
            sources: LongTensor [N].
            extents: LongTensor [N], trained tokens, or ones in a mean over examples.
            share: of the large batch's rows that these are: by one over it their mean has to make up for more.
            ids: LongTensor [N], the examples' numbers in the data set; None: nothing is carried for each.

        Returns:
            The features with columns for sources, [N, P + S], and float64 [N] on the CPU: the rows' inner products, the
            constant included, with what is carried.

        Raises:
            CheckpointError: features are of another width than those before a resume.
        """
        narrow = features if features.shape[1] <= self.width else narrowed(features, self.width, self.seed)
        narrow = narrow.double().cpu()
        extents = extents.double().cpu()
        self._drift(float(narrow.norm(dim=1).mean()), float(extents.mean()))
        by_source = torch.nn.functional.one_hot(sources.cpu() % _SOURCES, _SOURCES) * extents[:, None]
        self._columns = torch.cat([narrow / self._level, by_source, torch.ones(len(narrow), 1)], dim=1)
        units, present = self._units, by_source.any(dim=0)
        more = (by_source[:, present] * units[-2]).to(features)
        if self._error is None:
            carried = torch.zeros(len(narrow), dtype=torch.float64)
        elif len(self._error) == self._columns.shape[1]:
            carried = self._columns @ (self._error * units.square()) / share
        else:
            raise CheckpointError(
                f"coreset.feedback carries errors of features with {len(self._error) - _SOURCES - 1} columns. "
                f"Found features with {narrow.shape[1]}: the scorer or the model is another one."
            )
        self._ids = ids.cpu() if ids is not None and self.examples else None
        if self._ids is not None:
            self._grow(int(self._ids.max()) + 1 if len(self._ids) else 0)
            carried = carried - (self.examples * self._level) ** 2 / len(narrow) * self._owed[self._ids].double()
        return torch.cat([features, more], dim=1), carried

    def update(self, selection: Selection, share: float = 1.0) -> None:
        """Carries what the choice out of the rows just looked at is off by.

        Args:
            share: as `look` was told.
        """
        weights, rows, columns = selection.weights.double().cpu(), selection.indices.cpu(), self._columns
        if not len(rows):
            return
        off = share * ((weights @ columns[rows]) / len(rows) - columns.mean(dim=0))
        self._error = self.rho * (off if self._error is None else self._error + off)
        if self._ids is not None:
            trained = torch.zeros(len(columns), dtype=torch.float64)
            trained[rows] = weights * len(columns) / len(rows)
            seen = self._ids.unique()
            self._owed[seen] = self.rho * self._owed.index_add(0, self._ids, (1 - trained).float())[seen]

    def _grow(self, count: int) -> None:
        """Examples that were not seen before are owed nothing."""
        more = count - len(self._owed)
        if more > 0:
            self._owed = torch.cat([self._owed, torch.zeros(max(more, len(self._owed)))])

    def _drift(self, norm: float, extent: float) -> None:
        """Running means of the rows' norms and extents."""
        if norm > 0 and extent > 0:
            now = math.log(norm), math.log(extent)
            before = self._levels or now
            drifted = [(1 - _DRIFT) * old + _DRIFT * new for old, new in zip(before, now, strict=True)]
            self._levels = drifted[0], drifted[1]

    @property
    def _level(self) -> float:
        return math.exp(self._levels[0]) if self._levels else 1.0

    @property
    def _units(self) -> Tensor:
        """What a one in each column counts as, in features: for features, which are kept relative, and for the constant
        the mean norm; for sources that over the mean extent."""
        units = torch.full((self._columns.shape[1],), self._level, dtype=torch.float64)
        units[-_SOURCES - 1 : -1] /= math.exp(self._levels[1]) if self._levels else 1.0
        return units

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        if self._error is None or self._levels is None:
            return {}
        found = {"error": self._error.clone(), "levels": torch.tensor(self._levels, dtype=torch.float64)}
        return {**found, "owed": self._owed.clone()} if self.examples else found

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """From a checkpoint."""
        self._error = state["error"].double().clone() if "error" in state else None
        norm, extent = state["levels"].tolist() if "levels" in state else (0.0, 0.0)
        self._levels = (norm, extent) if "levels" in state else None
        self._owed = state["owed"].float().clone() if "owed" in state else torch.zeros(0)

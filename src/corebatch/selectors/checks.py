"""What every selector asks of its arguments, checked once and in one place.

Shape suffixes: N rows of the large batch, P feature columns, V validation rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from corebatch.errors import ConfigError, InputError, NonFiniteError
from corebatch.types import SourceGroup

_ROWS_NAMED = 5  # how many bad rows an error names


def check_choice(option: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ConfigError unless `value` is one of the `allowed` names."""
    if value not in allowed:
        raise ConfigError(f"Option `{option}` should be one of {', '.join(allowed)}. Found {value!r}.")


def check_flag(option: str, value: object) -> None:
    """Raise ConfigError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"Option `{option}` should be true or false. Found {value!r}.")


def check_number(option: str, value: object, *, low: float, high: float = math.inf, whole: bool = False) -> None:
    """Raise ConfigError unless `value` is a finite number (an int, if `whole`) in [low, high]."""
    kind = "an integer" if whole else "a number"
    good = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not good or not low <= value <= high or value == math.inf:  # type: ignore[operator]
        reach = f"of at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ConfigError(f"Option `{option}` should be {kind} {reach}. Found {value!r}.")


def check_matrix(name: str, value: object, shape: str) -> Tensor:
    """Return `value` if it is a dense floating 2-D tensor with at least one row and one column.

    Raises:
        InputError: it is not; `shape` says in the message what was expected, "[N, P]".
    """
    if not isinstance(value, Tensor):
        raise InputError(f"`{name}` should be a floating tensor {shape}. Found {type(value).__name__}.")
    if value.ndim != 2 or not value.is_floating_point() or value.layout != torch.strided:
        raise InputError(
            f"`{name}` should be a dense floating tensor {shape}. "
            f"Found dtype {value.dtype}, layout {value.layout}, shape {tuple(value.shape)}."
        )
    if value.shape[0] == 0 or value.shape[1] == 0:
        raise InputError(
            f"`{name}` should be {shape} with at least one row and column. Found shape {tuple(value.shape)}."
        )
    return value


def check_budget(budget: object, count: int) -> int:
    """Return `budget` if it is a Python int between 0 and `count`, else raise InputError."""
    if not isinstance(budget, int) or isinstance(budget, bool) or not 0 <= budget <= count:
        raise InputError(
            f"`budget` should be an integer between 0 and the {count} rows of `features`. Found {budget!r}."
        )
    return budget


def in_float64(name: str, matrix: Tensor) -> tuple[Tensor, int]:
    """Return the rows in float64, divided by a power of two so that the largest entry is between 0.5 and 1, and the
    power.

    Dividing by a power of two rounds nothing, so choices do not depend on the scale of the features, and
    squares neither overflow nor vanish. The result is never the caller's own memory.

    Raises:
        NonFiniteError: a row has NaN or inf; the message names the first few.
    """
    # MPS has no float64; everything else stays where it is, so that large products run there.
    device = torch.device("cpu") if matrix.device.type == "mps" else matrix.device
    rows = matrix.detach().to(device=device, dtype=torch.float64, copy=True)
    # Two numbers for all rows: NaN goes through `aminmax`, and rows are looked at one by one only to name them.
    lowest, highest = (float(value) for value in torch.aminmax(rows))
    if not (math.isfinite(lowest) and math.isfinite(highest)):
        check_finite(name, torch.isfinite(rows).all(dim=1))
    # Beyond 2^1000 the factor itself would overflow.
    exponent = max(-1000, min(1000, math.frexp(max(-lowest, highest))[1]))
    return rows.mul_(math.ldexp(1.0, -exponent)), exponent


def check_column(name: str, column: object, count: int) -> Tensor:
    """Return `column` as float64 [N] on the CPU; InputError or NonFiniteError when it is not that."""
    if not isinstance(column, Tensor):
        raise InputError(f"`{name}` should be a floating tensor [N]. Found {type(column).__name__}.")
    if column.shape != (count,) or not column.is_floating_point():
        raise InputError(
            f"`{name}` should be a floating tensor [N] with N = {count}. "
            f"Found dtype {column.dtype}, shape {tuple(column.shape)}."
        )
    result = column.detach().to("cpu", torch.float64)
    check_finite(name, torch.isfinite(result))
    return result


def check_finite(name: str, finite_N: Tensor) -> None:
    bad = torch.nonzero(~finite_N).flatten().tolist()
    if bad:
        more = f" and {len(bad) - _ROWS_NAMED} more" if len(bad) > _ROWS_NAMED else ""
        rows = ", ".join(str(row) for row in bad[:_ROWS_NAMED])
        raise NonFiniteError(f"`{name}` should be finite. Found NaN or inf in rows {rows}{more}.")


def check_groups(groups: Iterable[SourceGroup], count: int, budget: int) -> list[SourceGroup]:
    """Return the groups as a list if they partition the rows and their budgets sum to `budget`.

    Raises:
        InputError: a row is missing, in two groups or out of range, or the budgets have another sum.
    """
    listed = list(groups)
    for group in listed:
        if not isinstance(group, SourceGroup):
            raise InputError(f"`groups` should hold SourceGroup records. Found {type(group).__name__}.")
    rows = torch.cat([group.members.cpu() for group in listed]) if listed else torch.zeros(0, dtype=torch.long)
    outside = rows[(rows < 0) | (rows >= count)]
    if len(outside):
        raise InputError(
            f"Members of `groups` should be rows of `features`, 0 to {count - 1}. Found {int(outside[0])}."
        )
    times_N = torch.bincount(rows, minlength=count)
    wrong = torch.nonzero(times_N != 1).flatten()
    if len(wrong):
        raise InputError(
            f"`groups` should hold every row of `features` exactly once. "
            f"Found row {int(wrong[0])} {int(times_N[wrong[0]])} times."
        )
    total = sum(group.budget for group in listed)
    if total != budget:
        raise InputError(f"The budgets of `groups` should sum to the budget, {budget}. Found {total}.")
    return listed

"""How the rows of a step are cut into micro-batches: the setting.

A step's update is a sum over its rows, so it does not matter which rows meet in a micro-batch; what they are padded
to does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from corebatch.errors import ConfigError
from corebatch.options import check_count, hint

WAYS = ("plain", "length", "positions", "flops")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How rows are cut into micro-batches.

    Attributes:
        by: "plain": in the order in which the loader gave them, equal numbers of rows. "length": sorted by length,
            equal numbers of rows. "positions": sorted by length, about equal padded positions, none above the largest
            plain micro-batch's. "flops": as "positions", with FLOPs in their place, which grow with the square of long
            rows' lengths.
        most: padded positions of a micro-batch, at most; None: those of the largest plain one. Where rows do not fit,
            each micro-batch is trained in parts.
        multiple: widths are rounded up to a multiple of this, so that a compiled model meets few shapes.
    """

    by: str
    most: int | None = None
    multiple: int = 1

    def __post_init__(self) -> None:
        if self.by not in WAYS:
            raise ConfigError(
                f"coreset.micro_batches.by should be one of {', '.join(WAYS)}. Found {self.by!r}.{hint(self.by, WAYS)}"
            )
        if self.most is not None:
            check_count("coreset.micro_batches.most", self.most, more=" positions, or none")
        check_count("coreset.micro_batches.multiple", self.multiple)
        if self.most is not None and self.by in ("plain", "length"):
            raise ConfigError(
                f"coreset.micro_batches.most is a cap for a cut by positions or flops. Found it beside {self.by!r}."
            )

    @property
    def regroups(self) -> bool:
        """Whether micro-batches are other than the loader's, where every row is trained."""
        return self != Cut(by="plain")

    def plain(self) -> str | dict[str, Any]:
        """As a config file has it, in its shortest form: the name, or a mapping where an option is set."""
        options = {key: getattr(self, key) for key in ("most", "multiple") if getattr(self, key) not in (None, 1)}
        return {"by": self.by, **options} if options else self.by


def make_cut(what: str | Mapping[str, Any] | Cut, *, pool_factor: int) -> Cut:
    """The setting `coreset.micro_batches`: a name, "auto", a mapping of `by` and options, or a Cut.

    "auto" is "positions" where there is a pool, and "plain" where there is none.

    Raises:
        ConfigError: an unknown name or key, or a value out of range.
    """
    if isinstance(what, Cut):
        return what
    if isinstance(what, Mapping):
        keys = [field.name for field in dataclasses.fields(Cut)]
        for key in what:
            if key not in keys:
                raise ConfigError(
                    f"coreset.micro_batches has the keys {', '.join(keys)}. Found {key!r}.{hint(str(key), keys)}"
                )
        values = {"by": "positions", **what}
        if values.get("most") == "none":
            values["most"] = None
    elif isinstance(what, str):
        values = {"by": what}
    else:
        raise ConfigError(
            f"coreset.micro_batches should be auto, one of {', '.join(WAYS)}, or a mapping of `by` and options. "
            f"Found {what!r}."
        )
    if values["by"] == "auto":
        values["by"] = "positions" if pool_factor > 1 else "plain"
    if not isinstance(values["by"], str) or values["by"] not in WAYS:
        raise ConfigError(
            f"coreset.micro_batches should be one of auto, {', '.join(WAYS)}. Found {values['by']!r}."
            f"{hint(str(values['by']), ('auto', *WAYS))}"
        )
    return Cut(**values)

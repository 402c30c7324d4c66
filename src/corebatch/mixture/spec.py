"""One entry of the `datasets:` list: where the rows are, what they are called, how often they count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from corebatch.errors import ConfigError
from corebatch.options import check_count, is_number, near

_SHARES = {"share": "drawn", "replay": "trained"}
"""Keys with a share of the source's rows, and of which rows."""


@dataclass(frozen=True, slots=True)
class DatasetSpec:
    """One data set of a mixture.

    Attributes:
        path: a file of JSON lines, JSON, CSV or Parquet, a folder of such files, a folder written by `save_to_disk`, a
            pattern (`*`, `?`, `[ab]`, `**`), a list of these, or a hub id.
        name: the configuration, as in `datasets.load_dataset(path, name)`; None: the only or default one.
        split: "train", "test[:100]", "train+validation", ...; None: "train".
        source: the source label of every row; wins over the rows' own column. None: the rows' own column,
            and without one the file's or data set's name.
        weight: how often the usable rows are in the data, above 0: 2 repeats them, 0.5 draws half, 1.5 does both.
        repeat: `weight` as a whole number; beside no weight.
        share: of the rows that training draws, in (0, 1], which its source has whatever its rows are in the data:
            `coreset.sampling.shares` of the source, which it has to name. In a config file alone.
        replay: of the rows that each step trains, in (0, 1), likewise: `coreset.replay` of the source.
        columns: our name of a column -> the file's, as in {"prompt": "question", "completion": "answer"}.
        ignore_columns: columns, and keys of turns, that have a meaning and are left out on purpose.
    """

    path: str | Sequence[str]
    name: str | None = None
    split: str | None = None
    source: str | None = None
    weight: float = 1.0
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)
    ignore_columns: tuple[str, ...] = ()
    repeat: int | None = None
    share: float | None = None
    replay: float | None = None

    def __post_init__(self) -> None:
        if not self.paths or not all(isinstance(path, str) and path.strip() for path in self.paths):
            raise ConfigError(f"datasets: `path` should be a non-empty string, or a list of them. Found {self.path!r}.")
        if not isinstance(self.path, str):
            object.__setattr__(self, "path", self.paths)  # hashable, and equal however it was written
        for key in ("name", "split", "source"):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise ConfigError(
                    f"datasets: `{key}` of {self.path!r} should be a non-empty string or absent. Found {value!r}."
                )
        self._check_amounts()
        self._check_columns()

    def _check_amounts(self) -> None:
        weight = self.weight
        if not is_number(weight) or weight <= 0:
            raise ConfigError(f"datasets: `weight` of {self.path!r} should be a number above 0. Found {weight!r}.")
        if self.repeat is not None:
            check_count(f"datasets: `repeat` of {self.path!r}", self.repeat)
            if weight != 1:
                raise ConfigError(
                    f"datasets: `repeat` of {self.path!r} is a `weight` that is a whole number: give one of them. "
                    f"Found repeat {self.repeat} and weight {weight:g}."
                )
        for key, of in _SHARES.items():
            share = getattr(self, key)
            if share is None:
                continue
            if not is_number(share) or not 0 < share <= 1:
                raise ConfigError(
                    f"datasets: `{key}` of {self.path!r} should be a share of the rows that are {of}, above 0 and at "
                    f"most 1. Found {share!r}."
                )
            if self.source is None:
                raise ConfigError(
                    f"datasets: `{key}` of {self.path!r} is that of its source, so the entry should name one: give "
                    "`source`. Found none."
                )

    def _check_columns(self) -> None:
        columns, ignored = self.columns, self.ignore_columns
        if not isinstance(columns, Mapping) or not all(isinstance(x, str) for pair in columns.items() for x in pair):
            raise ConfigError(
                f"datasets: `columns` of {self.path!r} should map our names to the file's, as in "
                f"{{prompt: question, completion: answer}}. Found {columns!r}."
            )
        if len(set(columns.values())) < len(columns):
            raise ConfigError(
                f"datasets: `columns` of {self.path!r} should take each column of the file once. Found {dict(columns)}."
            )
        if not isinstance(ignored, list | tuple) or not all(isinstance(name, str) for name in ignored):
            raise ConfigError(
                f"datasets: `ignore_columns` of {self.path!r} should be a list of names. Found {ignored!r}."
            )
        both = sorted(set(ignored) & set(columns.values()))
        if both:
            raise ConfigError(f"datasets: {both[0]!r} of {self.path!r} stands in `columns` and in `ignore_columns`.")
        object.__setattr__(self, "ignore_columns", tuple(ignored))

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple; empty where it is neither a string nor a list."""
        if isinstance(self.path, str):
            return (self.path,)
        return tuple(self.path) if isinstance(self.path, list | tuple) else ()

    @property
    def times(self) -> float:
        """How often the usable rows are in the data."""
        return self.weight if self.repeat is None else float(self.repeat)

    @property
    def label(self) -> str:
        """What messages call the data set."""
        first, *more = self.paths
        return f"{first} and {len(more)} more" if more else first


SPEC_KEYS = tuple(each.name for each in fields(DatasetSpec))


def parse_spec(entry: DatasetSpec | Mapping[str, Any] | str, where: str = "datasets") -> DatasetSpec:
    """A spec from one entry of a configuration: a spec itself, a mapping of its fields, or a path alone. Raises
    ConfigError: an unknown key (named, with the known ones and a close match), no `path`, or a bad value."""
    if isinstance(entry, DatasetSpec):
        return entry
    if isinstance(entry, str):
        return DatasetSpec(entry)
    if not isinstance(entry, Mapping):
        raise ConfigError(
            f"{where} should be a mapping with the keys {', '.join(SPEC_KEYS)}, or a path. Found {entry!r}."
        )
    for key in entry:
        if key not in SPEC_KEYS:
            raise ConfigError(
                f"{where}: unknown key {key!r}{near(str(key), SPEC_KEYS)}. Known keys: {', '.join(SPEC_KEYS)}."
            )
    if "path" not in entry:
        raise ConfigError(f"{where}: the key 'path' is missing. Found {', '.join(map(repr, entry)) or 'none'}.")
    return DatasetSpec(**entry)


def parse_specs(entries: Sequence[DatasetSpec | Mapping[str, Any] | str], where: str = "datasets") -> list[DatasetSpec]:
    """All entries of `datasets:`, in order; messages name the entry, as in `datasets[1]`. `where`: what the list is
    called in messages. Raises ConfigError: not a list, an empty list, or an entry that `parse_spec` refuses."""
    if isinstance(entries, str | Mapping) or not isinstance(entries, Sequence):
        raise ConfigError(f"`{where}` should be a list of entries. Found {entries!r}.")
    if not entries:
        raise ConfigError(f"`{where}` should have at least one entry. Found an empty list.")
    return [parse_spec(entry, f"{where}[{i}]") for i, entry in enumerate(entries)]


def take_shares(
    specs: Sequence[DatasetSpec], where: str = "datasets", key: str = "share"
) -> tuple[tuple[DatasetSpec, ...], dict[str, float]]:
    """The specs without their shares, and these by source. `key`: "share" or "replay".

    Raises:
        ConfigError: another entry names the source of one with a share.
    """
    shares: dict[str, float] = {}
    for spec in specs:
        if (share := getattr(spec, key)) is not None and spec.source is not None:
            if sum(other.source == spec.source for other in specs) > 1:
                raise ConfigError(
                    f"{where}: `{key}` of {spec.path!r} is that of the source {spec.source!r}. Found another entry of "
                    f"this source: give coreset.{'sampling.shares' if key == 'share' else key}, or each entry a source "
                    "of its own."
                )
            shares[spec.source] = float(share)
    return tuple(replace(spec, **{key: None}) for spec in specs), shares  # type: ignore[arg-type]  # both may be none


def check_no_shares(specs: Sequence[DatasetSpec]) -> None:
    """Raises ConfigError for a share where nobody draws or trains rows by it."""
    for key, setting in (("share", "sampling={'shares': {source: share}}"), ("replay", "replay={source: share}")):
        if named := [spec.label for spec in specs if getattr(spec, key) is not None]:
            raise ConfigError(
                f"datasets: `{key}` says how often training {'draws' if key == 'share' else 'trains'} the rows of a "
                f"source. Found it in {', '.join(named)}, where rows are only read: give CoresetConfig({setting})."
            )

"""The demo's data: an imbalanced mixture of reasoning-gym sources, and held-out items of the same sources."""

import json
import random
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.demo.settings import DEMO_SOURCES, PROMPT_FORMAT, DemoSource
from corebatch.errors import ConfigError, DataError
from corebatch.evaluation import Item, draw_items
from corebatch.files import write_text

_DRAWS_PER_ITEM = 20  # a generator repeats questions; it is asked at most so many times for each wanted one


@dataclass(frozen=True, kw_only=True)
class MixtureFiles:
    """What `make_mixture` wrote: two JSONL files, and the examples by source in the training file."""

    train: Path
    heldout: Path
    train_counts: Mapping[str, int]
    heldout_per_source: int

    @property
    def small_sources(self) -> list[str]:
        """Sources with a share below 1 / (number of sources)."""
        fair = sum(self.train_counts.values()) / len(self.train_counts)
        return [name for name, count in self.train_counts.items() if count < fair]


def make_mixture(
    out_dir: str | PathLike[str],
    *,
    seed: int = 0,
    sources: Sequence[DemoSource] = DEMO_SOURCES,
    heldout_per_source: int = 20,
    prompt_format: str = PROMPT_FORMAT,
) -> MixtureFiles:
    """Writes `train.jsonl` (shuffled) and `heldout.jsonl` (by source) into `out_dir`.

    Training rows hold `prompt`, `completion`, `answer`, `source`; held-out rows also `metadata` (JSON in a string),
    from which `ReasoningGymTask.from_jsonl` checks answers. No prompt occurs twice, neither within nor across the
    files. The same arguments and the same version of reasoning-gym give the same bytes; existing files are replaced.
    Raises ConfigError: reasoning-gym is missing, a source is unknown or named twice, or a count is below 1; DataError:
    a source has too few different questions.
    """
    names = [source.generator for source in sources]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"`sources` should be different generators, at least one. Found {names}.")
    if heldout_per_source < 1:
        raise ConfigError(f"`heldout_per_source` should be at least 1. Found {heldout_per_source}.")
    train: list[Item] = []
    heldout: list[Item] = []
    for source in sources:
        items = _draw(source, heldout_per_source + source.examples, prompt_format, seed)
        heldout += items[:heldout_per_source]
        train += items[heldout_per_source:]
    random.Random(seed).shuffle(train)
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "train.jsonl", _lines(map(_training_row, train)))
    write_text(folder / "heldout.jsonl", _lines(map(_heldout_row, heldout)))
    return MixtureFiles(
        train=folder / "train.jsonl",
        heldout=folder / "heldout.jsonl",
        train_counts={source.generator: source.examples for source in sources},
        heldout_per_source=heldout_per_source,
    )


def _draw(source: DemoSource, wanted: int, prompt_format: str, seed: int) -> list[Item]:
    # The generators seed item n with seed + n: neighbouring seeds would share items, so they are spread by a checksum.
    own_seed = zlib.crc32(f"{seed}/{source.generator}".encode()) % 2**31
    size = wanted * _DRAWS_PER_ITEM
    drawn = draw_items(source.generator, source.options, prompt_format=prompt_format, seed=own_seed, size=size)
    items = list(islice(drawn, wanted))
    if len(items) < wanted:
        raise DataError(
            f"The source {source.generator!r} should have {wanted} different questions. "
            f"Found {len(items)} in {size} draws."
        )
    return items


def _training_row(item: Item) -> dict[str, Any]:
    return {"prompt": item.prompt, "completion": " " + item.answer, "answer": item.answer, "source": item.source}


def _heldout_row(item: Item) -> dict[str, Any]:
    return {**_training_row(item), "metadata": json.dumps(dict(item.metadata), ensure_ascii=False)}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)

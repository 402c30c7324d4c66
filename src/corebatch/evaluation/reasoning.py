"""Items of reasoning-gym's generators, checked by the generators' own verifiers."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from corebatch.errors import ConfigError, DataError
from corebatch.evaluation.tasks import GenerationTask, Item, read_items

FULL_SCORE = 1.0
"""Verifiers give partial credit between 0 and 1; an answer counts as correct at the full score alone."""

_NAN = re.compile(r"(?<![a-z])nan(?![a-z])", re.IGNORECASE)


def create_generator(name: str, options: Mapping[str, Any], *, seed: int, size: int) -> Any:
    """reasoning-gym's dataset `name` with `size` entries. Raises ConfigError: reasoning-gym is not installed, or knows
    neither the generator nor its options."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise ConfigError("This needs reasoning-gym: pip install 'corebatch[demo]'.") from error
    try:
        return reasoning_gym.create_dataset(name, seed=seed, size=size, **options)
    except (ValueError, TypeError, AssertionError) as error:
        raise ConfigError(f"reasoning-gym has no generator {name!r} with options {dict(options)}: {error}") from error


def draw_items(name: str, options: Mapping[str, Any], *, prompt_format: str, seed: int, size: int) -> Iterator[Item]:
    """Up to `size` items of one generator, in its order; `prompt_format` holds `{question}`.

    Entries without an answer and repeated questions are left out. The source is the generator's name. An item's
    metadata is plain JSON and enough to check its answer later.
    """
    seen: set[str] = set()
    for entry in create_generator(name, options, seed=seed, size=size):
        question, answer = entry["question"].strip(), entry["answer"]
        if answer is None or not str(answer).strip() or question in seen:
            continue
        seen.add(question)
        plain = json.loads(json.dumps(entry, default=str))
        yield Item(
            prompt=prompt_format.format(question=question),
            source=name,
            answer=str(answer).strip(),
            metadata={"generator": name, "options": dict(options), "entry": plain},
        )


class ReasoningGymTask(GenerationTask):
    """Held-out items of one or more generators. Correct: the generator's `score_answer` gives exactly 1.0.

    A text with the number NaN is wrong whatever the verifier says, as `min(1.0, nan)` is 1.0 in one of them.
    """

    def __init__(self, items: Iterable[Item], *, name: str = "reasoning_gym") -> None:
        """Takes items whose metadata holds `generator`, `options` and `entry`, as `draw_items` makes them. Raises
        DataError: no item, missing metadata, or an item whose own answer does not get the full score; ConfigError: see
        `create_generator`."""
        self.name = name
        self._items = tuple(items)
        self._verifiers: dict[str, Any] = {}
        if not self._items:
            raise DataError("A task should have at least one item. Found none.")
        for number, item in enumerate(self._items, 1):
            missing = {"generator", "options", "entry"} - item.metadata.keys()
            if missing:
                raise DataError(
                    f"Item {number} should have the metadata {sorted(missing)}. Found {list(item.metadata)}."
                )
            if not self.is_correct(item, item.answer):
                raise DataError(
                    f"Item {number} ({item.source}): its own answer should get the full score. Found {item.answer!r}."
                )

    @classmethod
    def from_jsonl(cls, path: str | PathLike[str], *, name: str | None = None) -> "ReasoningGymTask":
        """Reads items that `corebatch.demo.make_mixture` wrote (its held-out file)."""
        return cls(read_items(path), name=name or Path(path).stem)

    def items(self) -> Sequence[Item]:
        return self._items

    def is_correct(self, item: Item, text: str) -> bool:
        verifier = self._verifier(item)
        if _NAN.search(text) and not _NAN.search(item.answer):
            return False
        try:
            score = verifier.score_answer(text.strip(), item.metadata["entry"])
        except Exception:  # a third-party parser met a text that it cannot read: wrong, whatever it raised
            return False
        return bool(score == FULL_SCORE)

    def _verifier(self, item: Item) -> Any:
        key = json.dumps([item.metadata["generator"], item.metadata["options"]], sort_keys=True, default=str)
        if key not in self._verifiers:
            generator, options = item.metadata["generator"], item.metadata["options"]
            self._verifiers[key] = create_generator(generator, options, seed=0, size=1)
        return self._verifiers[key]

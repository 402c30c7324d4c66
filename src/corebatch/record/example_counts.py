"""Which examples were chosen most and least often, counted from `chosen.jsonl` when training ends; `examples.json`.

An example that was drawn at the steps t is expected to be chosen sum_t M_t / N_t times if rows are chosen at random,
with variance sum_t (M_t / N_t)(1 - M_t / N_t). The lists go by the number of standard deviations from that: the same
order as the rate of choice where examples were drawn equally often, and fair where they were not. Where no example was
drawn twice that says nothing; then they go by the weight of the chosen, which is the inverse of the probability with
which the selector chose.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from corebatch.files import read_objects, replacing, write_json
from corebatch.record.example_turns import shortened, turns_of
from corebatch.sampling.tags import is_stream
from corebatch.types import SOURCE

logger = logging.getLogger(__name__)

ROWS, EXAMPLES, SOURCES = "chosen.jsonl", "examples.json", "sources.npy"
SHOWN = 10
"""Examples in each of the two lists."""


def write_examples(folder: Path, trainer: Any) -> None:
    """Writes `examples.json` from `chosen.jsonl`. Nothing for a stream, whose rows have no identity from pass to pass,
    and nothing where every row is trained.

    It comes after training, so what goes wrong is a warning and no error. `trainer`: has the train set, and a tokenizer
    or processor that decodes `input_ids`, or none.
    """
    dataset = getattr(trainer, "train_dataset", None)
    if is_stream(dataset) or not (folder / ROWS).exists() or trainer.coreset.pool_factor == 1:
        return
    try:
        found = count_examples(folder / ROWS)
        tagged, sources = trainer._tagged.of(dataset, trainer.coreset, first=False)
        for entry in (*found["most"], *found["least"]):
            row = tagged[entry["id"]]
            plain = isinstance(row, Mapping)
            entry["source"] = sources.names[int(row[SOURCE] if plain else row.source)]
            tokenizer = getattr(trainer, "processing_class", None)
            entry["text"] = text_of(row, tokenizer) if plain else None
            entry["turns"] = turns_of(row, tokenizer) if plain else None
        found["examples_in_data"] = len(tagged)
        write_json(folder / EXAMPLES, found)
    except Exception as error:  # of the user's data set and tokenizer too
        logger.warning("%s was not written: %s: %s", folder / EXAMPLES, type(error).__name__, error)


def write_sources(folder: Path, dataset: Any, count: int) -> None:
    """Writes `sources.npy`: the source of each example, by its place among the names in `corebatch.json`. No file for a
    stream.

    Args:
        dataset: with ids and sources.
        count: how many sources there are.
    """
    path = folder / SOURCES
    if is_stream(dataset):
        path.unlink(missing_ok=True)
        return
    ids = getattr(dataset, "source_ids", None)
    if ids is None:
        ids = dataset.with_format("numpy", columns=[SOURCE])[:][SOURCE]
    with replacing(path) as part, part.open("wb") as file:
        np.save(file, np.asarray(ids).astype(np.min_scalar_type(max(count - 1, 0))))


def count_examples(path: Path, shown: int = SHOWN) -> dict[str, Any]:
    """What `examples.json` says, without sources and texts.

    Returns:
        last_step, steps: of the lines that were counted. examples_drawn: how many different ones. draws: the least
        and the most that one of them was drawn. never_chosen, and by chance: how many of them a random choice would
        be expected to leave out. ranked_by: "rate", "weight", or None where there is nothing to rank by. most, least:
        entries with id, drawn, chosen, expected (by a random choice) and weight (mean of those it was chosen with).
    """
    steps = [step for _, step in read_objects(path) if step.get("chosen")]
    chosen = [np.asarray(step["chosen"], dtype=np.int64) for step in steps]
    passed = [np.asarray(step["passed"], dtype=np.int64) for step in steps]
    nothing = np.zeros(0, dtype=np.int64)
    every = np.concatenate([nothing, *(part for pair in zip(chosen, passed, strict=True) for part in pair)])
    is_chosen = np.concatenate(
        [nothing, *(np.repeat((1, 0), (len(a), len(b))) for a, b in zip(chosen, passed, strict=True))]
    )
    share = np.concatenate(
        [nothing, *(np.full(len(a) + len(b), len(a) / (len(a) + len(b))) for a, b in zip(chosen, passed, strict=True))]
    ).astype(np.float64)
    weights = np.concatenate(
        [
            nothing,
            *(
                np.concatenate([step.get("weights") or np.ones(len(a)), np.zeros(len(b))])
                for step, a, b in zip(steps, chosen, passed, strict=True)
            ),
        ]
    ).astype(np.float64)
    ids, places = np.unique(every, return_inverse=True)

    def total(values: Any = None) -> Any:
        return np.bincount(places, weights=values, minlength=len(ids))

    drawn, times, expected = total(), total(is_chosen), total(share)
    spread = np.sqrt(total(share * (1 - share)))
    away = np.divide(times - expected, spread, out=np.zeros(len(ids)), where=spread > 1e-9)
    mean_weight = np.divide(total(weights), times, out=np.full(len(ids), np.inf), where=times > 0)
    with np.errstate(divide="ignore"):
        left_out = np.exp(total(np.log1p(-share)))
    ranked_by = None
    most = least = nothing
    if len(ids) and drawn.max() > 1:
        ranked_by = "rate"
        most = np.lexsort((ids, mean_weight, -away))[:shown]
        least = np.lexsort((ids, -mean_weight, away))[:shown]
    elif any("weights" in step for step in steps):
        ranked_by = "weight"
        taken = np.flatnonzero(times)
        order = taken[np.lexsort((ids[taken], mean_weight[taken]))]
        most, least = order[:shown], order[::-1][:shown]

    def entry(i: int) -> dict[str, Any]:
        weight = round(float(mean_weight[i]), 4) if times[i] else None
        return {
            "id": int(ids[i]),
            "drawn": int(drawn[i]),
            "chosen": int(times[i]),
            "expected": round(float(expected[i]), 3),
            "weight": weight,
        }

    return {
        "last_step": steps[-1]["step"] if steps else 0,
        "steps": len(steps),
        "examples_drawn": len(ids),
        "draws": [int(drawn.min()), int(drawn.max())] if len(ids) else [0, 0],
        "never_chosen": int((times == 0).sum()),
        "never_chosen_by_chance": round(float(left_out.sum()), 1),
        "ranked_by": ranked_by,
        "most": [entry(i) for i in most.tolist()],
        "least": [entry(i) for i in least.tolist()],
    }


def text_of(row: Mapping[str, Any], tokenizer: Any) -> str | None:
    """An example's text, shortened: decoded from `input_ids`, or from columns that are text; None without either."""
    tokens = row.get("input_ids")
    decode = getattr(tokenizer, "decode", None)
    if decode is not None and tokens is not None:
        tokens = tokens.tolist() if hasattr(tokens, "tolist") else list(tokens)
        return shortened(str(decode(tokens, skip_special_tokens=True)))
    texts = [value for key, value in row.items() if isinstance(value, str) and key in ("text", "prompt", "completion")]
    return shortened(" ".join(texts)) if texts else None

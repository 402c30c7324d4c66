"""A pass of a model over a data set, block by block, whose numbers lie in a folder and are gone on with.

Shape suffixes: N rows of the data set, B rows of a block, P feature columns.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corebatch.errors import ConfigError, NonFiniteError
from corebatch.files import write_json
from corebatch.model.digest import weights_digest
from corebatch.record.data_identity import content
from corebatch.record.model_identity import describe_model
from corebatch.scoring import Scorer
from corebatch.seeds import seeded
from corebatch.subset import Matrix

BLOCK = 1024
"""Rows that are read, sorted by length and scored together; what a killed pass may lose."""
RECORD = "scored.json"


class ScoredRows:
    """Features and losses of a data set's rows in a folder, as many as are scored so far.

    Args:
        folder: made if need be.
        key: what the numbers depend on: of data, model and settings; plain JSON.
        count: N.
        anew: whether numbers that depend on something else are discarded, and not refused.

    Raises:
        ConfigError: the folder has numbers of another key; says what differs.
    """

    def __init__(self, folder: Path, key: Mapping[str, Any], count: int, *, anew: bool = False) -> None:
        self.folder, self.key, self.count = folder, json.loads(json.dumps(key)), count
        self.done, self.seconds = 0, 0.0
        self._features: Any = None
        self._losses: Any = None
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / RECORD).is_file():
            return
        found = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        other = [name for name in self.key if found["key"].get(name) != self.key[name]]
        if other and not anew:
            told = "; ".join(f"{name} {found['key'].get(name)} and not {self.key[name]}" for name in other)
            raise ConfigError(
                f"{folder} holds numbers of other rows or by another model, and nothing in it is overwritten. Found "
                f"{told}. Choose another output, or begin anew with --overwrite true."
            )
        if other:
            (folder / RECORD).unlink()
        else:
            self.done, self.seconds = found["done"], found["seconds"]
            self._features, self._losses = (self._open(name) for name in ("features", "losses"))

    @property
    def features(self) -> Matrix:
        """[N, P]; all of them have to be scored."""
        assert self.done == self.count
        return Matrix(self._features)

    @property
    def losses(self) -> Tensor | None:
        """Float64 [N], the mean loss of each row's trained tokens; None where the scorer runs no forward."""
        assert self.done == self.count
        return None if self._losses is None else torch.from_numpy(np.array(self._losses, dtype=np.float64)[:, 0])

    def add(self, features_BP: Tensor, losses_B: Tensor | None, seconds: float) -> None:
        """The numbers of the next rows. Raises NonFiniteError: one is NaN or infinite; the row is named."""
        rows = slice(self.done, self.done + len(features_BP))
        if self.done == 0:
            self._features = self._make("features", features_BP.shape[1])
            self._losses = None if losses_B is None else self._make("losses", 1)
        for name, array, values in (("feature", self._features, features_BP), ("loss", self._losses, losses_B)):
            if values is None:
                continue
            given = values.reshape(len(values), -1).float().cpu()
            if not bool(torch.isfinite(given).all()):
                bad = self.done + int((~torch.isfinite(given)).any(dim=1).nonzero()[0])
                raise NonFiniteError(f"Row {bad} of the data should have a finite {name}. Found NaN or inf.")
            array[rows] = given.numpy()
            array.flush()
        self.done, self.seconds = rows.stop, self.seconds + seconds
        write_json(self.folder / RECORD, {"key": self.key, "done": self.done, "seconds": self.seconds})

    def _make(self, name: str, width: int) -> Any:
        """An array in a file whose place on the disk is taken at once: writing to a mapped file on a full disk would
        end the process. Raises OSError: there is no room."""
        made = np.lib.format.open_memmap(self._path(name), "w+", np.float32, (self.count, width))
        if hasattr(os, "posix_fallocate"):
            with self._path(name).open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, self._path(name).stat().st_size)
        return made

    def _open(self, name: str) -> Any:
        return np.load(self._path(name), mmap_mode="r+") if self._path(name).is_file() and self.done else None

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"


def key_of(model: Any, dataset: Any, scorer: Scorer, width: int, seed: int) -> dict[str, Any]:
    """What the numbers of a pass depend on."""
    return {
        "data": {"rows": len(dataset), **content(dataset)},
        "model": {**describe_model(model), "weights": weights_digest(model.named_parameters())},
        "scorer": repr(scorer),
        "width": width,
        "seed": seed,
    }


def score_rows(
    scored: ScoredRows, model: Any, dataset: Any, collate: Any, scorer: Scorer, *, positions: int, width: int, seed: int
) -> None:
    """Scores what is not scored yet.

    Args:
        scored: where the numbers go.
        model: on its device.
        dataset: rows with input_ids and labels.
        collate: rows -> batch.
        scorer: gives features and, where it runs a forward, losses.
        positions: of a forward, padded, at most; a row at least.
        width: wider features are projected to so many columns.
        seed: of the scorer and the projection.
    """
    device, sketch = next(model.parameters()).device, None
    while scored.done < scored.count:
        began = time.perf_counter()
        rows = _rows(dataset, scored.done, min(scored.count, scored.done + BLOCK))
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row]["input_ids"]))
        parts: list[tuple[Tensor, Tensor | None]] = []
        while len(parts) < len(rows):
            size = max(1, positions // len(rows[order[len(parts)]]["input_ids"]))
            batch = collate([rows[row] for row in order[len(parts) : len(parts) + size]])
            found = scorer.run(model, {k: v.to(device) for k, v in batch.items()}, loss="example_mean", seed=seed)
            features = found.features.float().cpu()
            if features.shape[1] > width:
                sketch = _sketch(features.shape[1], width, seed) if sketch is None else sketch
                features = features @ sketch
            losses = None if found.losses is None else found.losses.cpu() / found.tokens.cpu().clamp(min=1)
            parts += list(zip(features, [None] * len(features) if losses is None else losses, strict=True))
        back = sorted(range(len(rows)), key=order.__getitem__)
        features, given = torch.stack([parts[i][0] for i in back]), [parts[i][1] for i in back]
        means = None if given[0] is None else torch.stack([each for each in given if each is not None])
        scored.add(features, means, time.perf_counter() - began)


def _rows(dataset: Any, start: int, stop: int) -> list[dict[str, Any]]:
    table = dataset[start:stop]
    return [{"input_ids": ids, "labels": own} for ids, own in zip(table["input_ids"], table["labels"], strict=True)]


def _sketch(width: int, columns: int, seed: int) -> Tensor:
    return torch.randn(width, columns, generator=seeded(seed, "subset", "sketch")) / columns**0.5

"""NGAME: batches out of clusters of the embeddings that the model has now (Dahiya et al. 2023, arXiv 2207.04452).

Where a loss takes the other rows of a batch as negatives, random batches have easy ones. Here rows are clustered by
their embeddings every few epochs, and a batch is made of whole clusters: its negatives are near, at the price of one
pass of the encoder at each refresh. Clusters grow, and negatives get harder, by a curriculum (section 3, Algorithm 1):

    rows of a cluster at epoch e = size x 2^(entries of the curriculum up to the last refresh)

Every row comes once in an epoch, so the mean over rows is that of random batches; which negatives a row meets is not:
the loss is harder on purpose, and its gradient is biased towards near pairs.

Where we differ from Extreme-classification/ngame: embeddings are computed at each refresh, as in its synchronous way,
and not kept from training steps; what is clustered is used from that epoch on, not from the next; the queries that
share a positive are not known, so a loss should mask them where there are such.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Sampler

from corebatch.errors import ConfigError, DataError
from corebatch.files import replacing
from corebatch.options import check_count
from corebatch.sampling.dual_encoders.clusters import embed, halved, sizes_of_halves, texts_of
from corebatch.seeds import seeded

CURRICULUM = (10, 25, 50, 75, 100, 125, 150, 200)
"""The epochs at which clusters double, by the official configurations, for 300 epochs."""


@dataclass(frozen=True, kw_only=True)
class Ngame:
    """The setting: what `SentenceTransformerTrainingArguments(batch_sampler=...)` takes.

    Attributes:
        encode: the model that is trained, or a function of a list of texts that gives their embeddings now.
        column: whose texts are clustered; None: the first, the queries.
        curriculum: the epochs, ascending from 0, at which clusters double; before the first batches are random.
        refresh: after so many epochs rows are clustered anew.
        size: rows of a cluster before the first doubling.
        folder: where the clusters of each refresh are kept, so that a resumed run goes on with them exactly; None: it
            clusters anew by the weights that it goes on with.
    """

    encode: Any
    column: str | None = None
    curriculum: Sequence[int] = CURRICULUM
    refresh: int = 5
    size: int = 1
    folder: str | Path | None = None

    def __post_init__(self) -> None:
        check_count("refresh", self.refresh)
        check_count("size", self.size)
        epochs = list(self.curriculum)
        for epoch in epochs:
            check_count("curriculum: an epoch", epoch, least=0)
        if not epochs or epochs != sorted(set(epochs)):
            raise ConfigError(f"curriculum should be epochs in ascending order. Found {epochs}.")

    def __getstate__(self) -> dict[str, Any]:
        """Without the model: a Trainer saves its arguments, and these with them."""
        return {**self.__dict__, "encode": None}

    def __call__(
        self, dataset: Any, batch_size: int, drop_last: bool = False, seed: int | None = 0, **_: Any
    ) -> NgameBatches:
        """The sampler of a data set; the trainer calls it, with arguments of its own that it has no use for."""
        return NgameBatches(self, texts_of(dataset, self.column), batch_size, drop_last, seed or 0)

    def refreshed(self, epoch: int) -> int | None:
        """The epoch whose clusters an epoch has; None before the first."""
        first = self.curriculum[0]
        last = epoch - epoch % self.refresh
        return None if epoch < first else max(first, last)

    def rows_of_cluster(self, epoch: int) -> int:
        """At a refresh in this epoch."""
        return int(self.size * 2 ** sum(epoch >= start for start in self.curriculum))


class NgameBatches(Sampler[list[int]]):
    """Batches of whole clusters, in a drawn order of clusters; random batches before the first refresh.

    The order depends on the seed, the epoch and the clusters; ranks take those of rank 0.

    Args:
        setting: of the method.
        texts: of all rows.
        batch_size, drop_last: as a loader has them.
        seed: of all randomness.

    Attributes:
        epoch: whose batches are next; a Trainer calls `set_epoch`.
    """

    def __init__(self, setting: Ngame, texts: list[str], batch_size: int, drop_last: bool, seed: int) -> None:
        check_count("batch_size", batch_size)
        if len(texts) < (batch_size if drop_last else 1):
            raise DataError(f"A data set should have the {batch_size} rows of a batch. Found {len(texts)}.")
        self.setting, self.batch_size, self.drop_last, self.epoch = setting, batch_size, drop_last, 0
        self._texts, self._seed = texts, seed
        self._clusters: tuple[int, Tensor] | None = None

    def __len__(self) -> int:
        whole, rest = divmod(len(self._texts), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        rows = self.order()
        for batch in rows.split(self.batch_size)[: len(self)]:
            yield batch.tolist()

    def order(self) -> Tensor:
        """The rows of this epoch: LongTensor [N]."""
        generator, refreshed = seeded(self._seed, self.epoch, "ngame"), self.setting.refreshed(self.epoch)
        if refreshed is None:
            return torch.randperm(len(self._texts), generator=generator)
        if self._clusters is None or self._clusters[0] != refreshed:
            self._clusters = refreshed, _of_first_rank(lambda: self._clustered(refreshed))
        parts = self._clusters[1].split(sizes_of_halves(len(self._texts), self.setting.rows_of_cluster(refreshed)))
        return torch.cat([parts[place] for place in torch.randperm(len(parts), generator=generator).tolist()])

    def _clustered(self, refreshed: int) -> Tensor:
        """The rows cluster by cluster, as they were at the refresh where that is known."""
        path = None if self.setting.folder is None else Path(self.setting.folder) / f"clusters-{refreshed}.safetensors"
        if path is not None and path.is_file():
            return self._read(path, refreshed)
        generator = seeded(self._seed, refreshed, "clusters")
        most = self.setting.rows_of_cluster(refreshed)
        rows = halved(embed(self.setting.encode, self._texts), most, generator)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as part:
                save_file({"rows": rows}, part, metadata=self._identity(refreshed))
        return rows

    def _read(self, path: Path, refreshed: int) -> Tensor:
        expected = self._identity(refreshed)
        with safe_open(path, "pt") as file:
            found, rows = file.metadata(), file.get_tensor("rows")
        for key, value in expected.items():
            if found.get(key) != value:
                raise DataError(
                    f"{path} has clusters of another run: its {key} should be {value}. Found {found.get(key)}. Give "
                    "another folder."
                )
        return rows

    def _identity(self, refreshed: int) -> dict[str, str]:
        digest = hashlib.sha256()
        for text in self._texts:
            digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
        size = str(self.setting.rows_of_cluster(refreshed))
        return {"digest of the texts": digest.hexdigest()[:16], "rows of a cluster": size, "seed": str(self._seed)}


def _of_first_rank(make: Any) -> Tensor:
    """What rank 0 makes, on every rank: embeddings of two devices may differ in their last bits."""
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()) or group.get_world_size() == 1:
        return make()
    held = [make() if group.get_rank() == 0 else None]
    group.broadcast_object_list(held, src=0)
    assert held[0] is not None
    return held[0]

"""The data-parallel ranks of a run, and all that travels between them.

Tensors of fixed types travel, nothing is pickled. Every method that communicates is called by all ranks in the same
order. With one rank each is what it would be among many, without a process group.

Shape suffixes: W ranks, n rows on this rank, N rows on all ranks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from corebatch.errors import UNTOUCHED, ConfigError, RankError

MODEL_PARALLEL = {"tp_size": "tensor", "cp_size": "context", "sp_size": "sequence", "pp_size": "pipeline"}
"""Sizes in Accelerate's ParallelismConfig of groups whose ranks share a model, and what each group is called."""


class Ranks:
    """This rank among those that hold different rows.

    Args:
        index: this rank's number.
        count: W.
        device: where tensors travel.
        group: the process group; None is the default one.

    Attributes:
        sent: bytes that all ranks together have put into messages since the last `take_sent`, by what they were for.
    """

    def __init__(self, index: int = 0, count: int = 1, device: torch.device | str = "cpu", group: Any = None) -> None:
        self.index, self.count, self.device, self.group = index, count, torch.device(device), group
        self.sent: Counter[str] = Counter()

    @classmethod
    def of(cls, accelerator: Any) -> Ranks:
        """The ranks of an Accelerator.

        Raises:
            ConfigError: ranks share a model by tensor, context, sequence or pipeline parallelism: features of one
                row would lie on several ranks.
        """
        parallelism = getattr(accelerator, "parallelism_config", None)
        for size, kind in MODEL_PARALLEL.items():
            found = getattr(parallelism, size, None) or 1
            if found > 1:
                raise ConfigError(
                    f"Selection joins data-parallel ranks: DDP, FSDP2, DeepSpeed ZeRO. Found {kind} parallelism "
                    f"({size} = {found}), whose ranks share the features of a row. Set {size} to 1, "
                    f"or train with the plain Trainer ({UNTOUCHED})."
                )
        if getattr(accelerator.distributed_type, "value", "") == "MEGATRON_LM":
            raise ConfigError("Selection joins data-parallel ranks: DDP, FSDP2, DeepSpeed ZeRO. Found Megatron-LM.")
        return cls(accelerator.process_index, accelerator.num_processes, accelerator.device)

    def gather(self, value: Tensor, what: str = "status") -> Tensor:
        """[n, ...] of the same shape on each rank -> [W n, ...], by rank, on all."""
        if self.count == 1:
            return value
        value = value.to(self.device).contiguous()
        gathered = value.new_empty(self.count * value.shape[0], *value.shape[1:])
        if len(value):
            dist.all_gather(list(gathered.split(len(value))), value, group=self.group)
        self.sent[what] += gathered.nbytes
        return gathered

    def gather_rows(self, value: Tensor, counts: Sequence[int], what: str) -> Tensor:
        """[n, ...] on each rank -> [N, ...], by rank, on all; `counts` has every rank's n."""
        if self.count == 1:
            return value
        most = max(counts)
        padded = value.new_zeros(most, *value.shape[1:])
        padded[: len(value)] = value
        gathered = self.gather(padded, what)
        return torch.cat([gathered[rank * most : rank * most + count] for rank, count in enumerate(counts)])

    def add_up(self, values: Sequence[Tensor], what: str) -> None:
        """Replaces each of the tensors, of the same shapes on all ranks, by its sum over ranks."""
        if self.count == 1:
            return
        for value in values:
            dist.all_reduce(value, group=self.group)
            self.sent[what] += self.count * value.nbytes

    def gather_texts(self, text: str) -> list[str]:
        """A text of each rank, on all."""
        if self.count == 1:
            return [text]
        mine = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8)
        counts = self.gather(torch.tensor([len(mine)])).tolist()
        joined = bytes(self.gather_rows(mine, counts, "status").tolist())
        ends = [sum(counts[: rank + 1]) for rank in range(self.count)]
        return [joined[end - count : end].strip(b"\0").decode() for count, end in zip(counts, ends, strict=True)]

    def largest(self, number: int) -> int:
        """The largest of all ranks' numbers."""
        return number if self.count == 1 else int(self.gather(torch.tensor([number])).max())

    @contextmanager
    def together(self, doing: str) -> Iterator[None]:
        """All ranks come out of it, or all raise; see `report`. What is within may not wait for other ranks."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        self.report(failure, doing=doing)

    def report(self, failure: Exception | None, *numbers: int, doing: str = "Choosing") -> Tensor:
        """Tells all ranks how this rank's part of a stage went, before anyone raises.

        Args:
            failure: what this rank's part ended with, or None.
            numbers: k integers that the others need.
            doing: what failed if something did, to begin the other ranks' message with.

        Returns:
            LongTensor [W, k] on the CPU: the numbers of all ranks.

        Raises:
            The failure itself where it happened, RankError with its text and the rank's number everywhere else.
        """
        if self.count == 1:
            if failure is not None:
                raise failure
            return torch.tensor([numbers])
        found = self.gather(torch.tensor([[int(failure is not None), *numbers]])).cpu()
        if not bool(found[:, 0].any()):
            return found[:, 1:]
        texts = self.gather_texts("" if failure is None else f"{type(failure).__name__}: {failure}")
        if failure is not None:
            raise failure
        rank = int(found[:, 0].nonzero()[0])
        raise RankError(f"{doing} failed on rank {rank}, so no rank goes on. {texts[rank]}")

    def exchange(self, outgoing: Sequence[Tensor], incoming: Sequence[int]) -> list[Tensor]:
        """Bytes from each rank to each rank, in one exchange. They do not count in `sent`: no rank knows them all.

        Args:
            outgoing: for each rank a uint8 Tensor on the CPU: what goes there.
            incoming: for each rank how many bytes come from there.

        Returns:
            For each rank the uint8 Tensor on the CPU that came from there.
        """
        if self.count == 1:
            return list(outgoing)
        sent = torch.cat(list(outgoing)).to(self.device)
        received = sent.new_empty(sum(incoming))
        dist.all_to_all_single(received, sent, list(incoming), [len(part) for part in outgoing], group=self.group)
        return list(received.cpu().split(list(incoming)))

    def take_sent(self) -> dict[str, int]:
        """`sent`, which starts again at nothing."""
        taken, self.sent = dict(self.sent), Counter()
        return taken

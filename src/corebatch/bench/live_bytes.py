"""Bytes of tensors that live at one time, where no allocator says so: the CPU."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that ops take or give while the mode is on, and the most at one time.

    A storage is counted once, whatever views it has, from the first op that takes or gives it until it is freed, so
    tensors that no op made (a collator's, numpy's) count from their first use. What lives already and should count
    from the start (weights, gradients, optimizer state) is named by `track`. Not seen: what an op allocates and frees
    within itself, tensors that no op touches, and ops in other threads; backward on CPU runs in the calling thread.

    The ways of torch's own `torch.distributed._tools.mem_tracker.MemTracker`: a weak reference to the storage's
    Python object, which lives as long as the storage does, tells when it is freed.

    Attributes:
        live_bytes: counted storages that live now.
        peak_bytes: the most since the start or the last `reset_peak`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self._sizes: dict[int, int] = {}
        self._watched: dict[int, weakref.ref[Any]] = {}

    def track(self, tensors: Iterable[Any]) -> None:
        """Counts tensors that live already; what is no tensor is passed over."""
        for tensor in tensors:
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._see(tensor)
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)

    def reset_peak(self) -> None:
        """The peak starts again from what lives now."""
        self.peak_bytes = self.live_bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        # Inputs and outputs live together here; the inputs come after the op because it may have resized them.
        self.track(tree_leaves((args, kwargs, result)))
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key not in self._sizes:

            def freed(_: Any, key: int = key) -> None:
                self._watched.pop(key, None)
                self.live_bytes -= self._sizes.pop(key, 0)

            self._watched[key] = weakref.ref(storage, freed)
        self.live_bytes += size - self._sizes.get(key, 0)  # a storage may have been resized since
        self._sizes[key] = size

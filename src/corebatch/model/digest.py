"""By what weights are known again."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

AT_ONCE = 2**24
SAMPLED = 64
"""Elements of each weight that go into the digest with their places, beside the sum over all of its bits."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def weights_digest(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """A digest of weights by name; None where there are none, or they are not here (sharded, or on the meta device).

    Of each weight the sum of its bits, as integers and so in whatever order, and a few elements: every change of an
    element shows unless another undoes it in the sum.
    """
    weights = [(name, each.detach()) for name, each in sorted(named, key=lambda pair: pair[0])]
    if not weights or any(hasattr(each, "ds_shape") or not _here(each) for _, each in weights):
        return None
    import xxhash  # not with corebatch.select, which needs torch and numpy alone

    digest = xxhash.xxh3_128()
    with torch.no_grad():
        for name, weight in weights:
            digest.update(f"{name} {tuple(weight.shape)}".encode())
            digest.update(_weight_digest(weight).cpu().numpy().tobytes())
    return str(digest.hexdigest()[:16])


def _here(weight: Tensor) -> bool:
    return weight.device.type != "meta" and not hasattr(weight, "placements")  # a DTensor has a part of it


def _weight_digest(weight: Tensor) -> Tensor:
    """LongTensor [1 + samples]: the sum of all bits, and elements at equal distances."""
    plain = weight.as_subclass(Tensor)
    flat = (torch.view_as_real(plain) if plain.is_complex() else plain).reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()]) if flat.dtype != torch.bool else flat.to(torch.int8)
    if not len(bits):
        return torch.zeros(1, dtype=torch.int64)
    total = torch.stack([part.sum(dtype=torch.int64) for part in bits.split(AT_ONCE)]).sum()
    places = torch.arange(min(SAMPLED, len(bits)), device=bits.device) * len(bits) // min(SAMPLED, len(bits))
    return torch.cat([total.reshape(1), bits[places].long()])

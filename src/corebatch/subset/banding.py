"""Rows that repeat an earlier one, found by locality-sensitive hashing and then compared.

Shape suffixes: N rows, C bands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

COMPARED = 64
"""So many kept rows of a bucket are compared with the next one: what bounds the time where thousands are alike, but not
enough alike."""

Similar = Callable[[int, NDArray[np.int64]], NDArray[np.bool_]]
"""From a row and some others to which of the others it repeats."""


def repeats_exactly(contents: Iterable[bytes], count: int) -> NDArray[np.int64]:
    """For each row the first one of the same content, by 128 bits of hash, or -1 where it is the first: int64 [N]."""
    first: dict[bytes, int] = {}
    result_N = np.full(count, -1)
    for row, content in enumerate(contents):
        before = first.setdefault(blake2b(content, digest_size=16).digest(), row)
        if before != row:
            result_N[row] = before
    return result_N


def repeats_nearly(keys_NC: NDArray[np.integer], similar: Similar) -> NDArray[np.int64]:
    """For each row a kept one that it repeats, or -1 where it is kept: int64 [N].

    Rows come in order, and one is left out if it repeats one that is kept: so every row that is left out has a kept row
    that it is compared with and near to, and chains of rows, each near to the next, do not become one. (Components of
    such chains are what SlimPajama removes.)

    Args:
        keys_NC: rows that are near share a key in some band; those that share none are not compared.
        similar: whether it repeats rows before it.
    """
    count, bands = keys_NC.shape
    # Of each bucket, the place of its first row in the order of keys: there its kept rows are put, one after the other.
    begin_NC = np.empty((count, bands), dtype=np.int32)
    shared_N = np.zeros(count, dtype=bool)
    for band in range(bands):
        order_N = keys_NC[:, band].argsort(kind="stable")
        new_N = np.diff(keys_NC[order_N, band], prepend=keys_NC[order_N[:1], band] - 1) != 0
        begin_N = np.maximum.accumulate(np.where(new_N, np.arange(count), 0))
        begin_NC[order_N, band] = begin_N
        shared_N[order_N] |= np.bincount(begin_N, minlength=count)[begin_N] > 1
    kept_CN = np.empty((bands, count), dtype=np.int32)
    filled_CN = np.zeros((bands, count), dtype=np.int32)
    result_N, every = np.full(count, -1), np.arange(bands)
    for row in np.flatnonzero(shared_N):
        begin_C = begin_NC[row]
        filled_C = filled_CN[every, begin_C]
        found = [kept_CN[c, begin_C[c] : begin_C[c] + filled_C[c]] for c in np.flatnonzero(filled_C)]
        if found:
            others = np.unique(np.concatenate(found)).astype(np.int64)
            near = others[similar(int(row), others)]
            if len(near):
                result_N[row] = near[0]
                continue
        room = np.flatnonzero(filled_C < COMPARED)
        kept_CN[room, begin_C[room] + filled_C[room]] = row
        filled_CN[room, begin_C[room]] += 1
    return result_N

"""Rows by length, written from the papers and the official code, one thing after the other."""

from __future__ import annotations

import math
import random


def cut_document(tokens, shortest_log2, longest_log2, drawn=None):
    """Pieces of one document: the largest power of two that is left, again and again (apple/ml-dataset-decomposition,
    scripts/make_dd_buckets.py, without its one token more). `drawn` gives the powers for what is too long."""
    pieces = []
    while len(tokens) > 0:
        power = int(math.log2(len(tokens)))
        if power < shortest_log2:
            return pieces
        if power > longest_log2:
            power = drawn() if drawn is not None else longest_log2
        pieces.append(tokens[: 2**power])
        tokens = tokens[2**power :]
    return pieces


def order_of_buckets(groups, odds, source: random.Random):
    """Buckets at fixed odds times what they had in the beginning, each until it is empty (open_lm.patch, MyRandomMix
    with longest=True; get_dd_params.py for the weights)."""
    left, weights, order = list(groups), [o * g for o, g in zip(odds, groups, strict=True)], []
    while sum(left):
        there = [bucket for bucket, count in enumerate(left) if count]
        bucket = source.choices(there, [weights[bucket] for bucket in there])[0]
        left[bucket] -= 1
        order.append(bucket)
    return order


def smallest_bucket(bounds, lengths):
    """The first input bound that fits, and among its sub-buckets the first output bound that does (NeMo,
    find_smallest_bucket with strict=True)."""
    first = min(bound for bound, _ in bounds if bound >= lengths[0])
    for place, (one, other) in enumerate(bounds):
        if one == first and other >= lengths[1]:
            return place
    raise AssertionError("no bucket")

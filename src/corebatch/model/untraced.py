"""Forwards for a check, as in training but without gradients, that leave nothing behind."""

from __future__ import annotations

import copy
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.model.modes import modes_kept, uncompiled
from corebatch.seeds import random_states

LARGEST = 4096
"""Entries of a container that are put back at most; a longer one is data, not a count."""


@contextmanager
def untraced(model: nn.Module, *, inner: bool, outermost: bool) -> Iterator[None]:
    """While open, the model runs without gradients and uncompiled. Afterwards every module's mode, the buffers, and the
    random states of torch, numpy and Python are what they were.

    Args:
        inner: whether modules are in training mode, with dropout and the like.
        outermost: whether the model and what wraps it say that they are: code that asks `model.training` then goes the
            way it goes in training.
    """
    outer = set(_outermost(model))
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with ExitStack() as stack:
        devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
        stack.enter_context(random_states(sorted(devices)))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="None of the inputs have requires_grad")
        stack.enter_context(torch.no_grad())
        stack.enter_context(uncompiled(model.modules()))
        stack.enter_context(modes_kept(model))
        for module in model.modules():
            module.training = outermost if module in outer else inner
        try:
            yield
        finally:
            for buffer, value in buffers:
                buffer.copy_(value)


def _outermost(model: nn.Module) -> Iterator[nn.Module]:
    """The model and what it wraps, by the names that DDP, DeepSpeed, peft and transformers give it."""
    inner: Any = model
    while isinstance(inner, nn.Module):
        yield inner
        below = (getattr(inner, name, None) for name in ("module", "_orig_mod", "base_model"))
        inner = next((m for m in below if isinstance(m, nn.Module) and m is not inner), None)
        if inner is not None and not hasattr(inner, "get_output_embeddings") and not hasattr(inner, "module"):
            wrapped = getattr(inner, "model", None)  # peft's tuner holds the model so
            inner = wrapped if hasattr(wrapped, "get_output_embeddings") else None


@contextmanager
def counts_kept(holder: Any) -> Iterator[None]:
    """Afterwards the holder's numbers, texts and small containers of them are what they were: what a user's method
    counts or logs when it is called for a check does not count."""
    before = {key: copy.deepcopy(value) for key, value in vars(holder).items() if _plain(value)}
    try:
        yield
    finally:
        for key in [key for key, value in vars(holder).items() if key not in before and _plain(value)]:
            delattr(holder, key)
        for key, value in before.items():
            _put_back(holder, key, value)


def _put_back(holder: Any, key: str, value: Any) -> None:
    """In place where it is a container, which others may hold too."""
    now = vars(holder).get(key)
    if isinstance(value, list | deque) and type(now) is type(value):
        now.clear()
        now.extend(value)
    elif isinstance(value, dict | set) and type(now) is type(value):
        now.clear()
        now.update(value)
    else:
        setattr(holder, key, value)


def _plain(value: Any) -> bool:
    """Numbers, texts, detached tensors of one element, and containers of them."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.is_leaf and not isinstance(value, nn.Parameter)
    if value is None or isinstance(value, bool | int | float | str):
        return True
    if isinstance(value, Mapping):
        return len(value) <= LARGEST and all(_plain(v) for v in value.values())
    if isinstance(value, list | tuple | set | deque):
        return len(value) <= LARGEST and all(map(_plain, value))
    return False

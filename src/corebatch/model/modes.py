"""Running a model for its scores, or to evaluate it, without leaving a trace."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

# Keys of a batch that are not inputs of the model's forward here: labels would make it build all logits.
NOT_FORWARDED = frozenset(
    {"labels", "loss_weights", "num_items_in_batch", "corebatch_id", "corebatch_source", "corebatch_places"}
)


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode that it was in, also where they differed."""
    before = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        restore(before)


def restore(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Sets each module's mode where it is another, past a module's own assignment, which would look for a parameter, a
    buffer and a submodule of this name first: a tenth of a small model's step."""
    for module, training in modes:
        if module.training != training:
            if type(module).__setattr__ is nn.Module.__setattr__:
                vars(module)["training"] = training
            else:
                module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every module is in the mode that it was in."""
    with modes_kept(model):
        model.eval()
        yield


@contextmanager
def scoring_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, uncompiled; afterwards every module is in the mode that it was in.

    The flags are set one by one: `model.train()` would switch on modules that a user had frozen in evaluation mode.
    Modules that are compiled in place run as they are written: scoring's hooks come and go.
    """
    modules = list(model.modules())  # once: a walk through them costs as much as a small forward
    packing, before = packing_linears(modules), [(module, module.training) for module in modules]
    for linear in packing:
        setattr(linear, PACKS, False)
    try:
        with torch.no_grad(), uncompiled(modules):
            restore((module, False) for module in modules)
            yield
    finally:
        restore(before)
        for linear in packing:
            setattr(linear, PACKS, True)


PACKS = "support_avx512bf16_for_cpu"
"""Of bitsandbytes' Linear4bit: in evaluation mode it changes its weights to a layout for inference, which has no
gradient by the input, neither then nor in any later training."""


def packing_linears(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Four-bit linear maps that would change their weights in a forward in evaluation mode (CPUs with AVX512-BF16)."""
    return [module for module in modules if vars(module).get(PACKS, False)]


def is_compiled(modules: Iterable[nn.Module]) -> bool:
    """Whether one of a model's modules, the model itself among them, is compiled by torch.compile."""
    return any(
        getattr(module, "_compiled_call_impl", None) is not None or type(module).__name__ == "OptimizedModule"
        for module in modules
    )


def uncompiled(modules: Iterable[nn.Module]) -> AbstractContextManager[None]:
    """While open, modules that are compiled in place run as they are written."""
    return torch.compiler.set_stance("force_eager") if is_compiled(modules) else nullcontext()


def forward_inputs(batch: Mapping[str, Tensor]) -> dict[str, Any]:
    """The batch as keyword arguments of the model's forward, without what would build logits or a cache."""
    return {**{k: v for k, v in batch.items() if k not in NOT_FORWARDED}, "use_cache": False}


def base_model(model: Any) -> Any:
    """The transformers model below an adapter wrapper of peft."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model

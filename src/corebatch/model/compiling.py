"""torch.compile of the training forward: of the decoder, in place, and not of what lies around it.

The Trainer has Accelerate compile the whole model. Hooks that come and go are not reliably seen in a compiled module,
and the weighted loss is computed by a hook at the head. So what is compiled is the decoder below the head; the head
and the loss, which works chunk by chunk over label positions, stay eager. Scoring runs the same modules uncompiled
(`scoring_mode`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import TorchDynamoPlugin
from torch import nn

from corebatch.errors import ConfigError
from corebatch.model.head import output_head
from corebatch.model.modes import base_model, is_compiled


def is_asked_for(accelerator: Any) -> bool:
    """Whether the model is to be compiled, by TrainingArguments or by `accelerate launch`."""
    return _backend(accelerator) != "NO"


def _backend(accelerator: Any) -> str:
    backend = accelerator.state.dynamo_plugin.backend
    return str(getattr(backend, "value", backend)).upper()


def compile_decoder_instead(accelerator: Any) -> None:
    """From now on `accelerator.prepare_model` compiles the decoder in place where it would have compiled the model.

    It does so where the model is prepared, since a model may be made as late as that (`model_init`), with the
    settings that Accelerate holds (backend, mode, regional compilation). Other accelerators are left as they are.
    """
    usual = accelerator.prepare_model

    def prepare_model(model: Any, *args: Any, **kwargs: Any) -> Any:
        plugin = accelerator.state.dynamo_plugin
        with _not_compiling(accelerator):
            prepared = usual(model, *args, **kwargs)
        inner = accelerator.unwrap_model(prepared, keep_torch_compile=False)
        if not is_compiled(inner.modules()):  # evaluation may have prepared it before
            for part in _parts(inner, plugin.use_regional_compilation):
                part.compile(**plugin.to_kwargs())
        return prepared

    accelerator.prepare_model = prepare_model


@contextmanager
def _not_compiling(accelerator: Any) -> Iterator[None]:
    state = accelerator.state
    plugin, state.dynamo_plugin = state.dynamo_plugin, TorchDynamoPlugin(backend="no")
    try:
        yield
    finally:
        state.dynamo_plugin = plugin


def _parts(model: nn.Module, regional: bool) -> list[nn.Module]:
    """The decoder, or its blocks."""
    below = decoder(model)
    lists = [module for module in below.modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    return list(lists[0]) if regional and lists else [below]


def decoder(model: nn.Module) -> nn.Module:
    """What a causal language model of transformers has below its head.

    Raises:
        ConfigError: there is nothing such.
    """
    base = base_model(model)
    below = getattr(base, "base_model", base)
    if not isinstance(below, nn.Module) or any(module is output_head(base) for module in below.modules()):
        raise ConfigError(
            f"torch_compile compiles what a model has below its head. Found no such part in {type(base).__name__}. "
            "Use torch_compile: false."
        )
    return below


def check_uncompiled(model: Any) -> None:
    """Raises ConfigError for a model that comes compiled as a whole: hooks at its head would not be seen."""
    if model is None:  # made later, by model_init
        return
    whole = [model, base_model(model)]
    if any(type(part).__name__ == "OptimizedModule" for part in model.modules()) or any(
        getattr(part, "_compiled_call_impl", None) is not None
        or hasattr(vars(part).get("forward"), "_torchdynamo_orig_callable")
        for part in whole
    ):
        raise ConfigError(
            "The model should come uncompiled: selection needs a head that is not compiled. Found torch.compile around "
            "it. Leave it out and set torch_compile: true, which compiles all that lies below the head."
        )

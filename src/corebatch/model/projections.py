"""Which projection the gradients are taken of: the value projections of the last blocks that were executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from corebatch.errors import UnsupportedModelError
from corebatch.model.modes import base_model
from corebatch.model.tracing import trace

VALUE_NAMES = ("v_proj", "qkv_proj", "c_attn", "query_key_value", "Wqkv")
"""What value projections are called in transformers; all but the first compute queries and keys as well."""


@dataclass(frozen=True, slots=True)
class ValueProjection:
    """One value projection, and the part of it that is trained.

    Attributes:
        name: the module's name within the model.
        hooked: the module whose weight the features are derivatives by: LoRA's B if there is one, else the
            projection itself. Its input is `a` [B, T, R], its output `o` [B, T, O].
        columns: LongTensor of the output columns that are values, or None if all are.
        block: the transformer block that it belongs to.
    """

    name: str
    hooked: nn.Module
    columns: Tensor | None
    block: nn.Module

    def values(self, output: Tensor) -> Tensor:
        """[..., O] -> [..., columns that are values]."""
        return output if self.columns is None else output[..., self.columns.to(output.device)]


def executed_value_projections(
    model: nn.Module, batch: Mapping[str, Tensor], count: int
) -> tuple[ValueProjection, ...]:
    """The value projections of the last `count` blocks (all, if the model has fewer), in the order in which one
    traced forward executed them.

    Names tell nothing of the order of execution, and a model
    may skip or share layers.

    Raises:
        UnsupportedModelError: no known projection was executed; the message lists what was.
    """
    calls: list[str] = []
    linear: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def hook(*_: Any) -> None:
            if name.rsplit(".", 1)[-1] in VALUE_NAMES:
                calls.append(name)
            elif not list(module.children()):
                linear.append(name)

        return module.register_forward_hook(hook)

    trace(model, batch, [watch(name, module) for name, module in model.named_modules() if name])
    names = list(dict.fromkeys(reversed(calls)))[::-1]  # the last call of each counts
    if not names:
        leaves = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in linear})
        raise UnsupportedModelError(
            f"No value projection was executed: expected a module called {', '.join(VALUE_NAMES)}. "
            f"{type(base_model(model)).__name__} executed {', '.join(leaves) or 'nothing'}. "
            "Use coreset.scoring none, or a scorer that needs no projection (representation, logits, loss)."
        )
    return tuple(_describe(model, name) for name in names[-count:])


def check_executed(found: int, expected: int) -> None:
    """Raises UnsupportedModelError if value projections that were traced did not run in a later forward."""
    if found != expected:
        raise UnsupportedModelError(
            f"The {expected} traced value projections should all run in each forward. Found {found} that did: were "
            "adapters switched off or merged since the first batch?"
        )


def _describe(model: nn.Module, name: str) -> ValueProjection:
    module = model.get_submodule(name)
    width = _output_width(module)
    attention = model.get_submodule(name.rpartition(".")[0])
    columns = value_columns(name.rsplit(".", 1)[-1], width, base_model(model).config.get_text_config(), attention)
    block = re.match(r"(.*\.\d+)\.", name)
    if block is None:
        raise UnsupportedModelError(f"Expected {name!r} inside a list of blocks such as 'model.layers.0'. Found none.")
    return ValueProjection(name, _trained_part(module), columns, model.get_submodule(block.group(1)))


def _trained_part(module: nn.Module) -> nn.Module:
    """LoRA's B of the active adapter, or the module itself."""
    adapters = getattr(module, "lora_B", None)
    if isinstance(adapters, nn.ModuleDict) and not getattr(module, "merged", False):
        active = [name for name in module.active_adapters if name in adapters]  # type: ignore[union-attr]
        trained = [name for name in active if adapters[name].weight.requires_grad] or active
        if len(trained) > 1:
            raise UnsupportedModelError(
                f"Expected one active LoRA adapter on the value projection. Found {', '.join(trained)}."
            )
        if trained:
            return adapters[trained[0]]
    base = getattr(module, "base_layer", None)
    return base if isinstance(base, nn.Module) else module


def _output_width(module: nn.Module) -> int:
    base = getattr(module, "base_layer", module)
    for attribute in ("out_features", "nf"):  # nn.Linear and its kin; GPT-2's Conv1D
        width = getattr(base, attribute, None)
        if isinstance(width, int):
            return width
    raise UnsupportedModelError(f"Expected a linear value projection with `out_features`. Found {type(base).__name__}.")


def _heads(config: Any, attention: Any) -> tuple[int, int, int]:
    """Heads of queries, heads of values, and their size: what the layer itself says, else the configuration, which may
    have one number where layers differ."""
    sizes: list[int | None] = []
    for names in (
        ("num_heads", "num_attention_heads", "num_q_heads", "n_heads"),
        ("num_key_value_heads", "num_kv_heads", "num_v_heads"),
        ("head_dim",),
    ):
        found = (getattr(place, name, None) for place in (attention, config) for name in names)
        sizes.append(next((value for value in found if isinstance(value, int) and value > 0), None))
    heads, values, size = sizes
    heads = heads or 1
    return heads, values or heads, size or config.hidden_size // heads


def value_columns(kind: str, width: int, config: Any, attention: Any = None) -> Tensor | None:
    """Which output columns of a projection called `kind` are values; None if all are.

    Args:
        kind: one of VALUE_NAMES.
        width: number of output columns.
        config: the text configuration of the model.
        attention: the module that the projection belongs to.

    Raises:
        UnsupportedModelError: the layout of a fused projection is not known.
    """
    if kind == "v_proj":
        return None
    model_type = getattr(config, "model_type", "")
    heads, kv_heads, head_dim = _heads(config, attention)
    columns = torch.arange(width)

    def interleaved(groups: int) -> Tensor:
        """Each group of heads holds its queries, then its keys, then its values."""
        return columns.view(groups, -1, head_dim)[:, -1].flatten()

    if model_type == "falcon":
        if config.new_decoder_architecture:
            return interleaved(int(config.num_kv_heads))
        return columns[-head_dim:] if config.multi_query else interleaved(heads)
    if model_type == "gpt_bigcode":
        return columns[-head_dim:] if config.multi_query else interleaved(heads)
    if kind == "query_key_value" and width == 3 * heads * head_dim:
        return interleaved(heads)
    if (
        kind != "query_key_value"
        and model_type not in ("codegen", "minimax")
        and width == (heads + 2 * kv_heads) * head_dim
    ):
        return columns[-kv_heads * head_dim :]
    raise UnsupportedModelError(
        f"The layout of {kind!r} with {width} columns is not known for model type {model_type!r} "
        f"({heads} heads, {kv_heads} for keys and values, of {head_dim})."
    )

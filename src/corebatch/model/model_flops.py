"""Which weights and which attention a token meets in one model, layer by layer.

One number of the configuration does not stand for all layers: heads and their sizes differ, some attend to a window,
some are no attention at all, blocks are shared or run several times, parts of a multimodal model do not see text. So
the modules are read, and how often each runs is seen in one forward of a short row. What cannot be counted gives no
count and says why; it never stops a run.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from corebatch.model.flops import ModelFlops
from corebatch.model.tracing import trace

_OUTPUT = ("o_proj", "out_proj", "c_proj", "dense", "wo", "out_lin", "attn_out")
"""What the projection of an attention's context is called: as many inputs as heads x the size of a value."""
_OTHER = re.compile(
    r"Mamba|DeltaNet|Rwkv|RWKV|Recurrent|Lightning|LinearAttention|Retention|ShortConv|SSM|LSTM|DiffLlama|RGLRU|Griffin"
)
"""Classes of layers that are no attention over earlier positions, each with each, once."""
_ATTENTION = re.compile(r"attention", re.I)
_COUNTED_KINDS = ("full_attention", "attention", "sliding_attention", "dense", "sparse", "mlp", "moe")
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
_ACTIVE = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")

Calls = Mapping[str, int]
"""How often each module ran, by its name."""


class Uncounted(Exception):
    """Why there is no count, in a few words."""


def model_flops(model: Any, batch: Mapping[str, Tensor] | None = None) -> ModelFlops | None:
    """FLOPs of one token of a transformers causal LM, with or without adapters; None where they cannot be counted.

    Tables that are looked up do not multiply anything; a head that is tied to one does, and counts once. Of a mixture
    of experts the active ones count. Gains and biases are left out.

    Args:
        batch: a row of it is traced, to see what runs and how often. Without it every weight is taken to run once.
    """
    return flops_or_reason(model, batch)[0]


def flops_or_reason(model: Any, batch: Mapping[str, Tensor] | None = None) -> tuple[ModelFlops | None, str]:
    """`model_flops`, and where there is no count the reason."""
    try:
        calls = None if batch is None else _traced(model, batch)
        weights, trained = _weights(model, calls)
        full, windows = _attention(model, calls)
        return ModelFlops(weights=weights, trained_weights=trained, attention=full, windows=windows), ""
    except Uncounted as reason:
        return None, str(reason)
    except Exception as error:  # of somebody's configuration or forward: a count is not worth a run
        return None, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def _traced(model: nn.Module, batch: Mapping[str, Tensor]) -> Calls:
    calls: Counter[str] = Counter()
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: calls.update((name,)))
        for name, module in model.named_modules(remove_duplicate=False)
    ]
    trace(model, batch, hooks)
    return calls


def _text_config(model: Any) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _setting(config: Any, names: tuple[str, ...]) -> Any:
    """The first of these settings that is there and has a value."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except Exception:  # transformers 5 refuses to give one number for layers that differ
            continue
        if value:
            return value
    return None


def largest(config: Any, name: str) -> int | None:
    """A size that may differ by layer (a list, or configurations of single layers), of the layer where it is largest;
    None if it is not known."""
    value = _setting(config, (name,))
    if value is None:
        layers = getattr(config, "per_layer_config", None)
        each = layers.values() if isinstance(layers, Mapping) else layers
        value = [found for layer in each or () if (found := _setting(layer, (name,)))]
    sizes = [size for size in (value if isinstance(value, list | tuple) else [value]) if isinstance(size, int)]
    return max(sizes, default=None)


# ---- weights ---------------------------------------------------------------------------------------------------------


def _weights(model: Any, calls: Calls | None) -> tuple[float, float]:
    """N, and N' of them that are trained."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    multiplied, config = id(getattr(head, "weight", None)), _text_config(model)
    total = trained = 0.0
    for name, parameter in model.named_parameters():
        shape = _shape(parameter)
        owner, _, kind = name.rpartition(".")
        if len(shape) < 2 or "bias" in kind or (id(parameter) in tables and id(parameter) != multiplied):
            continue
        if "original_module" in name.split("."):  # PEFT keeps what it has put a trained copy in the place of
            continue
        times = 1.0 if id(parameter) == multiplied else _times(owner, calls)
        count = math.prod(shape) * times * _active(name, shape, config)
        total += count
        trained += count * parameter.requires_grad
    if not total:
        raise Uncounted("its weights have no shapes of their own")
    return total, trained


def _shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """As the layer uses it: ZeRO-3 leaves an empty tensor, bitsandbytes packs two weights into a byte."""
    packed = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return tuple(getattr(parameter, "ds_shape", None) or packed or parameter.shape)


def _times(owner: str, calls: Calls | None) -> float:
    """How often a token meets the weights of a module: as often as it runs. Experts run where they are chosen. Where
    nothing within a module runs, though it does itself, a kernel reads the weights in it (fused adapters)."""
    if calls is None:
        return 1.0
    parts = owner.split(".")
    if "experts" in parts:
        return float(calls.get(".".join(parts[: parts.index("experts")]), 0))
    if calls.get(owner):
        return float(calls[owner])
    holder = owner
    while holder := holder.rpartition(".")[0]:
        if any(name.startswith(f"{holder}.") for name in calls):
            return 0.0
        if calls.get(holder):
            return float(calls[holder])
    return 0.0


def _active(name: str, shape: tuple[int, ...], config: Any) -> float:
    """The part of a weight that a token meets: of experts, those that it is sent to."""
    experts = _setting(config, _EXPERTS)
    stacked = len(shape) == 3 and isinstance(experts, int) and experts > 1 and shape[0] == experts
    if not stacked and "experts" not in name.split("."):
        return 1.0
    active = _setting(config, _ACTIVE)
    if isinstance(active, list | tuple) and len(set(active)) == 1:
        active = active[0]
    if isinstance(experts, list | tuple) and len(set(experts)) == 1:
        experts = experts[0]
    if not isinstance(active, int) or not isinstance(experts, int):
        raise Uncounted("it has experts, and its configuration does not say how many of them a token is sent to")
    return active / experts


# ---- attention -------------------------------------------------------------------------------------------------------


def _attention(model: Any, calls: Calls | None) -> tuple[float, dict[int, float]]:
    """FLOPs of a forward for one position attended to: of layers that see all positions, and by the window of those
    that see so many."""
    config = _text_config(model)
    if config is None:
        return 0.0, {}
    _check_kinds(model, config, calls)
    full, windows = 0.0, dict[int, float]()
    for place, (module, times) in enumerate(_attention_modules(model, calls)):
        cost, window = times * _size(module), _window(module, place, config)
        if window is None:
            full += cost
        else:
            windows[window] = windows.get(window, 0.0) + cost
    if not full and not windows:
        full = _configured(config)
    return full, windows


def _check_kinds(model: Any, config: Any, calls: Calls | None) -> None:
    """Raises Uncounted for layers that are not attention over earlier positions, each with each."""
    for name, module in model.named_modules():
        kind = type(module).__name__
        ran = calls is None or bool(calls.get(name))
        if ran and not isinstance(module, PreTrainedModel) and _OTHER.search(kind):
            raise Uncounted(f"it has layers ({kind}) whose work over a row is not counted")
    other = [kind for kind in _setting(config, ("layer_types",)) or () if kind not in _COUNTED_KINDS]
    if other:
        raise Uncounted(f"it has layers of type {other[0]}, which is not counted")


def _attention_modules(model: Any, calls: Calls | None) -> Iterator[tuple[nn.Module, int]]:
    for name, module in model.named_modules():
        if _ATTENTION.search(type(module).__name__) and _output(module) is not None:
            times = 1 if calls is None else calls.get(name, 0)
            if times:
                yield module, times


def _output(module: nn.Module) -> int | None:
    """Inputs of the module's own output projection."""
    for name in _OUTPUT:
        child = getattr(module, name, None)
        base = getattr(child, "base_layer", child)
        for attribute in ("in_features", "nx"):
            width = getattr(base, attribute, None)
            if isinstance(width, int):
                return width
    return None


def _size(module: nn.Module) -> float:
    """2 x (width of all queries + width of all values): a product with each key, and one with each value. The two
    differ in latent attention."""
    values = _output(module) or 0
    each = getattr(module, "v_head_dim", None)
    query = getattr(module, "qk_head_dim", None) or getattr(module, "head_dim", None)
    queries = values // each * query if isinstance(each, int) and isinstance(query, int) else values
    return float(2 * (queries + values))


def _window(module: nn.Module, place: int, config: Any) -> int | None:
    """How many positions a layer sees at most; None for all before it."""
    kinds = _setting(config, ("layer_types",))
    layer = getattr(module, "layer_idx", None)
    layer = layer if isinstance(layer, int) else place
    if kinds and layer < len(kinds) and kinds[layer] != "sliding_attention":
        return None
    window = getattr(module, "sliding_window", None) or _setting(config, ("sliding_window",))
    unused = getattr(config, "use_sliding_window", True) is False
    return int(window) if isinstance(window, int) and not unused else None


def _configured(config: Any) -> float:
    """By the configuration, for attention whose modules are not known; layers are alike there."""
    layers, heads = _setting(config, ("num_hidden_layers",)), _setting(config, ("num_attention_heads",))
    hidden, size = _setting(config, ("hidden_size",)), _setting(config, ("head_dim",))
    if isinstance(layers, int) and isinstance(heads, int) and isinstance(size or hidden, int):
        return float(4 * layers * heads * (size or hidden / heads))
    raise Uncounted("the heads of its layers are not known")

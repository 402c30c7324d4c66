"""Whether the loss that a model computes is the cross-entropy that corebatch scores and weights, part by part.

Three parts can differ, and are looked at apart: the logits (soft caps, scales), by our token losses against those of
the logits that the model returns; what is done with them (labels not shifted, smoothing, further heads), by the model's
loss against the cross-entropy of its own logits, which agree to rounding; and what is added, however small (a router's
loss), by labels that train nothing, whose loss is zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from corebatch.errors import UNTOUCHED, LossMismatchError, UnsupportedModelError
from corebatch.model.modes import base_model, forward_inputs, scoring_mode
from corebatch.model.rows import take_rows, trained_tokens
from corebatch.model.untraced import untraced
from corebatch.sampling.tags import untagged
from corebatch.scoring import Loss
from corebatch.types import IGNORED

LOSS_TOLERANCE, SAME_LOGITS, SAME_LOGITS_LOW = 1e-3, 1e-5, 1e-2
"""Of max(1, loss): ours to the model's; the model's to that of its own logits, and where it is computed in 16 bits."""
SUSPECTS = (
    "output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "aux_loss_coef", "router_z_loss_coef",
    "z_loss_coef", "num_nextn_predict_layers", "num_mtp_layers", "mtp_loss_weight", "final_logit_softcapping",
    "logit_scale", "logits_scaling", "label_smoothing",
)  # fmt: skip
"""Settings of a model that change its loss or its logits."""


def check_model(model: Any) -> None:
    """Raises UnsupportedModelError for what is not a causal language model with an output head, with its name."""
    if model is None:  # made later, by model_init
        return
    base, needed = base_model(model), "corebatch trains causal language models with an output head"
    kind = type(base).__name__
    if not hasattr(base, "get_output_embeddings") or not hasattr(base, "config"):
        inside = [(n, type(m).__name__) for n, m in base.named_modules() if hasattr(m, "get_output_embeddings")]
        hint = f" around {inside[0][1]}: give the Trainer that one (`.{inside[0][0]}`)" if inside else ""
        raise UnsupportedModelError(f"{needed}. Found {kind}, a module without `config` or head of its own{hint}.")
    if getattr(base.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{needed}. Found {kind}, an encoder with a decoder, whose labels are other rows.")
    if base.get_output_embeddings() is None:
        heads = [name for name, _ in base.named_children() if name != getattr(base, "base_model_prefix", "")]
        hint = f"; beside the decoder it has {', '.join(heads)}" if heads else ""
        raise UnsupportedModelError(f"{needed}. Found {kind}, which has none (no output embeddings{hint}).")
    for adapter in getattr(model, "peft_config", {}).values():
        if str(getattr(adapter.peft_type, "value", adapter.peft_type)) == "ADAPTION_PROMPT":
            raise UnsupportedModelError(
                "Scores are read at value projections that see a row's own tokens. Found peft's adaption prompt "
                "(ADAPTION_PROMPT), which runs them on its prompt as well. Use LoRA or another adapter of weights, or "
                f"the plain Trainer ({UNTOUCHED})."
            )


def _text_config(model: Any) -> Any:
    config: Any = getattr(base_model(model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def check_router(model: Any) -> None:
    """Raises LossMismatchError for a model that adds a loss of its router, as its configuration says; None passes."""
    config = _text_config(model)
    weight = getattr(config, "router_aux_loss_coef", None)
    if getattr(config, "output_router_logits", False) and weight != 0:
        raise LossMismatchError(
            "corebatch scores and weights the cross-entropy of trained tokens, so the Trainer should minimise just "
            f"that. Found output_router_logits with router_aux_loss_coef {weight}: {type(base_model(model)).__name__} "
            "adds a loss of its router. Set config.output_router_logits to False (TRL: router_aux_loss_coef=0.0), or "
            f"train with the plain Trainer ({UNTOUCHED})."
        )


def check_normalization(model: Any) -> None:
    """Raises LossMismatchError for a model with batch normalization: a row's loss depends on the rows beside
    it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise LossMismatchError(
                f"A row's loss should not depend on the rows of its micro-batch, which corebatch puts together. Found "
                f"batch normalization in {type(base_model(model)).__name__} ({name}: {type(module).__name__}). Use "
                f"another normalization, or the plain Trainer ({UNTOUCHED})."
            )


def two_rows(batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The two shortest rows of the first batch that have a trained token, or one of them twice, for checks that need
    whole logits. Where no row has one, every token is a label."""
    rows = [untagged(row) for row in take_rows(batches, range(len(batches[0]["labels"])))]
    usable = [row for row in rows if bool((row["labels"][1:] != IGNORED).any())]
    usable = usable or [{**row, "labels": row["input_ids"]} for row in rows]
    usable.sort(key=lambda row: len(row["input_ids"]))
    return [usable[0], usable[min(1, len(usable) - 1)]]


def check_loss(model: Any, rows: Mapping[str, Tensor], *, counts_items: bool = True) -> None:
    """Compares our loss with the model's own on a few rows; forwards run on every rank, whatever its rows hold.

    Args:
        model: a causal language model, without what wraps it.
        rows: a batch of one or two rows.
        counts_items: the model takes `num_items_in_batch`.

    Raises:
        LossMismatchError: they differ; says in which part and by how much.
        UnsupportedModelError: the model returns no loss.
    """
    labels = rows["labels"]
    tokens = int(trained_tokens(labels).sum())
    given = {"num_items_in_batch": torch.tensor(tokens, device=labels.device)} if counts_items else {}
    losses = Loss().run(model, rows).losses
    assert losses is not None
    with scoring_mode(model):
        evaluated = model(**forward_inputs(rows), labels=labels, **given)
    with untraced(model, inner=True, outermost=_has_its_class_s_forward(base_model(model))):
        trained = _quietly(model)(**forward_inputs(rows), labels=labels, **given)
    added = zero_if_nothing_is_trained(model, rows, given["num_items_in_batch"]) if counts_items else None
    ours = float(losses.sum()) / max(tokens, 1)
    if tokens == 0 or not math.isfinite(ours):
        return  # a loss that is not finite is told with its step and examples when it is scored
    problem = _logits_differ(evaluated, labels, losses, ours)
    for output, mode in ((evaluated, "evaluation"), (trained, "training")):
        problem = problem or _more_than_logits(model, output, labels, mode)
    problem = problem or added
    if problem is not None:
        raise LossMismatchError(
            f"On the first batch the model's own loss should equal corebatch's cross-entropy ({ours:.6f}) in every "
            f"part. Found that {problem}. {_causes(model, trained)}Features and weights would be of another loss than "
            f"the one that is trained: switch it off, or train with the plain Trainer ({UNTOUCHED})."
        )


def zero_if_nothing_is_trained(model: Any, rows: Mapping[str, Tensor], items: Tensor) -> str | None:
    """What the model adds to its loss in training, in words; None where labels that train nothing give zero."""
    with untraced(model, inner=True, outermost=_has_its_class_s_forward(base_model(model))):
        labels = torch.full_like(rows["labels"], IGNORED)
        nothing = _quietly(model)(**forward_inputs(rows), labels=labels, num_items_in_batch=items)
    rest = float(loss_of(model, nothing))
    if not math.isfinite(rest) or rest == 0:
        return None
    return f"labels that train nothing give {rest:.6g} and not 0: something is added to the loss"


def _has_its_class_s_forward(base: Any) -> bool:
    """Not so where a forward was put into the object, as Liger and TRL do, whose fused losses build no logits in
    training and so tell nothing. Accelerate's autocast around the class's own does not count."""
    put = vars(base).get("_original_forward", vars(base).get("forward"))
    return put is None or getattr(put, "__func__", None) is type(base).forward


def _quietly(model: Any) -> Any:
    """What runs the model without the hooks of its outermost module, which count or log what is trained; with them on
    the engines that gather weights there."""
    sharded = isinstance(model, FSDPModule) or any(hasattr(p, "ds_id") for p in model.parameters())
    return model if sharded else model.forward


def loss_of(model: Any, output: Any) -> Tensor:
    loss = output.get("loss") if isinstance(output, Mapping) else output[0]
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        raise UnsupportedModelError(f"{type(model).__name__} should return its loss given labels. It did not.")
    return loss


def _cross_entropy(output: Any, labels: Tensor) -> Tensor | None:
    """Losses [B, T - 1] of the logits that the model returns, zero where nothing is trained; None if there are none."""
    logits = output.get("logits") if isinstance(output, Mapping) else output[1] if len(output) > 1 else None
    if not isinstance(logits, Tensor) or logits.shape[:2] != labels.shape:
        return None
    wide = (logits if logits.dtype == torch.float64 else logits.float())[:, :-1]
    targets = labels[:, 1:].to(logits.device)
    # Token by token in a row, as models do: sums over a vocabulary that lies across memory are exact to 1e-4 only.
    flat = F.cross_entropy(wide.flatten(0, 1), targets.flatten(), reduction="none", ignore_index=IGNORED)
    return flat.view(targets.shape)


def _logits_differ(output: Any, labels: Tensor, losses: Tensor, ours: float) -> str | None:
    """How the losses [B] of our rows differ from those of the model's logits; from its loss if it returns none."""
    expected = _cross_entropy(output, labels)
    tokens = max(int(trained_tokens(labels).sum()), 1)
    theirs = float(loss_of(output, output)) if expected is None else float(expected.sum()) / tokens
    if abs(theirs - ours) <= LOSS_TOLERANCE * max(1.0, abs(ours)):
        return None
    what = "its loss is" if expected is None else "the cross-entropy of its logits is"
    return f"{what} {theirs:.6f}, where ours, at the head's output, is {ours:.6f}: a soft cap or a scale of logits"


def _more_than_logits(model: Any, output: Any, labels: Tensor, mode: str) -> str | None:
    """How the model's loss differs from the cross-entropy of the logits that it was computed from."""
    loss, each = loss_of(model, output), _cross_entropy(output, labels)
    if each is None:
        return None
    tokens = int(trained_tokens(labels).sum())
    found, expected = float(loss), float(each.double().sum()) / tokens
    tolerance = SAME_LOGITS if loss.dtype.itemsize >= 4 else SAME_LOGITS_LOW
    if not math.isfinite(found) or abs(found - expected) <= tolerance * max(1.0, abs(expected)):
        return None
    return (
        f"in {mode} it is {found:.7g}, where the cross-entropy of its logits is {expected:.7g}: a term is added, "
        "labels are not shifted by one, or other labels than -100 are ignored"
    )


def _causes(model: Any, output: Any) -> str:
    """What the model's settings and outputs tell of it, in a sentence or none."""
    base, config = base_model(model), _text_config(model)
    found = [f"{key} {getattr(config, key)}" for key in SUSPECTS if getattr(config, key, None)]
    keys: Sequence[str] = list(output) if isinstance(output, Mapping) else ()
    found += [f"an output {key!r}" for key in keys if "loss" in key and key != "loss" and output[key] is not None]
    function = getattr(base, "loss_function", None)
    module = str(getattr(function, "__module__", "transformers"))
    if not module.startswith("transformers"):
        found.append(f"a loss_function from {module}")
    return f"{type(base).__name__} has {', '.join(found)}. " if found else ""

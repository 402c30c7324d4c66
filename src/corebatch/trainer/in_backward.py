"""Optimizers that update weights inside backward: one of our own, and what goes with such optimizers of others.

A weight is updated as soon as its gradient is there, and the gradient is freed, so that one weight's gradient is held
at a time. Nothing can be accumulated over micro-batches. A coreset step gives such an optimizer a large batch's update
in its one micro-batch: `gradient_accumulation_steps` 1, `pool_factor` k.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from corebatch.errors import CheckpointError, ConfigError
from corebatch.model.moments import TORCH_OWN, plain

logger = logging.getLogger(__name__)

HOOKS = "_post_accumulate_grad_hooks"
"""Attributes of a parameter: hooks that run when its gradient is there; what torch.distributed.optim leaves."""
LOMO = ("lomo", "adalomo")
OWN = "OptimizerInBackward"


class OptimizerInBackward(Optimizer):
    """Any optimizer, a part of it for each weight, that steps in backward.

    To the Trainer it is an optimizer like others: its groups are the ones given, a scheduler changes their learning
    rates, and its state dict is the one that the plain optimizer would have, so that either can go on from the other's
    checkpoint.

        trainer = CoresetTrainer(..., optimizer_cls_and_kwargs=(OptimizerInBackward, {"optimizer": AdamW, "lr": 1e-5}))

    Args:
        params: parameters or groups of them, as for any optimizer.
        optimizer: its class; one that looks at single weights and keeps all it knows in `state`, such as AdamW, SGD or
            Adafactor.
        settings: of the optimizer, and the defaults of the groups.

    Raises:
        ConfigError: several processes (gradients would not be those of all ranks), or a weight that has such an
            optimizer already.
    """

    def __init__(self, params: Iterable[Any], optimizer: type[Optimizer] = torch.optim.AdamW, **settings: Any) -> None:
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            raise ConfigError(
                f"OptimizerInBackward steps before ranks have exchanged gradients, so it needs one process. Found "
                f"{torch.distributed.get_world_size()}."
            )
        super().__init__(params, settings)
        self._parts: dict[nn.Parameter, tuple[Optimizer, int]] = {}
        self._handles: list[Any] = []
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if _own(parameter):
                    raise ConfigError(
                        f"A weight of shape {tuple(parameter.shape)} is updated in backward already: call "
                        "remove_hooks() on the OptimizerInBackward that it has."
                    )
                part = optimizer([{**group, "params": [parameter]}], **settings)
                self.state.update(part.state)  # what some set up at once, such as APOLLO its seeds
                part.state = self.state
                self._parts[parameter] = part, number
                # The optimizer's own defaults belong to the group as well.
                group.update({k: v for k, v in part.param_groups[0].items() if k not in group})
        for parameter in self._parts:
            self._handles.append(parameter.register_post_accumulate_grad_hook(self._update))

    @torch.no_grad()
    def _update(self, parameter: Tensor) -> None:
        part, number = self._parts[parameter]  # type: ignore[index]
        part.param_groups[0].update({k: v for k, v in self.param_groups[number].items() if k != "params"})
        part.step()
        parameter.grad = None

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Nothing: the weights were updated in backward.

        Raises:
            ConfigError: a closure, which would have to run backward in here.
        """
        if closure is not None:
            raise ConfigError("OptimizerInBackward takes no closure: its updates happen in backward.")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From the state dict of this or of the plain optimizer."""
        super().load_state_dict(state_dict)
        for part, _ in self._parts.values():
            part.state = self.state

    def remove_hooks(self) -> None:
        """Backward leaves the weights alone from now on."""
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _named(optim: str) -> bool:
    return optim.endswith("_layerwise") or optim in LOMO


def _own(parameter: Tensor) -> list[Any]:
    """The hooks on a parameter that are updates by OptimizerInBackward."""
    hooks = (getattr(parameter, HOOKS, None) or {}).values()
    return [hook for hook in hooks if isinstance(getattr(hook, "__self__", None), OptimizerInBackward)]


def updates_in_backward(trainer: Any) -> str | None:
    """What updates weights inside backward, in words for a message; None if nothing is seen to.

    Seen are transformers' layer-wise optimizers and LOMO by name, `OptimizerInBackward`, and any hook that waits for
    a weight's gradient: whether it updates the weight cannot be known. DeepSpeed's own hooks are none of these.
    """
    name = str(getattr(trainer.args.optim, "value", trainer.args.optim))
    given = getattr(trainer, "optimizer_cls_and_kwargs", None)
    if given is not None and isinstance(given[0], type) and issubclass(given[0], OptimizerInBackward):
        return OWN
    if given is None and _named(name):
        made = plain(trainer.optimizer)
        if made is None or hasattr(made, "optimizer_dict") or type(made).__name__.lower() in LOMO:
            return f"optim {name!r}"
    if _deepspeed(trainer):
        return None
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            continue
        if _own(parameter):
            return OWN
        if getattr(parameter, TORCH_OWN, None):
            return f"torch's optimizer in backward on {name}"
        for hook in (getattr(parameter, HOOKS, None) or {}).values():
            called = getattr(hook, "__qualname__", type(hook).__name__)
            return f"a hook on the gradient of {name} ({called})"
    return None


def check_in_backward(trainer: Any) -> bool:
    """Whether weights are updated inside backward, with everything that does not go with it refused.

    Raises:
        ConfigError: several micro-batches for a step, several ranks, or scaled float16 gradients.
    """
    found = updates_in_backward(trainer)
    if found is None:
        return False
    args = trainer.args
    if args.gradient_accumulation_steps > 1:
        raise ConfigError(
            f"{found} updates weights inside backward, so a step has one micro-batch: nothing can be accumulated. "
            f"Found gradient_accumulation_steps {args.gradient_accumulation_steps}. Set it to 1, and pool_factor as "
            "many times higher: the update is still that of the large batch. (A hook that updates nothing is taken for "
            "an optimizer: take it out.)"
        )
    if trainer.accelerator.num_processes > 1:
        raise ConfigError(
            f"{found} updates weights inside backward, before ranks have exchanged gradients: it goes with one "
            f"process. Found {trainer.accelerator.num_processes}."
        )
    if args.fp16:
        raise ConfigError(f"{found} would update weights with the scaled gradients of fp16. Use bf16.")
    return True


def moves_in_backward(trainer: Any) -> bool:
    """Whether weights move inside backward, asked when the optimizer is there, with its hooks.

    Such optimizers leave no gradient to be clipped, and the log says so if that was asked for. Under DeepSpeed
    Accelerate calls the engine's step, which clips, at the end of the last micro-batch's backward.

    Raises:
        ConfigError: see `check_in_backward`.
    """
    if check_in_backward(trainer):
        if trainer.args.max_grad_norm and trainer.is_world_process_zero():
            logger.warning(
                "max_grad_norm %s has no effect: weights are updated inside backward, one by one.",
                trainer.args.max_grad_norm,
            )
        return True
    return _deepspeed(trainer)


def _deepspeed(trainer: Any) -> bool:
    return getattr(trainer.accelerator.distributed_type, "value", "") == "DEEPSPEED"


def check_resume(trainer: Any) -> None:
    """Refuses to resume where the optimizer's state is known not to be in the checkpoint; warns where it may not be.

    transformers saves the state dict of a stand-in that knows nothing, neither moments nor schedule. LOMO has no state.

    Raises:
        CheckpointError: an optimizer of transformers that has state and does not save it.
    """
    found = updates_in_backward(trainer)
    if found in (None, OWN, "optim 'lomo'"):
        return
    without = f"With {found} a checkpoint has none of the optimizer's state"
    if not found.startswith("optim "):  # somebody's hook: perhaps its state is kept elsewhere, or there is none
        logger.warning("%s, unless you keep it yourself: the resumed run may not be the same.", without)
        return
    raise CheckpointError(
        f"{without}, so the resumed run would not be the same. corebatch.trainer.OptimizerInBackward saves its state; "
        "or start anew from the checkpoint's weights."
    )

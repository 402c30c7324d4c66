"""Whether an optimizer takes what `optim_args` gives it: transformers' builders pick the names that they know, and pass
over the others."""

from __future__ import annotations

from typing import Any

from transformers import Trainer, TrainingArguments

from corebatch.errors import ConfigError

_NO_VALUE = "?"
"""What no option can be made of: a builder that looks at it fails, or hands it on."""


def check_optim_args(args: TrainingArguments) -> None:
    """Raises ConfigError for a name in `optim_args` that the optimizer passes over, or for no list of key=value."""
    given = args.optim_args
    if not given:
        return
    try:
        options = dict(pair.split("=") for pair in str(given).replace(" ", "").split(","))
    except ValueError:
        raise ConfigError(f"optim_args should be key=value pairs with commas between. Found {given!r}.") from None
    idle = [name for name in options if _builds(args, options) == _builds(args, {**options, name: _NO_VALUE})]
    if idle:
        raise ConfigError(
            f"optim_args: the optimizer {getattr(args.optim, 'value', args.optim)} should take what is given. Found "
            f"{', '.join(idle)}, which it passes over. Learning rate, betas, epsilon and weight decay have keys of "
            "their own (learning_rate, adam_beta1, adam_beta2, adam_epsilon, weight_decay)."
        )


def _builds(args: TrainingArguments, options: dict[str, str]) -> Any:
    """What an optimizer would be made with; something unlike all else if the builder refuses the options, or cannot be
    asked without a model or a package."""
    before = args.optim_args
    try:
        args.optim_args = ",".join(f"{name}={value}" for name, value in options.items())
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
        return getattr(kind, "__qualname__", kind), settings
    except Exception:  # the builder's own, of any kind; `train` says it in its words
        return object()
    finally:
        args.optim_args = before

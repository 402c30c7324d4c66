"""Optimizers that `optim` may name beside those of transformers: pytorch-optimizer's for large batches, and MADA."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from corebatch.errors import ConfigError, MissingExtraError
from corebatch.optimizers.mada import MADA
from corebatch.optimizers.power import POWER, check_power
from corebatch.options import hint


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedOptimizer:
    """What is known of an optimizer.

    Attributes:
        kind: the class's name in pytorch-optimizer, or the class.
        adam: its own defaults of adam_beta1, adam_beta2 and adam_epsilon; None for what it has not.
        defaults: options that differ here from the class's own.
        whole: whether its step looks at whole tensors (their norms, their singular vectors), or at all weights at once:
            it cannot work on what an engine has divided among ranks.
        more: options that have another name in the class, or none.
        states: numbers that are kept for each that is trained.
    """

    kind: str | type
    adam: tuple[float | None, float | None, float | None]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)
    states: int = 2


OPTIMIZERS: dict[str, NamedOptimizer] = {
    "adan": NamedOptimizer(kind="Adan", adam=(0.98, 0.99, 1e-8), more={"beta_difference": 0.92}, states=4),
    "adopt": NamedOptimizer(kind="ADOPT", adam=(0.9, 0.9999, 1e-6), defaults={"weight_decouple": True}),
    "lamb": NamedOptimizer(kind="Lamb", adam=(0.9, 0.999, 1e-6), whole=True),
    "lars": NamedOptimizer(kind="LARS", adam=(None, None, None), whole=True, states=1),
    "lion": NamedOptimizer(kind="Lion", adam=(0.9, 0.99, None), states=1),
    "mada": NamedOptimizer(kind=MADA, adam=(0.9, 0.95, 1e-6), whole=True, states=7),
    "muon": NamedOptimizer(kind="Muon", adam=(0.9, 0.95, 1e-10), defaults={"use_adjusted_lr": True}, whole=True),
    "novograd": NamedOptimizer(kind="NovoGrad", adam=(0.95, 0.98, 1e-8), whole=True, states=1),
    "soap": NamedOptimizer(kind="SOAP", adam=(0.95, 0.95, 1e-8), whole=True),
}
"""By the word that `optim` takes. Defaults are those of the optimizers' papers, as pytorch-optimizer has them. Muon's
step of a matrix [O, R] has a factor 0.2 sqrt(max(O, R)) (arXiv 2502.16982), so that one learning rate is for all."""

ADAM = ("adam_beta1", "adam_beta2", "adam_epsilon")
_SET_HERE = {"self", "params", "lr", "betas", "eps", "weight_decay", "maximize", "kwargs", "clip_lambda"}
_SET_HERE |= {"adamw_betas", "adamw_eps", "adamw_wd"}


class Name(str):
    """A word where transformers has a member of an enumeration, whose `value` it asks for."""

    @property
    def value(self) -> str:
        return str(self)


def training_arguments(kind: Callable[..., Any], **values: Any) -> Any:
    """`kind(**values)`, a TrainingArguments or a class derived from it, where `optim` may be one of OPTIMIZERS and
    `lr_scheduler_type` may be "power".

    The optimizer's own defaults stand in for adam_beta1, adam_beta2 and adam_epsilon that are not given.

    Raises:
        ConfigError: an option, a beta or an epsilon that the optimizer has not; options of the schedule.
        MissingExtraError: pytorch-optimizer is not installed.
    """
    named = {key: Name(str(getattr(given, "value", given))) for key, given in values.items() if key in _NAMES}
    named = {key: name for key, name in named.items() if name in _NAMES[key]}
    values = {key: value for key, value in values.items() if key not in named}
    if "optim" in named:
        for key, default in zip(ADAM, OPTIMIZERS[named["optim"]].adam, strict=True):
            if default is not None:
                values.setdefault(key, default)
            elif key in values:
                raise ConfigError(f"optim {named['optim']!r} has no {key}. Found {values[key]}: leave it out.")
    made = kind(**values)
    for key, name in named.items():
        setattr(made, key, name)
    if "optim" in named:
        _options(made)
    if "lr_scheduler_type" in named:
        check_power(made)
    return made


_NAMES: dict[str, Collection[str]] = {"optim": OPTIMIZERS, "lr_scheduler_type": (POWER,)}


def takes_betas(optim: str) -> bool:
    """Whether the optimizer takes `adam_beta2`; those of transformers that do not look at it pass over it."""
    spec = OPTIMIZERS.get(optim)
    return spec is None or spec.adam[1] is not None


def make_optimizer(args: Any, model: nn.Module, decayed: Collection[str]) -> tuple[type, dict[str, Any]]:
    """The class and its arguments, as `optimizer_cls_and_kwargs` of a Trainer takes them.

    Args:
        args: TrainingArguments whose `optim` is one of OPTIMIZERS.
        model: with the weights that are trained.
        decayed: names of the weights that decay.

    Raises:
        ConfigError: an option that the optimizer has not; Muon, and no matrix to step by.
        MissingExtraError: pytorch-optimizer is not installed.
    """
    kind, options, name = _class(args.optim), _options(args), str(args.optim)
    spec = OPTIMIZERS[name]
    betas: tuple[float, ...] = (args.adam_beta1, args.adam_beta2)
    if "beta_difference" in options:
        betas = (args.adam_beta1, options.pop("beta_difference"), args.adam_beta2)
    made = {"lr": args.learning_rate, **options}
    prefix = "adamw_" if name == "muon" else ""
    if spec.adam[1] is not None:
        made[f"{prefix}betas"] = betas
    if spec.adam[2] is not None:
        made[f"{prefix}eps"] = args.adam_epsilon
    if name == "muon":
        made.setdefault("adamw_lr", args.learning_rate)
        made["params"] = _muon_groups(model, decayed, args.weight_decay)
    return kind, made


def _class(name: str) -> type:
    kind = OPTIMIZERS[name].kind
    if isinstance(kind, type):
        return kind
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise MissingExtraError(
            f"optim {str(name)!r} needs pytorch-optimizer: pip install 'corebatch[optimizers]'."
        ) from error
    found: type = getattr(pytorch_optimizer, kind)
    return found


def _options(args: Any) -> dict[str, Any]:
    """What `optim_args` says, beside the optimizer's defaults here. Raises ConfigError: an option that it has not, or a
    value of another type."""
    spec, name = OPTIMIZERS[args.optim], str(args.optim)
    parameters = inspect.signature(_class(args.optim)).parameters
    known = {key: p.default for key, p in parameters.items() if key not in _SET_HERE} | dict(spec.more)
    found = {**spec.more, **spec.defaults}
    for pair in str(args.optim_args or "").replace(" ", "").split(","):
        key, equals, text = pair.partition("=")
        if not pair:
            continue
        if not equals or key not in known:
            raise ConfigError(
                f"optim_args of {name!r} should be key=value pairs with commas between, of {', '.join(known)}; "
                "learning rate, betas, epsilon and weight decay have keys of their own. Found "
                f"{pair!r}.{hint(key, known)}"
            )
        found[key] = _value(f"optim_args: {key}", text, known[key])
    return found


def _value(what: str, text: str, default: Any) -> Any:
    """The text as a value of the default's type, or where that is None as a bool, a number or a word."""
    kinds: list[Callable[[str], Any]] = [_truth, int, float, str] if default is None else [type(default)]
    if isinstance(default, bool):
        kinds = [_truth]
    for kind in kinds:
        try:
            return kind(text)
        except ValueError:
            continue
    raise ConfigError(f"{what} should be like {default!r}. Found {text!r}.")


def _truth(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def kept_numbers(optim: str, model: nn.Module) -> int:
    """How many numbers the optimizer will keep for what is trained; by another name AdamW's two for each."""
    spec = OPTIMIZERS.get(optim)
    shapes = [p.shape for p in model.parameters() if p.requires_grad]
    kept = (2 if spec is None else spec.states) * sum(shape.numel() for shape in shapes)
    if optim == "muon":
        kept -= sum(p.numel() for _, p in _hidden_matrices(model))
    if optim == "soap":  # a preconditioner and its eigenvectors for each side of a matrix that is not too long
        kept += sum(2 * side**2 for shape in shapes if len(shape) == 2 for side in shape if side <= 10_000)
    return kept


def _hidden_matrices(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """The matrices that are trained between embedding and head, with their names."""
    find: Any = getattr(model, "get_output_embeddings", None)
    head = None if find is None else find()
    ends = [head] if head is not None else []
    ends += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    outside = {id(p) for module in ends for p in module.parameters(recurse=False)}
    named = model.named_parameters()
    return [(name, p) for name, p in named if p.requires_grad and p.ndim == 2 and id(p) not in outside]


def _muon_groups(model: nn.Module, decayed: Collection[str], decay: float) -> list[dict[str, Any]]:
    """Muon for the matrices between embedding and head, AdamW for all else, each with and without decay."""
    hidden = {name for name, _ in _hidden_matrices(model)}
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name in hidden, name in decayed), []).append(parameter)
    if not hidden:
        raise ConfigError("optim 'muon' steps by matrices between embedding and head. Found none that is trained.")
    return [
        {"params": parameters, "use_muon": matrix, "weight_decay": decay if decays else 0.0}
        for (matrix, decays), parameters in groups.items()
    ]

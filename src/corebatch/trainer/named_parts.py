"""What a Trainer makes by name that transformers does not know: optimizers of large batches, the Power scheduler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.optim.lr_scheduler import LambdaLR

from corebatch.errors import ConfigError, DataError
from corebatch.optimizers import OPTIMIZERS, POWER, PowerLaw, make_optimizer
from corebatch.optimizers.power import check_power
from corebatch.sampling.buckets import row_lengths
from corebatch.sampling.tags import is_stream
from corebatch.trainer.engine import sharded

if TYPE_CHECKING:
    from transformers import Trainer as _Base  # what the mixin is mixed into
else:
    _Base = object


class NamedParts(_Base):
    """Makes what `optim` and `lr_scheduler_type` name by `optimizers.training_arguments`; all else is the parent's."""

    optimizer: Any
    optimizer_cls_and_kwargs: Any
    lr_scheduler: Any

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's. Raises ConfigError: an optimizer of whole tensors, and an engine that divides them."""
        given, name = self.optimizer_cls_and_kwargs, str(self.args.optim)
        if given is not None or self.optimizer is not None or name not in OPTIMIZERS:
            return super().create_optimizer(*args, **kwargs)
        if OPTIMIZERS[name].whole and (engine := sharded(self)):
            others = ", ".join(other for other, spec in OPTIMIZERS.items() if not spec.whole)
            raise ConfigError(
                f"optim {name!r} looks at whole tensors, which {engine} divides among ranks: its steps would be "
                f"others. Use {others} or adamw_torch."
            )
        model: Any = args[0] if args and args[0] is not None else self.model
        try:
            self.optimizer_cls_and_kwargs = make_optimizer(self.args, model, self.get_decay_parameter_names(model))
            return super().create_optimizer(*args, **kwargs)
        finally:
            self.optimizer_cls_and_kwargs = given

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The parent's. Raises ConfigError: the schedule power, and nobody says how many tokens a step has."""
        kind = self.args.lr_scheduler_type
        if str(getattr(kind, "value", kind)) != POWER or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        args, options = self.args, check_power(self.args)
        rows = args.gradient_accumulation_steps * self._train_batch_size * self.accelerator.num_processes
        if "tokens_per_step" not in options:
            options["tokens_per_step"] = rows * self._tokens_of_a_row()
        warmup = args.get_warmup_steps(num_training_steps)
        law = PowerLaw(highest=args.learning_rate, rows=rows, steps=num_training_steps, warmup=warmup, **options)
        self.lr_scheduler = LambdaLR(self.optimizer if optimizer is None else optimizer, lambda step: law(step))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def _tokens_of_a_row(self) -> float:
        """The mean over the train set."""
        dataset = self.train_dataset
        try:
            if dataset is None or is_stream(dataset):
                raise DataError("The data should have a length. Found a stream.")
            return float(row_lengths(dataset).double().mean())
        except DataError as error:
            raise ConfigError(
                "The schedule power needs lr_scheduler_kwargs.tokens_per_step where the data do not say how long their "
                f"rows are: {error}"
            ) from error

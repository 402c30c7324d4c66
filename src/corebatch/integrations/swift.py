"""ms-swift: `swift sft --external_plugins coresets.py ...`, where coresets.py says

    from corebatch.integrations.swift import use_coresets

    use_coresets(pool_factor=4)

A row's source is its `channel`, the host's own name for where a row comes from. Settings that take no part (pool_factor
1, plain micro-batches) leave the host as it is.
"""

from __future__ import annotations

from typing import Any, ClassVar

from swift.trainers import Seq2SeqTrainer, TrainerFactory

from corebatch.integrations.options import LOSS, NUMBERS, RAY, ROWS, SHARED, HostOption, check_options, is_shared
from corebatch.sampling.tags import NO_COLUMN
from corebatch.trainer import CoresetConfig, CoresetMixin

CHANNEL = "channel"
WHOLE_TURNS = {"default", "last_round", "all", "ignore_empty_think"}
"""Parts of `loss_scale` by which a token is trained or not."""


def weighs_tokens(value: Any) -> bool:
    """Whether `loss_scale` gives trained tokens weights of their own."""
    return bool(value) and not set(str(value).split("+")) <= WHOLE_TURNS


OPTIONS = (
    HostOption("rlhf_type", LOSS, "swift sft or swift pt"),
    HostOption("task_type", LOSS, "task_type causal_lm", lambda v: v not in (None, "causal_lm")),
    HostOption("packing", ROWS, "packing false; padding_free of use_coresets packs what was chosen"),
    HostOption("padding_free", ROWS, "padding_free false; padding_free of use_coresets packs what was chosen"),
    HostOption("streaming", NUMBERS, "streaming false"),
    HostOption("truncation_strategy", "a row would become several", "delete, left or right", lambda v: v == "split"),
    HostOption("group_by_length", "the loader looks lengths up by itself", "by_length of use_coresets"),
    HostOption("loss_scale", LOSS, "default, last_round or all", weighs_tokens),
    HostOption("loss_type", LOSS, "no loss_type"),
    HostOption("enable_dft_loss", LOSS, "enable_dft_loss false"),
    HostOption("enable_channel_loss", "weighted rows do not go through it", "loss_by_source of use_coresets"),
    HostOption("use_logits_to_keep", "labels would be cut after rows are chosen", "use_logits_to_keep false"),
    HostOption("sequence_parallel_size", SHARED, "sequence_parallel_size 1", is_shared),
    HostOption("deepspeed_autotp_size", SHARED, "no deepspeed_autotp_size", is_shared),
    HostOption("use_flash_ckpt", "checkpoints are written behind the Trainer's back", "use_flash_ckpt false"),
    HostOption("use_ray", RAY, "NPROC_PER_NODE"),
)


class SwiftTrainer(Seq2SeqTrainer):
    """The host's Trainer as the Trainer that selection is mixed into: a loader that is asked for without words, and
    batches of rows alone."""

    _skipped = 0

    def get_train_dataloader(self) -> Any:
        return super().get_train_dataloader(skip_batches=self._skipped)

    def get_use_logits_to_keep(self, default_value: bool = True) -> bool:
        """Never: it cuts labels to their trained part, once for a whole batch."""
        return False

    def _prepare_inputs(self, inputs: Any) -> Any:
        made = super()._prepare_inputs(inputs)
        made.pop("compute_loss_func", None)  # how the host tells its own compute_loss of a loss_type
        return made


class CoresetSwiftTrainer(CoresetMixin, SwiftTrainer):
    """The host's Trainer with selection in it, by the settings of `use_coresets`."""

    settings: ClassVar[CoresetConfig] = CoresetConfig(source_column=CHANNEL)

    def __init__(self, model: Any, args: Any, template: Any, train_dataset: Any, *more: Any, **kwargs: Any) -> None:
        if hasattr(train_dataset, "n_try_fetch"):
            train_dataset.n_try_fetch = 1  # a row that cannot be read is an error, not another row by its number
        coreset, table = self.settings, getattr(train_dataset, "dataset", train_dataset)
        if coreset.source_column == CHANNEL and CHANNEL not in table.column_names:
            coreset = coreset.changed(source_column=NO_COLUMN)
        super().__init__(model, args, template, train_dataset, *more, coreset=coreset, **kwargs)

    def get_train_dataloader(self, skip_batches: int = 0) -> Any:
        """The loader over pools; the host asks for one without the first batches when a run is gone on with."""
        self._skipped = skip_batches
        try:
            return super().get_train_dataloader()
        finally:
            self._skipped = 0


def use_coresets(**settings: Any) -> None:
    """Has `swift sft` train by selection, from a file that `external_plugins` names.

    Args:
        settings: fields of `CoresetConfig`, and `recipe`. `source_column` is `channel` unless it is given.

    Raises:
        ConfigError: an unknown or bad setting; later, before the model is loaded, an option of the host that selection
            does not go with.
    """
    coreset = CoresetConfig.from_dict({"source_column": CHANNEL, **settings})
    if not coreset.takes_part:
        return
    CoresetSwiftTrainer.settings = coreset
    usual = TrainerFactory.get_training_args

    def checked(args: Any) -> Any:
        check_options("ms-swift", vars(args), OPTIONS)
        return usual(args)

    TrainerFactory.TRAINER_MAPPING["causal_lm"] = f"{__name__}.{CoresetSwiftTrainer.__qualname__}"
    TrainerFactory.get_training_args = staticmethod(checked)

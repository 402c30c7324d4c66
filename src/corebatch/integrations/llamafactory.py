"""LLaMA-Factory: its training command with selection in it, and a block `coreset:` in its YAML.

    python -m corebatch.integrations.llamafactory config.yaml [key=value ...]
    torchrun --nproc_per_node 8 -m corebatch.integrations.llamafactory config.yaml

The host has no plug-ins, so its class is swapped for as long as it trains. With a `coreset:` that takes no part
(pool_factor 1, plain micro-batches) nothing of the host is touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from corebatch.errors import ConfigError, DataError
from corebatch.integrations.options import LOSS, NUMBERS, RAY, ROWS, HostOption, check_options
from corebatch.integrations.patching import replaced
from corebatch.integrations.rows import with_sources
from corebatch.sampling.tags import NO_COLUMN
from corebatch.trainer import CoresetConfig, CoresetMixin

OTHER = "training does not go through the host's Trainer for sft"
OPTIONS = (
    HostOption("stage", LOSS, "stage: sft", lambda v: v not in (None, "sft")),
    HostOption("packing", ROWS, "packing: false; coreset.padding_free packs what was chosen"),
    HostOption("neat_packing", ROWS, "neat_packing: false; coreset.padding_free packs what was chosen"),
    HostOption("streaming", NUMBERS, "streaming: false"),
    HostOption("disable_shuffling", "rows come source by source until they are shuffled", "disable_shuffling: false"),
    HostOption("use_dft_loss", LOSS, "use_dft_loss: false"),
    HostOption("use_asft_loss", LOSS, "use_asft_loss: false"),
    HostOption("use_eaft_loss", LOSS, "use_eaft_loss: false"),
    HostOption("use_mca", OTHER, "use_mca: false"),
    HostOption("use_hyper_parallel", OTHER, "use_hyper_parallel: false"),
    HostOption("use_ray", RAY, "torchrun"),
    HostOption("remove_unused_columns", "the host sets it to false itself", "no remove_unused_columns"),
)


def train(values: dict[str, Any]) -> None:
    """Trains as `llamafactory-cli train` does.

    Args:
        values: of its YAML, with the block `coreset`.

    Raises:
        ConfigError: a key of `coreset` is unknown or out of range, or the YAML has an option that selection does not go
            with; before the model is loaded.
    """
    from llamafactory.train.tuner import run_exp

    values = dict(values)
    coreset = CoresetConfig.from_dict(values.pop("coreset", None))
    if not coreset.takes_part:
        run_exp(args=values)
        return
    check_options("LLaMA-Factory", values, OPTIONS)
    with selecting(coreset):
        run_exp(args=values)


@contextmanager
def selecting(coreset: CoresetConfig) -> Iterator[None]:
    """While open, the host's Trainer for sft chooses, and its rows keep the data set that they came from, under its
    name in dataset_info.json, or their own column of sources."""
    from llamafactory.data import loader
    from llamafactory.train.sft import workflow

    listed, align, preprocess = loader.get_dataset_list, loader.align_dataset, loader._get_preprocessed_dataset
    column = coreset.source_column

    def named(dataset_names: Any, *args: Any) -> Any:
        made = listed(dataset_names, *args)
        for name, attr in zip(dataset_names or (), made, strict=True):
            attr.corebatch_source = name
        return made

    def aligned(dataset: Any, dataset_attr: Any, *args: Any) -> Any:
        name = dataset_attr.corebatch_source
        return with_sources(lambda dataset: (align(dataset, dataset_attr, *args), None), dataset, column, None, name)[0]

    def preprocessed(dataset: Any, *args: Any, is_eval: bool = False, **kwargs: Any) -> Any:
        if is_eval or dataset is None:
            return preprocess(dataset, *args, is_eval=is_eval, **kwargs)
        made = with_sources(lambda dataset: (preprocess(dataset, *args, **kwargs), None), dataset, column, None, "all")
        return made[0]

    patches = {"get_dataset_list": named, "align_dataset": aligned, "_get_preprocessed_dataset": preprocessed}
    with (
        replaced(loader, **({} if column == NO_COLUMN else patches)),
        replaced(workflow, CustomSeq2SeqTrainer=trainer_class(workflow.CustomSeq2SeqTrainer, coreset)),
    ):
        yield


def trainer_class(usual: Any, coreset: CoresetConfig) -> type:
    """The host's Trainer with selection in it."""

    class CoresetLlamaFactoryTrainer(CoresetMixin, usual):
        def __init__(self, *args: Any, processor: Any = None, **kwargs: Any) -> None:
            if processor is not None:
                raise ConfigError(
                    "Rows of pictures or sound cannot be cut and put together. Found a model with a "
                    f"{type(processor).__name__} (model_name_or_path): use one of text alone."
                )
            columns = getattr(kwargs.get("train_dataset"), "column_names", None)
            if columns is not None and coreset.source_column not in (NO_COLUMN, *columns):
                raise DataError(
                    f"Rows that LLaMA-Factory prepared should have the column {coreset.source_column!r} "
                    f"(coreset.source_column). Found {', '.join(columns)}: prepare them anew (tokenized_path)."
                )
            super().__init__(*args, processor=None, coreset=coreset, **kwargs)

    return CoresetLlamaFactoryTrainer


def main() -> None:
    """The command. Raises ConfigError: it is given no file."""
    from llamafactory.hparams import read_args

    values = read_args()
    if not isinstance(values, dict):
        raise ConfigError(f"Give a YAML or JSON file of LLaMA-Factory, then key=value pairs. Found {values!r}.")
    train(values)


if __name__ == "__main__":
    main()

"""Axolotl: `plugins: [corebatch.integrations.axolotl.CorebatchPlugin]` and a block `coreset:` in its YAML.

The host makes the rows, the model and the Trainer as ever. Here every row keeps the data set that it came from, and the
Trainer's class is the host's own with selection in it. With a `coreset:` that takes no part (pool_factor 1, plain
micro-batches) nothing of the host is touched.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import xxhash
from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from corebatch.errors import ConfigError, DataError
from corebatch.integrations.options import LOSS, NUMBERS, RAY, ROWS, SHARED, HostOption, check_options, is_shared
from corebatch.integrations.patching import replaced
from corebatch.integrations.rows import with_sources
from corebatch.mixture.names import source_of
from corebatch.sampling.tags import NO_COLUMN
from corebatch.trainer import CoresetConfig, CoresetTrainer

OPTIONS = (
    HostOption("sample_packing", ROWS, "sample_packing: false; coreset.padding_free packs what was chosen"),
    HostOption("batch_flattening", ROWS, "batch_flattening: false; coreset.padding_free packs what was chosen"),
    HostOption("pretraining_dataset", "texts are joined and cut as they come", "datasets of the type completion"),
    HostOption("streaming", NUMBERS, "streaming: false"),
    HostOption("use_pose", "positions of a row would not be those of its tokens", "use_pose: false"),
    HostOption("remove_unused_columns", "the column of sources would reach the model", "true", lambda v: v is False),
    HostOption("rl", LOSS, "datasets of prompts and answers, without rl"),
    HostOption("reward_model", LOSS, "reward_model: false"),
    HostOption("process_reward_model", LOSS, "process_reward_model: false"),
    HostOption("orpo_alpha", LOSS, "no orpo_alpha"),
    HostOption("use_eaft", LOSS, "use_eaft: false"),
    HostOption("trainer_cls", "the Trainer's class is ours", "no trainer_cls"),
    HostOption("processor_type", "rows of pictures or sound cannot be cut and put together", "rows of text alone"),
    HostOption("layer_offloading", "layers are moved for the training forward alone", "layer_offloading: false"),
    HostOption("use_ray", RAY, "axolotl train without use_ray"),
    HostOption("context_parallel_size", SHARED, "context_parallel_size: 1", is_shared),
    HostOption("sequence_parallel_degree", SHARED, "no sequence_parallel_degree", is_shared),
    HostOption("tensor_parallel_size", SHARED, "tensor_parallel_size: 1", is_shared),
    HostOption("expert_parallel_size", SHARED, "expert_parallel_size: 1", is_shared),
    HostOption("model_config_type", "it has a Trainer of its own", "another model", lambda v: v == "mamba"),
)


class CoresetArgs(BaseModel):
    """What the plug-in adds to the keys of Axolotl's YAML: the block `coreset`, the fields of `CoresetConfig`."""

    coreset: dict[str, Any] | None = None


class CorebatchPlugin(BasePlugin):
    """Mini-batch coresets in `axolotl train`.

    Raises:
        ConfigError: a key of `coreset` is unknown or out of range, or the YAML has an option that selection does not
            go with; before the model is loaded.
    """

    def __init__(self) -> None:
        super().__init__()
        self._coreset = CoresetConfig()
        self._sources: list[str | None] = []

    def get_input_args(self) -> str:
        return f"{CoresetArgs.__module__}.{CoresetArgs.__qualname__}"

    def register(self, cfg: Any) -> None:
        """Looks at the YAML as it was written: the host drops `source` of a data set, and keys that are null."""
        self._coreset = CoresetConfig.from_dict(_plain(cfg.get("coreset")))
        self._sources = [entry.get("source") for entry in cfg.get("datasets") or ()]
        for number, source in enumerate(self._sources):
            if source is not None and (not isinstance(source, str) or not source):
                raise ConfigError(f"datasets[{number}].source should be the name of a source. Found {source!r}.")
        self._check(cfg)

    def _check(self, cfg: Any) -> None:
        if self._coreset.takes_part:
            check_options("Axolotl", cfg, OPTIONS)

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """The host's data sets, each row with the name of its source; and the steps that passes over pools take."""
        if not self._coreset.takes_part:
            return None
        from axolotl.common.datasets import load_datasets

        self._check(cfg)  # again, with what the host has made of it
        self._check_neighbors(cfg)
        column = self._coreset.source_column
        with sources_kept(cfg, self._sources, column):
            made = load_datasets(cfg=cfg)
        if column != NO_COLUMN and column not in made.train_dataset.column_names:
            raise DataError(
                f"Rows that Axolotl prepared should have the column {column!r} (coreset.source_column). Found "
                f"{', '.join(made.train_dataset.column_names)}: prepare them anew (dataset_prepared_path, "
                "push_dataset_to_hub), with the plug-in among plugins."
            )
        if not preprocess:
            made.total_num_steps = self._steps(cfg, len(made.train_dataset))
        return made

    def _check_neighbors(self, cfg: Any) -> None:
        """Raises ConfigError for a plug-in that brings a Trainer of its own, or a tokenizer that cannot pad."""
        from axolotl.integrations.base import PluginManager
        from axolotl.loaders import load_tokenizer

        for name, plugin in PluginManager.get_instance().plugins.items():
            if plugin is not self and plugin.get_trainer_cls(cfg) is not None:
                raise ConfigError(
                    "Of the plugins of Axolotl one alone should bring a Trainer, and selection does. Found "
                    f"{name}: leave one of the two out."
                )
        if load_tokenizer(cfg).pad_token_id is None:
            raise ConfigError(
                "Rows of a pool are padded to one width, so the tokenizer should have a token for that. Found none: "
                "give special_tokens: {pad_token: ...}."
            )

    def _steps(self, cfg: Any, rows: int) -> int | None:
        """Optimizer steps of num_epochs passes, as the host counts them, each step drawing pool_factor batches; None
        where the loader alone knows."""
        pool = cfg.batch_size * self._coreset.pool_factor
        if cfg.dataloader_drop_last and rows < pool // cfg.gradient_accumulation_steps:
            raise ConfigError(
                f"dataloader_drop_last: true drops what makes no whole batch. Found {rows} rows, fewer than a draw of "
                f"micro_batch_size x coreset.pool_factor over all ranks, {pool // cfg.gradient_accumulation_steps}. "
                "Use dataloader_drop_last: false."
            )
        if self._coreset.by_length is not None:
            return None
        steps = math.ceil(rows * cfg.num_epochs / pool)
        return min(steps, cfg.max_steps) if cfg.max_steps else steps

    def get_trainer_cls(self, cfg: Any) -> type | None:
        """The host's Trainer with selection in it. The host's class comes first: its `compute_loss` counts tokens and
        hands on to ours."""
        if not self._coreset.takes_part:
            return None
        from axolotl.core.trainers import AxolotlTrainer

        coreset = self._coreset

        class CoresetAxolotlTrainer(AxolotlTrainer, CoresetTrainer):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, coreset=coreset, **kwargs)

        return CoresetAxolotlTrainer


def _plain(block: Any) -> Any:
    """A block of the host's YAML as plain dictionaries and lists."""
    if isinstance(block, Mapping):
        return {key: _plain(value) for key, value in block.items()}
    return [_plain(each) for each in block] if isinstance(block, list) else block


@contextmanager
def sources_kept(cfg: Any, sources: list[str | None], column: str) -> Iterator[None]:
    """While open, the host's rows get the name of their source beside their tokens.

    The host drops all columns of a row but its tokens, and keeps prepared rows in a folder by a hash of its settings;
    so names are added where a data set becomes tokens, and are in that hash.

    Args:
        cfg: the host's settings; `datasets` has an entry for each of `sources`.
        sources: as the YAML names them; None: the rows' own column, or else the data set's name.
        column: what the column is called; NO_COLUMN: nothing is added.
    """
    from axolotl.utils.data import sft

    entries = cfg.datasets or []
    if len(entries) != len(sources):
        raise ConfigError(f"datasets should be those of the YAML, {len(sources)}. Found {len(entries)}.")
    if column == NO_COLUMN:
        yield
        return
    for entry, source in zip(entries, sources, strict=True):
        entry["corebatch"] = {"source": source}  # entries of test_datasets have none
    wrapper, digest = sft.get_dataset_wrapper, sft.generate_dataset_hash_from_config
    named = xxhash.xxh3_64_hexdigest(repr((column, sources)).encode())

    def wrapped(dataset_config: Any, dataset: Any, **rest: Any) -> Any:
        make = partial(wrapper, dataset_config=dataset_config, **rest)
        marked = dataset_config.get("corebatch")
        if marked is None:
            return make(dataset=dataset)
        return with_sources(make, dataset, column, marked.get("source"), entry_name(dataset_config))

    def hashed(cfg: Any, cfg_datasets: Any, tokenizer_name: str) -> str:
        return f"{digest(cfg, cfg_datasets, tokenizer_name)}-{named}"

    with replaced(sft, get_dataset_wrapper=wrapped, generate_dataset_hash_from_config=hashed):
        yield


def entry_name(entry: Mapping[str, Any]) -> str:
    """The source of a data set whose rows and entry name none: of files as in `corebatch.mixture`, of a hub its own."""
    path = str(entry["path"])
    if Path(path).exists():
        return source_of(Path(path))
    return "/".join(str(part) for part in (path, entry.get("name")) if part)

"""The Trainer's loader over pools: rows with ids and sources, micro-batch x pool_factor at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import datasets
import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from corebatch.distributed.ranks import Ranks
from corebatch.errors import ConfigError
from corebatch.model.rows import Padding
from corebatch.options import hint
from corebatch.record.run_file import absent_note, kept_note
from corebatch.record.run_identity import sampling as sampling_strategy
from corebatch.sampling.draws import SourceSampler
from corebatch.sampling.epochs import follow_epochs
from corebatch.sampling.passes import LearntSampler
from corebatch.sampling.shares import DrawPlan
from corebatch.sampling.tags import Passes, Sources, has_transform, is_stream, tag
from corebatch.sampling.units import Units, UnitSampler
from corebatch.sources import absent_names, small_candidates
from corebatch.trainer.budget import steps_of_rows
from corebatch.trainer.config import CoresetConfig
from corebatch.trainer.counting import make_claims
from corebatch.trainer.lengths import unit_sampler
from corebatch.types import ID, SOURCE

logger = logging.getLogger(__name__)


class TaggedSets:
    """Data sets with ids and sources; one is made once."""

    def __init__(self) -> None:
        self._of: Any = None
        self._by: tuple[str, bool] | None = None
        self._made: tuple[Any, Sources] | None = None

    def of(self, dataset: Any, coreset: CoresetConfig, *, first: bool) -> tuple[Any, Sources]:
        """The data set with ids and sources, and its sources.

        Args:
            first: whether this process is rank 0, which logs what a user should know of the sources.
        """
        column = coreset.source_column
        needed = coreset.small_sources is not None or coreset.sampling is not None
        if self._made is None or self._of is not dataset or self._by != (column, needed):
            self._made = tag(dataset, column, needed=needed)
            self._of, self._by = dataset, (column, needed)
            if self._made[1].note and first:
                logger.warning(self._made[1].note)
        return self._made

    def latest(self, trainer: Any) -> Sources:
        """Of the data set that the loader was made of, whatever `train_dataset` has become since."""
        return tagged(trainer)[1] if self._made is None else self._made[1]


def tagged(trainer: Any) -> tuple[Any, Sources]:
    """The train set with ids and sources, and its sources."""
    made: tuple[Any, Sources] = trainer._tagged.of(
        trainer.train_dataset, trainer.coreset, first=trainer.is_world_process_zero()
    )
    return made


def draw_plan(trainer: Any) -> DrawPlan | None:
    """How often the sources of the train set come, or None where rows come as the Trainer draws them.

    Raises:
        ConfigError: `coreset.sampling` names a source that is not there, or stands beside a stream or another order.
    """
    sampling, dataset = trainer.coreset.sampling, trainer.train_dataset
    if sampling is None or sampling.learnt is not None or dataset is None:
        return None
    if is_stream(dataset):
        raise ConfigError(
            "coreset.sampling draws rows by number, so it needs data with a length. Found a stream, whose rows come in "
            "an order of its own: mix it before (datasets.interleave_datasets), or leave coreset.sampling out."
        )
    if (order := sampling_strategy(trainer.args)) != "random":
        raise ConfigError(
            f"coreset.sampling decides on the order of rows, and so does train_sampling_strategy. Found {order!r}: set "
            "it to random, or leave coreset.sampling out."
        )
    sources = tagged(trainer)[1]
    return DrawPlan(sampling, sources.names, sources.counts, lambda: int(trainer.state.max_steps))


def own_sampler(trainer: Any, replaced: Any) -> SourceSampler | LearntSampler | UnitSampler:
    """The sampler by `coreset.sampling` or `by_length`, in the place of the Trainer's.

    Raises:
        ConfigError: the Trainer's is none that shuffles all rows, so somebody has set an order of their own.
    """
    if type(replaced) is not RandomSampler:
        raise ConfigError(
            f"{_order_by(trainer)} decides on the order of rows, in the place of the Trainer's random one. Found a "
            f"{type(replaced).__name__} of the Trainer's own: leave one of the two out."
        )
    run, args, ids = trainer._run, trainer.args, trainer._tagged.latest(trainer).ids
    rows = run.scoring.micro_batch * trainer.coreset.pool_factor * args.gradient_accumulation_steps * run.ranks.count
    seed = args.seed if args.data_seed is None else args.data_seed
    if run.lengths is not None:
        return unit_sampler(trainer, rows, seed)
    assert ids is not None, "a plan is made of data with a length"
    if run.learnt is not None:
        return LearntSampler(run.learnt, large=rows, step=lambda: trainer.state.global_step)
    return SourceSampler(run.draws, ids, large=rows, seed=seed, step=lambda: steps_of_rows(trainer))


def _order_by(trainer: Any) -> str:
    return "coreset.by_length" if trainer.coreset.sampling is None else "coreset.sampling"


def name_sources(trainer: Any) -> tuple[Any, Sources]:
    """The train set, tagged, whose sources the step knows by name and by which of them are small."""
    dataset, coreset, method = trainer.train_dataset, trainer.coreset, trainer._run.method
    if has_transform(dataset):
        trainer._remove_unused_columns(dataset, description="training")  # refuses what leaves it no column
    made, sources = tagged(trainer)
    small = coreset.small_sources if coreset.pool_factor > 1 else None
    if not sources.counts and small is not None:
        raise ConfigError("small_sources needs a data set whose sources can be counted. Found a stream.")
    method.source_names = sources.names
    method.small_sources = small_candidates(sources.counts, sources.names, small)
    method.replay = _replayed(coreset, sources)
    if method.feedback is not None and not sources.counts:
        method.feedback.examples = 0.0  # a stream's rows are numbered as they come: none comes again
    absent = absent_names(sources.counts, sources.names, small)
    if absent and trainer.is_world_process_zero():
        logger.warning(absent_note(sources, absent))
    if method.small_sources and trainer.is_world_process_zero():
        logger.warning(kept_note(sources, method.small_sources))
    return made, sources


def _replayed(coreset: CoresetConfig, sources: Sources) -> dict[int, float]:
    """Shares of the trained rows, by number. Raises ConfigError: a source that is not there."""
    there = {sources.names[source]: source for source in sources.counts}
    for name in coreset.replay or ():
        if name not in there:
            raise ConfigError(
                f"coreset.replay should name sources of train_dataset: {', '.join(there) or 'a stream has none'}. "
                f"Found {name!r}.{hint(name, there)}"
            )
    return {there[name]: share for name, share in (coreset.replay or {}).items()} if coreset.pool_factor > 1 else {}


def pool_loader(trainer: Any, make: Callable[[], Any]) -> Any:
    """The Trainer's loader over micro-batch x pool_factor rows that carry their ids and sources.

    Args:
        make: the parent's `get_train_dataloader`.
    """
    dataset, drawn = trainer.train_dataset, trainer._train_batch_size * trainer.coreset.pool_factor
    made, sources = name_sources(trainer)
    # What the model does not take is dropped on the way, so the two columns are declared as taken.
    trainer._set_signature_columns_if_needed()
    trainer._signature_columns += [key for key in (ID, SOURCE) if key not in trainer._signature_columns]
    trainer._run.step.claims = make_claims(trainer, made, sources)
    if trainer._run.lengths is not None:
        kept = isinstance(made, datasets.Dataset)
        made = Units(trainer._remove_unused_columns(made, description="training") if kept else made)
    micro_batch, trainer._train_batch_size, trainer.train_dataset = trainer._train_batch_size, drawn, made
    loading = trainer.accelerator.dataloader_config
    dispatch = loading.dispatch_batches
    if trainer._run.ranks.count > 1 and not sources.counts and dispatch is None:
        # Accelerate's default for a stream is that rank 0 reads for all, and joins rows of unequal lengths. Without
        # it each rank reads the stream and takes its own rows.
        loading.dispatch_batches = False
    try:
        loader = make()
    finally:
        trainer._train_batch_size, trainer.train_dataset = micro_batch, dataset
        loading.dispatch_batches = dispatch
    found = _batch_size(loader)
    if found is not None and found != drawn:
        raise ConfigError(
            f"The train loader should draw per_device_train_batch_size x pool_factor = {drawn} rows at a time. "
            f"Found {found}: a sampler or loader of its own ignores the batch size."
        )
    ours = SourceSampler | LearntSampler | UnitSampler
    if trainer._run.own_order and not isinstance(_innermost(loader, "sampler"), ours):
        raise ConfigError(
            f"{_order_by(trainer)} decides on which rows come. Found a train loader with a sampler of its own: leave "
            "one of the two out."
        )
    if trainer._run.budget is not None:
        trainer._run.budget.length = len(loader)
    follow_epochs(loader, lambda: int(trainer.state.epoch or 0))
    return loader


def _batch_size(loader: Any) -> int | None:
    """Rows that one rank draws at a time, or None if the loader does not say."""
    return _innermost(loader, "batch_size") or getattr(loader, "batch_size", None)


def _innermost(loader: Any, name: str) -> Any:
    """An attribute of the loader's batch sampler, or of the one within it that has it; None without."""
    sampler = getattr(loader, "batch_sampler", None)
    while sampler is not None and getattr(sampler, name, None) is None:
        sampler = getattr(sampler, "batch_sampler", None)
    return getattr(sampler, name, None)


def eligible(trainer: Any, batches: Sequence[dict[str, Tensor]], ranks: Ranks, passes: Passes) -> Tensor:
    """BoolTensor [n]: False for the rows that Accelerate's loader adds from the start of the data to even out the last
    batch; a sampler by shares has whole steps. Where every row is trained they are as well, as in the plain Trainer."""
    rows = [len(batch[ID]) for batch in batches]
    found = torch.ones(sum(rows), dtype=torch.bool)
    state = trainer.accelerator.gradient_state
    if ranks.count == 1 or not rows or trainer.coreset.pool_factor == 1 or trainer._run.own_order:
        return found
    if not trainer._tagged.latest(trainer).counts:  # a stream is numbered as it comes
        return passes.fresh(torch.cat([batch[ID] for batch in batches]).cpu())
    if state.end_of_dataloader and state.remainder > 0:
        start = ranks.index * rows[-1]  # ranks fill the last global batch one after the other
        real = min(max(state.remainder - start, 0), rows[-1])
        found[len(found) - rows[-1] + real :] = False
    return found


def padding(trainer: Any, batches: Sequence[dict[str, Tensor]]) -> Padding:
    """How the collator pads: with which token, on which side, to which multiple."""
    mask = [batch["attention_mask"] for batch in batches if "attention_mask" in batch]
    left = any(bool((m[:, 0] == 0).any()) and bool((m[:, -1] != 0).all()) for m in mask if m.ndim == 2)
    collator, tokenizer = trainer.data_collator, getattr(trainer, "processing_class", None)
    token = getattr(tokenizer, "pad_token_id", None)
    if token is None:
        token = getattr(collator, "pad_token_id", None)
    multiple = getattr(collator, "pad_to_multiple_of", None)
    return Padding(token=int(token or 0), left=left, multiple_of=int(multiple or 1))


def is_mapped(dataset: Any) -> bool:
    """Whether there is a data set whose rows can be asked for by number."""
    return dataset is not None and not is_stream(dataset)

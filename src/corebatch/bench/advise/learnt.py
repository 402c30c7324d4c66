"""Which rows of this run teach little: those that are learnt already, and those that repeat others."""

from __future__ import annotations

import time

import torch

from corebatch.bench.advise.finding import MORE_MINUTES, TO_LOSS, Finding
from corebatch.bench.advise.probe import Probe
from corebatch.bench.advise.row_gradients import epochs_of, row_gradients
from corebatch.bench.advise.worth import Arrival, gain, plain, worth
from corebatch.errors import CorebatchError, InputError, MissingExtraError
from corebatch.evaluation.loss import evaluated_head, row_losses
from corebatch.intervals import wilson_interval
from corebatch.launch.subset_given import RowTexts
from corebatch.model.modes import evaluating
from corebatch.sampling.learnt.floor import Floor
from corebatch.sampling.learnt.infobatch import InfoBatch
from corebatch.subset import keep_rows

ROWS = 512
"""Rows whose losses are looked at, at most."""
FEWEST = 20
TEXTS = 20_000
"""Rows that are compared with each other, at most."""
LEARNT, REPEATED = "learnt rows", "near-duplicates"


def measure(probe: Probe) -> list[Finding]:
    """The share of rows that the model knows, what leaving such rows out would be worth, and the share of rows that
    repeat another."""
    found = []
    for lever, part in ((LEARNT, _known), (f"{LEARNT}: left out", _left_out), (REPEATED, _repeated)):
        try:
            found.append(part(probe))
        except CorebatchError as error:
            found.append(Finding(lever=lever, unmeasured=str(error)))
    return gain(found)


def _known(probe: Probe) -> Finding:
    """Rows whose mean token loss is below the floor of `coreset.sampling.learnt: floor`, before the run."""
    losses, below, end = list[float](), Floor().below, time.monotonic() + 0.4 * probe.seconds_left
    head = evaluated_head(probe.model)
    with evaluating(probe.model), torch.no_grad(), probe.autocast():
        for start in range(0, min(ROWS, len(probe.sample)), 8):
            batch = probe.batch([probe.sample[row] for row in range(start, min(start + 8, len(probe.sample)))])
            sums, counts = row_losses(probe.model, head, batch, 1024)
            losses += (sums[counts > 0] / counts[counts > 0]).tolist()
            if time.monotonic() > end:
                break
    if not all(loss - loss == 0 for loss in losses):
        raise InputError("the losses of some rows are not finite")
    if len(losses) < FEWEST:
        hurried = f": {MORE_MINUTES}" * (len(losses) < len(probe.sample))
        raise InputError(f"an interval needs the losses of {FEWEST} rows at least. Found {len(losses)}{hurried}")
    count = sum(loss < below for loss in losses)
    low, high = wilson_interval(count, len(losses))
    return Finding(
        lever=LEARNT,
        why=f"{count} of {len(losses)} rows have a loss below {below:g} nats per token before the run "
        f"({100 * low:.2g} to {100 * high:.2g} % of all)",
        numbers={"learnt": count, "rows_measured": len(losses), "low": low, "high": high},
    )


def _left_out(probe: Probe) -> Finding:
    """InfoBatch, whose weights keep the claim; only where rows come again is there a loss to go by."""
    coreset, epochs, method = probe.settings.coreset, epochs_of(probe), InfoBatch()
    for name in ("sampling", "by_length", "replay"):
        if getattr(coreset, name) is not None:
            raise InputError(f"coreset.{name} decides which rows come")
    if coreset.pool_factor > 1:
        raise InputError("with coreset.pool_factor above 1 rows are chosen out of what is drawn: see there")
    if epochs < 2:
        raise InputError(f"no row has been seen before: the run reads its data {epochs:.2g} times")
    rows = row_gradients(probe)
    kept = torch.where(rows.losses < rows.losses.mean(), 1 - method.prune, 1.0)
    lengths = rows.population.lengths.double()
    cost = float((kept * lengths).sum() / kept.sum() / lengths.mean())
    found = worth(Arrival(cost=cost, rates=kept / kept.mean()), plain(1.0, len(kept)), rows, probe.batch_size)
    return Finding(
        lever=f"{LEARNT}: left out", arm={"coreset.sampling": {"learnt": method.name}}, factor=found.factor,
        low=found.low, high=found.high, of=TO_LOSS, why=found.why(probe.batch_size),
        numbers={**found.numbers(probe.batch_size), "cost": cost, "passes": epochs},
    )  # fmt: skip


def _repeated(probe: Probe) -> Finding:
    """All rows, or so many of them as go into the time."""
    dataset, left = probe.mixture.dataset, max(1.0, probe.seconds_left)
    rows = dataset if len(dataset) <= min(TEXTS, 1000 * left) else probe.sample
    texts, whole = RowTexts(rows, probe.tokenizer)[0 : len(rows)], rows is dataset
    exactly = len(texts) - len(set(texts))
    try:
        told = keep_rows(len(texts), 1.0, "near_duplicates", texts=texts, sources=list(rows["source"])).told
    except MissingExtraError as error:
        raise MissingExtraError(f"{exactly} of {len(texts)} rows repeat another exactly; {error}") from error
    repeated = int(told["exact"] + told["near"])
    low, high = wilson_interval(repeated, len(texts))
    if whole:
        low = high = repeated / len(texts)
    part = "" if whole else " (in a sample; of all rows more may)"
    advice = "; `corebatch subset CONFIG --method near_duplicates --keep 1` leaves them out" if repeated else ""
    return Finding(
        lever=REPEATED,
        why=f"{repeated} of {len(texts)} rows repeat another, {told['exact']} of them exactly, "
        f"{told['across_sources']} from another source{part}{advice}",
        numbers={**told, "rows_measured": len(texts), "whole": whole, "low": low, "high": high},
    )

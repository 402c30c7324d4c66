"""The invariants of the GPU check: what CI shows on a CPU, on the device, in float64, float32 and bfloat16."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from corebatch import select
from corebatch.scratch import temporary_folder
from corebatch.selectors import SELECTORS
from corebatch.trainer import CoresetConfig
from gpu_runs import VARLEN, Case, Run, apart, deterministic, register_varlen, same, train, untimed

Check = tuple[dict[str, Any], Callable[[], dict[str, Any]]]
"""What a line says of a check, and what finds out: a mapping with `holds`."""

SCORED: dict[str, Any] = {"way": "full", "reuse": True}
CHECKPOINTING = {"checkpointing": True}
BOUNDS = {"float64": 1e-9, "float32": 1e-4}
"""How far two ways to the same update may be apart, by how far training moved. In bfloat16 the bound is measured:
twice as far as the plain Trainer's runs in float32 and bfloat16 are from each other."""


def invariants(setup: Any) -> Iterator[Check]:
    """All of them."""
    register_varlen()
    device, dry = setup.device, setup.dry
    precisions = ("float32", "bfloat16")
    for precision in precisions:
        for attention, strict in (("eager", False), ("sdpa", True)):
            for lora in (True,) if dry else (True, False):
                case = Case(precision=precision, attention=attention, lora=lora, dropout=0.1)
                yield said("pool_factor 1 is the plain Trainer", case), lambda c=case, s=strict: plain(c, s, device)
            for method, coreset in (("default", CoresetConfig()), ("scored", CoresetConfig(scoring=SCORED))):
                if dry and (precision, attention, method) != ("float32", "sdpa", "scored"):
                    continue
                reuses = method == "scored"  # where there is no dropout
                case = Case(
                    precision=precision, attention=attention, dropout=0.0 if reuses else 0.1,
                    settings=CHECKPOINTING if reuses else {},
                )  # fmt: skip
                yield (
                    {**said("resumed is uninterrupted", case), "method": method},
                    lambda c=case, s=strict, m=coreset: resumed(c, m, s, device),
                )
    yield from same_updates(device, dry)
    for precision in precisions:
        case = Case(precision=precision, dropout=0.1)
        yield said("scoring leaves no trace", case), lambda c=case: no_trace(c, device)
    for method, coreset in (("default", CoresetConfig()), ("scored", CoresetConfig(scoring="full"))):
        yield (
            {**said("the device chooses and trains what the CPU does", Case(precision="float64")), "method": method},
            lambda m=coreset: across(Case(precision="float64"), m, device),
        )
    for name in sorted(SELECTORS):
        yield {"check": "selectors choose the same", "selector": name}, lambda n=name: selectors(n, device)


def same_updates(device: str, dry: bool) -> Iterator[Check]:
    """Two ways to one update: micro-batches put together anew, packed rows, the scoring forward used again, layouts."""
    scored = {**SCORED, "reuse": False}
    once, four = {"max_steps": 1, **CHECKPOINTING}, {"max_steps": 4, **CHECKPOINTING}
    layouts = [{"per_device_train_batch_size": rows, "gradient_accumulation_steps": 8 // rows} for rows in (1, 8)]
    for precision in ("float64", "float32", "bfloat16"):
        exact = precision == "float64"
        ways: list[tuple[str, str, list[tuple[CoresetConfig | None, dict[str, Any]]]]] = [
            ("regrouped is plain", "sdpa", [(None, {}), (CoresetConfig(pool_factor=1, micro_batches="positions"), {})]),
            ("reuse changes no weight", "sdpa", [
                (CoresetConfig(scoring=way, padding_free=False), four if exact else once) for way in (scored, SCORED)
            ]),
            ("1 x 8 is 8 x 1", "sdpa", [(CoresetConfig(), layout) for layout in layouts]),
        ]  # fmt: skip
        packed = [(CoresetConfig(padding_free=free), {}) for free in (False, True)]
        attentions = ["sdpa", VARLEN] if precision == "bfloat16" else ["sdpa"]
        ways += [("packed is padded", attention, packed) for attention in attentions]
        if exact:  # a choice by rounded features may be another one
            ways.append(("1 x 8 is 8 x 1", "sdpa", [(CoresetConfig(scoring="full"), layout) for layout in layouts]))
        for name, attention, pair in ways:
            case = Case(precision=precision, attention=attention)
            scoring = "none" if pair[1][0] is None else pair[1][0].scoring_settings.way
            yield {**said(name, case), "scoring": scoring}, lambda c=case, p=pair: alike(c, p, device)


def said(check: str, case: Case) -> dict[str, Any]:
    """Of a line."""
    adapter = "lora" if case.lora else "full"
    return {"check": check, "precision": case.precision, "attention": case.attention, "adapter": adapter}


def plain(case: Case, strict: bool, device: str) -> dict[str, Any]:
    """Bit for bit, dropout included."""
    with temporary_folder("corebatch-gpu-") as folder, deterministic(strict):
        ways = {"plain": None, "ours": CoresetConfig(pool_factor=1)}
        one, other = (train(Path(folder) / name, case, way, device, max_steps=3) for name, way in ways.items())
    return {"holds": same(one, other), "difference": apart(one, other), "bound": 0.0}


def resumed(case: Case, coreset: CoresetConfig, strict: bool, device: str) -> dict[str, Any]:
    """Bit for bit, in mid-epoch: six steps are one."""
    settings = {"max_steps": 9, "save_strategy": "steps", "save_steps": 4, "optim": "adamw_torch"}
    settings["learning_rate"] = 1e-3
    with temporary_folder("corebatch-gpu-") as temporary, deterministic(strict):
        folder = Path(temporary) / "run"
        whole = train(folder, case, coreset, device, **settings)
        shutil.rmtree(folder / "checkpoint-9")
        again = train(folder, case, coreset, device, resume=True, **settings)
    logs = untimed(whole.lines) == untimed(again.lines)
    return {"holds": same(whole, again) and logs, "difference": apart(whole, again), "bound": 0.0, "same_log": logs}


def alike(case: Case, pair: list[tuple[CoresetConfig | None, dict[str, Any]]], device: str) -> dict[str, Any]:
    """Two ways choose the same rows and end with the same weights but for rounding."""
    with temporary_folder("corebatch-gpu-") as temporary:

        def run(name: str, c: Case, way: tuple[CoresetConfig | None, dict[str, Any]]) -> Run:
            return train(Path(temporary) / name, c, way[0], device, **way[1])

        one, other = (run(str(number), case, way) for number, way in enumerate(pair))
        bound = BOUNDS.get(case.precision)
        if bound is None:
            numbers = {name: Case(precision=name) for name in ("float32", "bfloat16")}
            bound = 2 * apart(*(run(name, each, (None, pair[0][1])) for name, each in numbers.items()))
    choices = pair[0][0] is None or one.chosen == other.chosen
    difference = apart(one, other)
    known: dict[str, Any] = {"difference": difference, "bound": bound, "same_choices": choices}
    done = True  # what the second way is for
    if pair[1][0] is not None and pair[1][0].padding_free is True:
        done = all(line["positions_trained"] == line["tokens_trained"] for line in other.lines)
    elif pair[1][1].get("checkpointing"):
        known["reuse_mb"] = min(line.get("reuse_mb", 0.0) for line in other.lines)
        done = known["reuse_mb"] > 0
    return {"holds": done and choices and difference <= bound, **known}


def no_trace(case: Case, device: str) -> dict[str, Any]:
    """The scoring forwards change no weight, gradient, mode, flag or random state, of the device neither."""
    from corebatch.batch.forwards import Forwards

    scored, seen, changed = Forwards.score, 0, []

    def watched(self: Forwards, ranks: Any, model: Any, *args: Any, **settings: Any) -> Any:
        nonlocal seen
        before = picture(model, device)
        found = scored(self, ranks, model, *args, **settings)
        after = picture(model, device)
        changed.extend(key for key, value in before.items() if not _equal(value, after[key]))
        seen += 1
        return found

    Forwards.score = watched  # type: ignore[method-assign]
    try:
        with temporary_folder("corebatch-gpu-") as folder:
            train(Path(folder), case, CoresetConfig(scoring="full"), device, max_steps=2)
    finally:
        Forwards.score = scored  # type: ignore[method-assign]
    return {"holds": seen == 2 and not changed, "changed": sorted(set(changed))}


def picture(model: Any, device: str) -> dict[str, Any]:
    """All that a forward could change, by name."""
    found: dict[str, Any] = {f"weight {name}": value.clone() for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[f"gradient {name}"] = None if gradient is None else gradient.clone()
        found[f"requires_grad {name}"] = parameter.requires_grad
    for name, module in model.named_modules():
        found[f"mode {name}"] = module.training
    found["random state of the host"] = torch.get_rng_state()
    if device == "cuda":
        found["random state of the device"] = torch.cuda.get_rng_state()
    return found


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one is other if one is None or other is None else bool(one == other)


def across(case: Case, coreset: CoresetConfig, device: str) -> dict[str, Any]:
    """On the CPU and on the device: the same rows, and the same weights but for rounding."""
    with temporary_folder("corebatch-gpu-") as temporary:
        places = enumerate(("cpu", device))
        one, other = (train(Path(temporary) / str(number), case, coreset, place) for number, place in places)
    difference = apart(one, other)
    choices = one.chosen == other.chosen
    known = {"difference": difference, "bound": BOUNDS["float64"], "same_choices": choices}
    return {"holds": choices and difference <= BOUNDS["float64"], **known}


def selectors(name: str, device: str) -> dict[str, Any]:
    """Features on the device: the same rows and weights as from the host, and a budget of N returns all, in order."""
    rows = torch.randn(64, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    losses = torch.linspace(0.1, 2.0, 64)
    found, whole = [], []
    for place in ("cpu", device):
        given = {"losses": losses.to(place), "validation": rows[:4].flip(1).to(place)}
        found.append(select(rows.to(place), 16, selector=name, **given))
        whole.append(select(rows.to(place), 64, selector=name, **given))
    indices = [choice.indices.tolist() for choice in found]
    difference = float((found[0].weights.cpu().double() - found[1].weights.cpu().double()).abs().max())
    everything = whole[1].indices.tolist() == list(range(64)) and bool((whole[1].weights == 1).all())
    holds = indices[0] == indices[1] and difference <= 1e-6 and everything
    return {"holds": holds, "difference": difference, "bound": 1e-6, "all_at_budget_n": everything}

"""Made-up comparisons for the tests: whole plans and lines, honest unless a test tampers with them."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

SOURCES = ("algebra", "gsm", "tiny")
TOKENS = 100  # of each made-up example
SEEDS = (1, 2, 3, 4, 5)

Line = dict[str, Any]

# name, title, baseline, rows drawn and trained a step, steps, seconds and FLOPs a step, loss it ends at
ARMS: tuple[tuple[str, str, bool, int, int, int, float, float, float], ...] = (
    ("coreset@wall_clock", "coreset", False, 64, 32, 40, 1.5, 3e9, 3.00),
    ("plain_large@wall_clock", "plain, large batch", True, 64, 64, 30, 2.0, 4e9, 3.10),
    ("plain_small@wall_clock", "plain, small batch", True, 32, 32, 60, 1.0, 2e9, 3.05),
    ("plain_small@steps", "plain, small batch", True, 32, 32, 40, 1.0, 2e9, 3.15),
    ("plain_small@flops", "plain, small batch", True, 32, 32, 60, 1.0, 2e9, 3.05),
    ("random@wall_clock", "random out of the pool", True, 64, 32, 58, 1.03, 2.01e9, 3.06),
    ("tokens_importance@wall_clock", "importance by tokens", True, 64, 32, 58, 1.03, 2.01e9, 3.02),
    ("hard@wall_clock", "hard", False, 64, 32, 40, 1.5, 3e9, 3.40),
)


def make_plan(arms: Sequence[str] | None = None, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """A plan of all arms, or of the named ones."""
    listed = [
        {
            "arm": name,
            "method": name.partition("@")[0],
            "budget": name.partition("@")[2],
            "title": title,
            "baseline": baseline,
            "rows_drawn_per_step": drawn,
            "rows_trained_per_step": trained,
            "steps": steps,
            "seconds_per_step": [seconds, seconds],
            "flops_per_step": [flops, flops],
            "learning_rate": 0.001,
            "adam_beta2": 0.999,
            "coreset": {"pool_factor": drawn // trained},
        }
        for name, title, baseline, drawn, trained, steps, seconds, flops, _ in ARMS
        if arms is None or name in arms
    ]
    return {
        "reference": "coreset",
        "seconds": 60.0,
        "flops": 1.2e11,
        "seeds": list(seeds),
        "arms": listed,
        "tuning": {"seed": 0, "budget_steps": 900, "grid": {"learning_rate": [0.0005, 0.001], "adam_beta2": [0.999]}},
        "timing": {"rounds": 5},
        "settings": {"model": "small-llama", "datasets": [{"path": "mix.jsonl"}]},
        "hardware": {"cpu": "two cores", "gpu": None},
        "versions": {"torch": "2.9"},
        "commit": "abc1234",
    }


def wobble(*parts: object) -> float:
    """A number between -1 and 1 that depends on nothing but its arguments."""
    digest = hashlib.sha256(repr(parts).encode()).digest()
    return int.from_bytes(digest[:4], "big") / 2**31 - 1


def make_order(seed: int, rows: int) -> list[str]:
    """Running hashes of the examples that a seed draws."""
    running, made = hashlib.sha256(f"seed {seed}".encode()), []
    for number in range(rows // 64):
        running.update(str(number).encode())
        made.append(running.hexdigest()[:12])
    return made


def make_line(arm: str, seed: int) -> Line:
    """An honest line."""
    _, _, _, drawn, trained, steps, seconds, flops, end = next(each for each in ARMS if each[0] == arm)
    rows_drawn, rows_trained = steps * drawn, steps * trained
    last = end + 0.02 * wobble(seed) + 0.008 * wobble(arm, seed)

    def losses(share: float) -> Line:
        token = last + 2.0 * (math.exp(-4 * share) - math.exp(-4))
        each = {name: token + 0.3 * i + 0.01 * wobble(arm, name) for i, name in enumerate(SOURCES)}
        return {"token": token, "example": token - 0.2, "source": sum(each.values()) / len(each), "sources": each}

    curve = [
        {
            "step": step,
            "tokens_trained": step * trained * TOKENS,
            "flops": step * flops,
            "seconds": step * seconds,
            **losses(step / steps),
        }
        for step in sorted({*range(0, steps, 5), steps} - {0})
    ]
    return {
        "kind": "compare",
        "arm": arm,
        "method": arm.partition("@")[0],
        "budget": arm.partition("@")[2],
        "seed": seed,
        "status": "ok",
        "planned": {"steps": steps, "rows_drawn": rows_drawn, "rows_trained": rows_trained},
        "steps": steps,
        "rows_drawn": rows_drawn,
        "rows_trained": rows_trained,
        "tokens_drawn": rows_drawn * TOKENS,
        "tokens_trained": rows_trained * TOKENS,
        "tokens_scored": rows_drawn * TOKENS if arm.startswith(("coreset", "hard")) else 0,
        "flops": steps * flops,
        "seconds": steps * seconds,
        "wall_seconds": 1.3 * steps * seconds,
        "order": make_order(seed, rows_drawn),
        "learning_rate": 0.001,
        "adam_beta2": 0.999,
        "curve": curve,
        "final": {**losses(1.0), "tasks": {"sums": round(0.4 - 0.1 * (last - 3), 4)}},
        "hardware": {"cpu": "two cores", "gpu": None},
        "versions": {"torch": "2.9"},
        "commit": "abc1234",
        "time": f"2026-05-04T10:{seed:02d}:00",
    }


def make_lines(plan: dict[str, Any]) -> list[Line]:
    """An honest line for each arm and seed, seed by seed."""
    return [make_line(arm["arm"], seed) for seed in plan["seeds"] for arm in plan["arms"]]


def change(lines: list[Line], arm: str, seed: int, how: Callable[[Line], None]) -> list[Line]:
    """A copy of the lines, in which one is tampered with."""
    changed = copy.deepcopy(lines)
    how(next(line for line in changed if (line["arm"], line["seed"]) == (arm, seed)))
    return changed


def write_comparison(folder: Path, plan: dict[str, Any] | None = None, lines: list[Line] | None = None) -> Path:
    """The folder of a comparison: the plan, and its lines (honest ones by default; an empty list leaves no file)."""
    plan = make_plan() if plan is None else plan
    lines = make_lines(plan) if lines is None else lines
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    if lines:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "runs.jsonl").write_text(text, encoding="utf-8")
    return folder

"""Writes what the GPU check found into docs/running/gpu.md: `python benchmarks/gpu_page.py`.

From the newest file of each device in benchmarks/results/gpu; without one the page says that nothing was run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pages import ROOT, table, write_between

PAGE, RESULTS = ROOT / "docs" / "running" / "gpu.md", ROOT / "benchmarks" / "results" / "gpu"
NOTHING = """**Nothing of corebatch has been run on a GPU so far.** There are no lines in `benchmarks/results/gpu`. The
check was run dry, with tiny sizes on a CPU, which shows that it runs and nothing of a GPU."""


def main() -> None:
    write_between(PAGE, "gpu", text_of(RESULTS))


def text_of(folder: Path) -> str:
    """Of all devices whose lines are in the folder; dry runs are passed over."""
    newest: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.jsonl")):  # by date
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        if lines and lines[0]["capability"] is not None:
            newest[lines[0]["device"]] = lines
    return "\n\n".join(page(lines) for lines in newest.values()) or NOTHING


def page(lines: Sequence[Mapping[str, Any]]) -> str:
    """Of one run."""
    parts = [line for line in lines if line["kind"] == "part"]
    checks = [line for line in lines if line["kind"] == "check"]
    wrong = [f"- {part['part']}: {each}" for part in parts for each in part.get("wrong", [])]
    rows = [[p["part"], p["status"], str(p.get("checks", "-")), f"{p['seconds']:.0f}", p["told"]] for p in parts]
    texts = [
        f"### {lines[0]['device']}",
        f"Seed 0; {origin(lines[0])}.",
        table(["part", "", "checks", "seconds", ""], rows),
        *(["What does not hold:", "\n".join(wrong)] if wrong else []),
        *(text for section in (phases, reuse, scale, training) if (text := section(checks))),
    ]
    return "\n\n".join(texts)


def origin(line: Mapping[str, Any]) -> str:
    """Hardware, versions, date and commit."""
    versions, machine = line["versions"], line["hardware"]
    return (
        f"{line['device']} ({machine.get('gpu_memory_gb')} GiB, CUDA {line['cuda']}), {machine['cpu_cores']} cores; "
        f"Python {versions['python']}, torch {versions['torch']}, transformers {versions['transformers']}; "
        f"{line['time'][:10]}, commit {line['commit']}"
    )


def of(checks: Iterable[Mapping[str, Any]], part: str, key: str) -> list[Mapping[str, Any]]:
    """Lines of parts whose name begins so that were measured: they have the key."""
    return [line for line in checks if line["part"].startswith(part) and key in line]


def phases(checks: Sequence[Mapping[str, Any]]) -> str:
    found = of(checks, "phases", "ms")
    if not found:
        return ""
    names = list(found[0]["ms"])
    rows = [
        [line["precision"], f"{line['step_ms']:.1f}",
         *(f"{line['ms'][name]:.1f} ({line['memory_mb'][name]:,.0f})" for name in names)] for line in found
    ]  # fmt: skip
    told = "Phases of a step of `llama-30m`, milliseconds by events (median), and the allocator's peak, MB:"
    return f"{told}\n\n{table(['', 'step', *names], rows)}"


def reuse(checks: Sequence[Mapping[str, Any]]) -> str:
    found = of(checks, "reuse", "with")
    rows = [
        [f"{line['precision']}, {line['adapter']}",
         *(f"{line[way][key]:,.1f}" for key in ("step_ms", "train_ms", "peak_mb") for way in ("without", "with"))]
        for line in found
    ]  # fmt: skip
    heads = [f"{what}, {way}" for what in ("step, ms", "training, ms", "peak, MB") for way in ("without", "with")]
    return f"The scoring forward trained again, with checkpointing:\n\n{table(['', *heads], rows)}" if rows else ""


def scale(checks: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        [f"{line['adapter']}, {line['max_length']}", f"{line['small']} of {line['large']}", line["arm"],
         f"{line['step_ms']:,.0f}", _span(line, "speedup"), _span(line, "token_to_plain_sorted"),
         "-" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**30:.1f}"] for line in of(checks, "1b", "arm")
    ]  # fmt: skip
    heads = ["adapter, longest row", "trained", "arm", "step, ms", "faster than accumulation",
             "time of a token by `plain_sorted`'s", "peak, GiB"]  # fmt: skip
    told = "Steps at Llama-3.2-1B's shapes, random weights, bfloat16, checkpointing; median, least and greatest:"
    return f"{told}\n\n{table(heads, rows)}" if rows else ""


def _span(line: Mapping[str, Any], key: str) -> str:
    return "-" if line[key] is None else f"{line[key]:.2f} ({line[f'{key}_min']:.2f} to {line[f'{key}_max']:.2f})"


def training(checks: Sequence[Mapping[str, Any]]) -> str:
    means = ("token", "example", "source")
    rows = [
        [line["arm"], *(f"{line[mean]:+.4f} ± {line[f'{mean}_deviation']:.4f}" for mean in means)]
        for line in of(checks, "training", "token_deviation")
    ]
    told = "Held-out loss of the small model less the plain small batch's, equal steps; mean, deviation over seeds"
    seeds = next((line["seeds"] for line in of(checks, "training", "seeds")), [])
    return f"{told} {', '.join(map(str, seeds))}:\n\n{table(['', *means], rows)}" if rows else ""


if __name__ == "__main__":
    main()

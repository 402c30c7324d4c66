"""What `corebatch bench step` shows: tables, targets, a dated page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from corebatch.bench.steps.plan import SCORED, TARGET_LARGE, TARGETS
from corebatch.files import replacing
from corebatch.rendering.sheet import Sheet, markdown_table
from corebatch.text import markdown, markdown_code


def table_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The records of one setting as rows of a table."""
    return [
        {
            "M of N": f"{line['small']} of {line['large']}",
            "arm": line["arm"],
            "step, ms": f"{line['step_ms']:,.0f}",
            "time to accumulation": _span(line, "to_accumulation"),
            "speed-up": _span(line, "speedup") + "x",
            "to plain_sorted's": "-" if line["to_plain_sorted"] is None else f"{1 / line['to_plain_sorted']:.2f}x",
            "time a token to plain_sorted's": _span(line, "token_to_plain_sorted"),
            "memory, MB": "-" if line["peak_bytes"] is None else f"{line['peak_bytes'] / 2**20:,.1f}",
            "to accumulation's": "-"
            if line.get("memory_to_accumulation") is None
            else f"{line['memory_to_accumulation']:.2f}",
            "to small batch": "-" if line["memory_to_small"] is None else f"{line['memory_to_small']:.2f}",
            "scoring": _percent(line["score_share"]),
            "overhead": _percent(line["overhead_share"]),
            "padding": _percent(line["padding"]),
            "reuse, MB": "-" if line["reuse_mb"] is None else f"{line['reuse_mb']:,.1f}",
        }
        for line in lines
    ]


def _span(line: Mapping[str, Any], key: str) -> str:
    if line[key] is None:
        return "-"
    return f"{line[key]:.2f} ({line[f'{key}_min']:.2f} to {line[f'{key}_max']:.2f})"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def setting_name(line: Mapping[str, Any]) -> str:
    """Model, adapter, precision, checkpointing, in a line."""
    adapter = "LoRA" if line["adapter"] == "lora" else "all weights"
    recomputed = "with checkpointing" if line["checkpointing"] else "without checkpointing"
    return f"{line['model']}, {adapter}, {line['precision']}, {recomputed}"


def target_rows(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Each target, and what the arm that scores every row and the fastest one that scores reached, by medians. An arm
    that does not score is no proof that scoring is cheap. A target that these settings do not measure says so."""
    rows = []
    for (adapter, ratio), wanted in TARGETS.items():
        here = [
            line
            for line in lines
            if (line["adapter"], line["ratio"], line["large"]) == (adapter, ratio, TARGET_LARGE)
            and line["checkpointing"]
            and line["tokens_scored"] > 0
        ]
        every = next((line for line in here if line["arm"] == SCORED), None)
        fastest = max(here, key=lambda line: line["speedup"], default=None)
        rows.append(
            {
                "target": f"{'LoRA' if adapter == 'lora' else 'all weights'}, {TARGET_LARGE // ratio} of "
                f"{TARGET_LARGE}, checkpointing: at least {wanted}x",
                SCORED: _reached(every, wanted),
                "fastest arm that scores": _reached(fastest, wanted)
                + (f", {fastest['arm']}" if fastest is not None else ""),
            }
        )
    return rows


def _reached(line: Mapping[str, Any] | None, wanted: float) -> str:
    if line is None:
        return "not measured here"
    return f"{_span(line, 'speedup')}x, {'reached' if line['speedup'] >= wanted else 'not reached'}"


HOW = """Every arm trains through the real trainer on the same rows (random token ids), in turn; a time runs from the
end of a step to the end of the next, loading and scoring included. Ratios are taken within a round: the median over
rounds, with the least and the greatest. "plain_sorted" is plain training with the rows of a step sorted by length
(micro_batches: positions): the same update, and sorting alone saves padding; a speed-up is to that of the large batch,
the time of a trained token to that of as many rows. Memory is
{memory};
its ratio is to the plain small batch on the same micro-batch. Scoring is a share of the step; overhead is the share of
loading, exchange, selection and repacking, which are neither forward nor backward. Padding is a share of what is
trained."""
MEMORY = {
    "cuda": "the allocator's peak over a step",
    "cpu": "the peak of live tensor bytes over one more step (over four, for an arm that scores every four), weights\n"
    "and optimizer state included",
}


def report_text(lines: Sequence[Mapping[str, Any]], command: str, notes: Sequence[str] = ()) -> str:
    """A dated page in Markdown: how, where, a table for each setting, and the targets."""
    first = lines[0]
    machine, versions = first["hardware"], first["versions"]
    parts = [
        f"# What a step costs, {first['time'][:10]}",
        HOW.format(memory=MEMORY[first["device"]]),
        "\n".join(
            [
                f"- command: {markdown_code(command)}",
                f"- commit: {first['commit'] or 'unknown'} (+ is a tree with changes)",
                f"- hardware: {machine['gpu'] or 'no GPU'}; {machine['machine']}, {machine['cpu_cores']} cores, "
                f"{machine['torch_threads']} threads, {machine['memory_gb']} GB",
                f"- versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
                f"- rows: lengths {markdown(first['lengths'])}, at most {first['max_length']} tokens, mean "
                f"{first['length_mean']}, {_percent(first['trained_share'])} of tokens trained; micro-batch "
                f"{first['micro_batch']}; {first['rounds']} rounds; seed {first['seed']}",
                *(f"- {markdown(note)}" for note in notes),
            ]
        ),
    ]
    for name in dict.fromkeys(map(setting_name, lines)):
        here = [line for line in lines if setting_name(line) == name]
        numbers = f"{here[0]['parameters']:,} numbers, {here[0]['trained_numbers']:,} of them trained."
        parts += [f"## {markdown(name)}", numbers, _table(table_rows(here))]
    parts += ["## Targets", _table(target_rows(lines))]
    return "\n\n".join(parts) + "\n"


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of equal keys."""
    header = tuple(rows[0])
    return markdown_table(Sheet(header=header, rows=tuple(tuple(row.values()) for row in rows)), left=header)


def write_report(text: str, path: Path) -> None:
    """Written under a temporary name and moved; an earlier report keeps its text under a numbered name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")
        if path.exists():
            number = 1
            while (old := path.with_name(f"{path.stem}.old-{number}{path.suffix}")).exists():
                number += 1
            path.rename(old)

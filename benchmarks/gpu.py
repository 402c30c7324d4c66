"""What CI shows on a CPU, on one CUDA device, within eight minutes: `make gpu`.

    sh benchmarks/gpu.sh [--output FOLDER] [--parts NAME ...] [--minutes 8]
    sh benchmarks/gpu.sh --dry

Each part is a process with a limit of its own, so that none ends the others. Each check is a JSON line with device,
versions and commit in a file in --output, and each part ends with a line that says how it went. --dry runs every part
on the CPU with tiny sizes, to see that it runs. Exit status: 0 if all parts passed, 1 if one failed or ran out of
time, 3 if none failed and one was left out, 2 if nothing was run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUTPUT, CARRIED = ROOT / "benchmarks" / "results" / "gpu", ROOT / ".cache" / "gpu-carry"
PASSED, FAILED, LATE, LEFT_OUT = "passed", "failed", "out of time", "left out"
DRY_ORIGIN, DRY_PATIENCE = "a dry run", 5
"""What stands for the device, and how many times longer a part may take."""


@dataclass(frozen=True, kw_only=True)
class Setup:
    """Where parts run: "cuda" or "cpu", with sizes of a dry run or not, and the folder with what was carried."""

    device: str
    dry: bool
    carried: Path


@dataclass(frozen=True, kw_only=True)
class Part:
    """Of the check.

    Attributes:
        seconds: its limit.
        find: yields lines, or (what a line says, what finds out the rest of it).
        needs: GiB of device memory.
    """

    seconds: int
    find: Callable[[Setup], Iterator[Any]]
    needs: int = 0


def _invariants(setup: Setup) -> Iterator[Any]:
    from gpu_invariants import invariants

    return invariants(setup)


def _steps(name: str, setup: Setup, *given: Any) -> Iterator[Any]:
    import gpu_steps

    return getattr(gpu_steps, name)(setup, *given)


def _training(setup: Setup) -> Iterator[Any]:
    from gpu_training import training

    return training(setup)


def _scale(adapter: str, length: int, seconds: int) -> Part:
    # Weights in bfloat16 and adapters, or float32 weights, gradients and AdamW's moments; logits over 128,256 tokens.
    needs = {"lora": 14, "full": 44}[adapter]
    return Part(seconds=seconds, find=lambda setup: _steps("scale", setup, adapter, length), needs=needs)


PARTS: dict[str, Part] = {
    "invariants": Part(seconds=150, find=_invariants),
    "phases": Part(seconds=45, find=partial(_steps, "phases")),
    "reuse": Part(seconds=60, find=partial(_steps, "reuse")),
    "memory": Part(seconds=45, find=partial(_steps, "memory")),
    "training": Part(seconds=120, find=_training),
    "1b lora 512": _scale("lora", 512, 60),
    "1b full 512": _scale("full", 512, 75),
    "1b lora 2048": _scale("lora", 2048, 75),
    "1b full 2048": _scale("full", 2048, 90),
}
"""What would be missed most comes first: the last ones run if time is left."""


def main() -> None:
    options = parse()
    if options.part is not None:
        sys.exit(run_part(options))
    if not options.dry and not _has_device():
        print(
            "PyTorch sees no CUDA device here. With --dry every part runs on the CPU with tiny sizes, which shows "
            "that it runs and nothing of a GPU.",
            file=sys.stderr,
        )
        sys.exit(2)
    sys.exit(run_all(options))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="NAME")
    parser.add_argument("--minutes", type=float, default=8.0, help="for all parts together")
    parser.add_argument(
        "--output", type=Path, help=f"a folder; {OUTPUT.relative_to(ROOT)}, of a dry run .cache/gpu-dry"
    )
    parser.add_argument("--carried", type=Path, default=CARRIED, help="what `make gpu-carry` made")
    parser.add_argument("--dry", action="store_true", help="on the CPU with tiny sizes")
    parser.add_argument("--part", help=argparse.SUPPRESS)  # of the process of one part
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.output = options.output or (ROOT / ".cache" / "gpu-dry" if options.dry else OUTPUT)
    return options


def _has_device() -> bool:
    import torch

    return torch.cuda.is_available()


# ---- all parts -------------------------------------------------------------------------------------------------------


def run_all(options: argparse.Namespace) -> int:
    """Runs each part in a process of its own, and tells; the exit status."""
    end = time.monotonic() + 60 * options.minutes
    origin = origin_of(options)
    name = "dry" if options.dry else re.sub(r"\W+", "-", origin["device"].lower()).strip("-")
    path = options.output / f"{time.strftime('%Y-%m-%d-%H%M')}-{name}.jsonl"
    options.output.mkdir(parents=True, exist_ok=True)
    found = []
    for part in options.parts:
        line = {**ended(part, options, path, end - time.monotonic()), **origin}
        write(path, line)
        found.append(line["status"])
        print(f"{part}: {line['status']}, {line['seconds']:.0f} s. {line['told']}", flush=True)
    print(f"Lines are in {path}.")
    return 1 if FAILED in found or LATE in found else 3 if LEFT_OUT in found else 0


def ended(part: str, options: argparse.Namespace, path: Path, left: float) -> dict[str, Any]:
    """The line that says how a part went."""
    line: dict[str, Any] = {"kind": "part", "part": part, "seconds": 0.0, "told": ""}
    if left < 5:
        return {**line, "status": LATE, "told": "No time was left to begin it."}
    if (why := reason_to_leave_out(part, options)) is not None:
        return {**line, "status": LEFT_OUT, "told": why}
    began, limit = time.monotonic(), min(PARTS[part].seconds * (DRY_PATIENCE if options.dry else 1), left)
    before = len(read(path))
    command = [sys.executable, __file__, "--part", part, "--lines", path, "--carried", options.carried]
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [str(word) for word in [*command, *(["--dry"] if options.dry else [])]],
            stdout=output, stderr=subprocess.STDOUT, env=environment(options.dry), start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:  # with workers of its own; also if this process is interrupted
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        output.seek(0)
        tail = output.read()[-2000:]
    lines = read(path)[before:]
    wrong = [_named(found) for found in lines if not found["holds"]]
    line |= {"seconds": round(time.monotonic() - began, 1), "checks": len(lines), "wrong": wrong}
    if status is None:
        return {**line, "status": LATE, "told": f"It was stopped after {limit:.0f} s.", "output": tail}
    if status or wrong or not lines:
        told = f"{len(wrong)} of {len(lines)} do not hold: {'; '.join(wrong)}" if lines else "No line was written."
        return {**line, "status": FAILED, "told": told, "output": tail}
    return {**line, "status": PASSED, "told": f"All of {len(lines)} hold."}


def _named(line: Mapping[str, Any]) -> str:
    """A check in few words."""
    keys = ("check", "precision", "attention", "adapter", "method", "scoring", "selector", "arm", "ratio")
    return ", ".join(str(line[key]) for key in keys if line.get(key) is not None)


def reason_to_leave_out(part: str, options: argparse.Namespace) -> str | None:
    if options.dry:
        return None
    import torch

    has = torch.cuda.get_device_properties(0).total_memory / 2**30
    if has < PARTS[part].needs:
        return f"It needs {PARTS[part].needs} GiB of device memory. Found {has:.0f}."
    if part == "training" and not (options.carried / "model" / "config.json").is_file():
        return f"It needs a checkpoint and data in {options.carried.name}: `make gpu-carry` puts them there."
    return None


def environment(dry: bool) -> dict[str, str]:
    """One device, and cuBLAS in the mode whose sums are the same again."""
    given = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return {**os.environ, **given, "CUDA_VISIBLE_DEVICES": "" if dry else first}


# ---- lines -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line, whole at once, so that what a stopped part found is there."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def origin_of(options: argparse.Namespace) -> dict[str, Any]:
    """Device, hardware, versions, commit and time, for every line."""
    import torch

    from corebatch.record.provenance import provenance
    from gpu_carry import carried_commit

    found = provenance()
    device, capability = DRY_ORIGIN, None
    if not options.dry:
        device, capability = torch.cuda.get_device_name(0), list(torch.cuda.get_device_capability(0))
        found["hardware"]["gpu_memory_gb"] = round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1)
    found["commit"] = found["commit"] or carried_commit(options.carried)
    return {"device": device, "capability": capability, "cuda": torch.version.cuda, "seed": 0, **found}


# ---- one part, in its own process ------------------------------------------------------------------------------------


def run_part(options: argparse.Namespace) -> int:
    """Writes a line for each check; 1 if one could not be made."""
    setup = Setup(device="cpu" if options.dry else "cuda", dry=options.dry, carried=options.carried)
    origin, failed = origin_of(options), False
    for found in PARTS[options.part].find(setup):
        line = found
        if isinstance(found, tuple):
            line, work = found
            began = time.monotonic()
            try:
                line = {**line, **work()}
            except Exception as error:  # of whatever is checked: the other checks go on
                traceback.print_exc()
                line, failed = {**line, "holds": False, "error": f"{type(error).__name__}: {error}"[:600]}, True
            line["took"] = round(time.monotonic() - began, 2)
        write(options.lines, {**line, "kind": "check", "part": options.part, **origin})
    return int(failed)


if __name__ == "__main__":
    main()

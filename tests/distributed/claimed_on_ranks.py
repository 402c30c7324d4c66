"""Monte Carlo of benchmarks/claimed.py on several ranks: rank 0 leaves what it found."""

import dataclasses
import importlib
import json
import sys
from pathlib import Path
from typing import Any


def main(job: dict[str, Any], rank: int) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    script = importlib.import_module("claimed")
    found = [script.measure(script.Case(**case), range(1, job["seeds"] + 1), job["steps"]) for case in job["cases"]]
    if rank == 0:
        lines = [json.dumps(dataclasses.asdict(each)) for each in found]
        (Path(job["folder"]) / "found.jsonl").write_text("\n".join(lines))

"""benchmarks/gpu.py: its parts run dry, none ends the others, the exit status tells, and the page says what was run."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from corebatch.selectors import SELECTORS as REGISTERED

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Any:
    return script(monkeypatch, "gpu")


def script(monkeypatch: pytest.MonkeyPatch, name: str) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module(name)


# ---- the parts, each in a process ------------------------------------------------------------------------------------

STUB = """
import json, sys, time
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
part, line = given["--part"], {"kind": "check", "check": "it runs", "precision": "float32"}
with open(given["--lines"], "a") as file:
    if part != "training":
        file.write(json.dumps({**line, "part": part, "holds": part != "reuse"}) + "\\n")
if part == "memory":
    time.sleep(60)
if part == "phases":
    print("the device is gone")
    sys.exit(1)
"""


def ran(gpu: Any, monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the line of each part, with a stub in the place of the parts."""
    stub = folder / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(gpu, "__file__", str(stub))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--dry", "--output", str(folder / "lines"), *words])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    (path,) = (folder / "lines").glob("*-dry.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return int(str(ended.value)), {line["part"]: line for line in lines if line["kind"] == "part"}


def test_a_part_that_fails_or_hangs_ends_no_other(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(gpu.PARTS, "memory", gpu.Part(seconds=1, find=gpu.PARTS["memory"].find))
    names = ["invariants", "phases", "reuse", "memory", "training", "1b lora 512"]
    status, parts = ran(gpu, monkeypatch, tmp_path, "--parts", *names)
    assert status == 1
    assert list(parts) == names, "all were begun, in their order"
    assert {name: part["status"] for name, part in parts.items()} == {
        "invariants": gpu.PASSED, "phases": gpu.FAILED, "reuse": gpu.FAILED, "memory": gpu.LATE,
        "training": gpu.FAILED, "1b lora 512": gpu.PASSED,
    }  # fmt: skip
    assert "the device is gone" in parts["phases"]["output"]
    assert parts["reuse"]["wrong"] == ["it runs, float32"]
    assert "stopped after 5 s" in parts["memory"]["told"]
    assert parts["memory"]["checks"] == 1, "what it found before is kept"
    assert parts["training"]["told"] == "No line was written."
    assert all(part["device"] == gpu.DRY_ORIGIN and part["versions"]["torch"] for part in parts.values())


def test_all_passed_and_no_time_left(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert ran(gpu, monkeypatch, tmp_path, "--parts", "invariants")[0] == 0
    late = tmp_path / "late"
    late.mkdir()
    status, parts = ran(gpu, monkeypatch, late, "--parts", "invariants", "--minutes", "0.05")
    assert (status, parts["invariants"]["status"]) == (1, gpu.LATE)


def test_what_is_left_out_is_told(gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu, "reason_to_leave_out", lambda part, _: "It needs more." if part == "training" else None)
    status, parts = ran(gpu, monkeypatch, tmp_path, "--parts", "invariants", "training")
    assert (status, parts["training"]["status"], parts["training"]["told"]) == (3, gpu.LEFT_OUT, "It needs more.")


def test_without_a_device_nothing_is_run(
    gpu: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--output", str(tmp_path / "none")])
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 2
    assert "--dry" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_a_check_that_raises_is_a_line_and_the_others_go_on(gpu: Any, tmp_path: Path) -> None:
    def find(setup: Any) -> Any:
        yield {"check": "one"}, lambda: 1 / 0
        yield {"check": "two"}, lambda: {"holds": True}
        yield {"check": "three", "kind": "step", "commit": "another", "holds": True}

    gpu.PARTS["made up"] = gpu.Part(seconds=5, find=find)
    path = tmp_path / "lines.jsonl"
    options = gpu.argparse.Namespace(part="made up", lines=path, dry=True, carried=tmp_path)
    try:
        assert gpu.run_part(options) == 1
    finally:
        del gpu.PARTS["made up"]
    one, two, three = gpu.read(path)
    assert (one["holds"], one["error"]) == (False, "ZeroDivisionError: division by zero")
    assert (two["holds"], two["commit"]) == (True, one["commit"])
    assert (three["kind"], three["part"], three["commit"]) == ("check", "made up", one["commit"])


# ---- dry -------------------------------------------------------------------------------------------------------------

CHEAP = {
    "packed is padded, bfloat16, flash_of_torch",
    "regrouped is plain, float64",
    "scoring leaves no trace, float32",
}
SELECTORS = {"balanced", "cube", "greats", "herding"}


def test_invariants_dry(gpu: Any, monkeypatch: pytest.MonkeyPatch, one_thread: None) -> None:
    """The cheap ones hold on the CPU too; every selector has one."""
    checks = list(script(monkeypatch, "gpu_invariants").invariants(gpu.Setup(device="cpu", dry=True, carried=Path())))
    found = {}
    for line, work in checks:
        keys = [line[key] for key in ("check", "precision", "attention", "selector") if key in line]
        names = {", ".join(keys[:2]), ", ".join(keys)} & CHEAP | {line.get("selector")} & SELECTORS
        if names:
            found |= dict.fromkeys(names, work())
    assert found.keys() == CHEAP | SELECTORS
    assert {name: each for name, each in found.items() if not each["holds"]} == {}
    assert len({line["selector"] for line, _ in checks if "selector" in line}) == len(REGISTERED)


@pytest.mark.parametrize("part, place", [("phases", 0), ("memory", 0), ("memory", 1)])
def test_steps_dry(gpu: Any, part: str, place: int, one_thread: None) -> None:
    checks = list(gpu.PARTS[part].find(gpu.Setup(device="cpu", dry=True, carried=Path())))
    found = checks[place][1]()
    if part == "phases":  # a busy machine is late between two clocks
        assert found["ms"].keys() == found["memory_mb"].keys() >= {"load", "score", "select", "train", "optimizer"}
        assert found["step_ms"] > 0
    else:
        assert found["holds"], found


def test_attention_over_rows_of_unequal_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Padded and packed: the plain attention's, with its gradients."""
    runs = script(monkeypatch, "gpu_runs")
    lengths, (rows, heads, few, width, depth) = [5, 3], (2, 4, 2, 5, 8)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(rows, count, width, depth, generator=generator, dtype=torch.float64, requires_grad=True)
        for count in (heads, few, few)
    )
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    plain = scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).transpose(1, 2)[mask]
    padded, _ = runs.varlen_attention(None, query, key, value, mask.long())
    joined = [part.transpose(1, 2)[mask].transpose(0, 1)[None] for part in (query, key, value)]
    packed, _ = runs.varlen_attention(None, *joined, None, cu_seq_lens_q=torch.tensor([0, 5, 8], dtype=torch.int32))
    wanted = torch.autograd.grad(plain.square().sum(), (query, key, value))
    for found in (padded[mask], packed[0]):
        torch.testing.assert_close(found, plain)
        for one, other in zip(wanted, torch.autograd.grad(found.square().sum(), (query, key, value)), strict=True):
            torch.testing.assert_close(one, other)
    assert bool((padded[~mask] == 0).all())


PYTHON = """#!/bin/sh
echo "$PYTHONPATH | $*" >>"$(dirname "$0")/calls"
case "$*" in
  *"import datasets"*) exit 1 ;;
  *gpu.py*) ls -d "${PYTHONPATH##*:}" >>"$(dirname "$0")/calls"; exit 3 ;;
esac
"""


def test_wheels_go_into_a_temporary_folder(tmp_path: Path) -> None:
    """Where a package is missing; the exit status is the check's, and the folder goes."""
    for name in ("benchmarks", ".cache/gpu-carry/wheels"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(BENCHMARKS / "gpu.sh", tmp_path / "benchmarks")
    (tmp_path / ".cache/gpu-carry/wheels/datasets-5-py3-none-any.whl").touch()
    python = tmp_path / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    variables = {"PATH": os.environ["PATH"], "PYTHON": str(python), "TMPDIR": str(tmp_path)}
    command = ["sh", tmp_path / "benchmarks" / "gpu.sh", "--dry", "--parts", "1b lora 512"]
    assert subprocess.run(command, env=variables).returncode == 3
    _, install, check, site = (tmp_path / "calls").read_text().splitlines()
    assert "pip install" in install
    assert "--no-index" in install
    assert install.endswith(f"--target {site} {tmp_path}/.cache/gpu-carry/wheels/datasets-5-py3-none-any.whl")
    assert check.startswith(f"{tmp_path}/src:{site} | ")
    assert check.endswith("benchmarks/gpu.py --dry --parts 1b lora 512")
    assert not Path(site).exists()


# ---- what travels, and the page --------------------------------------------------------------------------------------


def test_the_commit_that_was_carried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    carry = script(monkeypatch, "gpu_carry")
    assert carry.carried_commit(tmp_path) is None
    note = tmp_path / carry.NOTE
    note.write_text(json.dumps({"commit": "abc", "digest": carry.digest()}))
    assert carry.carried_commit(tmp_path) == "abc"
    note.write_text(json.dumps({"commit": "abc", "digest": "of other code"}))
    assert carry.carried_commit(tmp_path) == "abc+"


def test_the_page_says_what_was_run(monkeypatch: pytest.MonkeyPatch, gpu: Any) -> None:
    page = script(monkeypatch, "gpu_page")
    text = page.PAGE.read_text()
    assert page.text_of(page.RESULTS) in text
    told = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", text, re.M))
    assert told == {name: str(part.seconds) for name, part in gpu.PARTS.items() if not name.startswith("1b")}
    assert all(f"`{name}`" in text for name in gpu.PARTS)


def test_the_tables_of_a_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    page = script(monkeypatch, "gpu_page")
    common = {
        "kind": "check", "holds": True, "device": "A GPU", "capability": [9, 0], "cuda": "13.0", "commit": "abc+",
        "hardware": {"gpu_memory_gb": 80.0, "cpu_cores": 16}, "time": "2026-12-01T00:00:00+00:00",
        "versions": {"python": "3.12.3", "torch": "2.11.0", "transformers": "5.17.0"},
    }  # fmt: skip
    way = {"step_ms": 10.0, "train_ms": 7.0, "peak_mb": 100.0}
    speedup = {f"{key}{end}": 1.5 for key in ("speedup", "token_to_plain_sorted") for end in ("", "_min", "_max")}
    loss = {key: -0.01 for mean in ("token", "example", "source") for key in (mean, f"{mean}_deviation")}
    lines: list[dict[str, Any]] = [
        {"part": "phases", "precision": "bfloat16", "step_ms": 9.0, "ms": {"score": 3.0}, "memory_mb": {"score": 5.0}},
        {"part": "reuse", "precision": "float32", "adapter": "lora", "with": way, "without": {**way, "peak_mb": 90.0}},
        {"part": "1b full 2048", "adapter": "full", "max_length": 2048, "small": 4, "large": 16, "arm": "default",
         "step_ms": 500.0, "peak_bytes": 2**30, **speedup},
        {"part": "training", "arm": "default 16 of 64", "seeds": [0, 1, 2], **loss},
        {"part": "reuse", "kind": "part", "status": "failed", "seconds": 3.0, "told": "1 of 4", "wrong": ["reuse, x"]},
    ]  # fmt: skip
    (tmp_path / "run.jsonl").write_text("".join(json.dumps({**common, **line}) + "\n" for line in lines))
    dry = {**common, "capability": None, "device": "a dry run"}
    (tmp_path / "dry.jsonl").write_text(json.dumps(dry) + "\n")
    text = page.text_of(tmp_path)
    for word in (
        "### A GPU", "commit abc+", "| reuse | failed | - | 3 | 1 of 4 |", "- reuse: reuse, x", "3.0 (5)",
        "| full, 2048 | 4 of 16 | default | 500 | 1.50 (1.50 to 1.50)", "| 90.0 | 100.0 |", "-0.0100",
    ):  # fmt: skip
        assert word in text, word
    assert "dry" not in text

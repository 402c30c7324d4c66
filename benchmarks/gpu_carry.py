"""What the GPU check needs on a machine that reaches no registry, in one folder below 60 MB: `make gpu-carry`.

    python benchmarks/gpu_carry.py --model .cache/small-llama --data ../shared/data/mathmix

Wheels of pure packages that such a machine lacks, in the versions of this environment; the checkpoint and the data of
the training comparison; and the commit. PyTorch, transformers and what they need should be there. Copy the repository
with the folder, and run `sh benchmarks/gpu.sh`, which installs the wheels into a temporary folder.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("datasets", "dill", "multiprocess")
"""datasets, and what it needs that little else does."""
MOST_MB = 60
NOTE = "carried.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / ".cache" / "small-llama")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "mathmix")
    parser.add_argument("--packages", nargs="*", default=list(PACKAGES), metavar="NAME")
    parser.add_argument("--python-version", default="3.12", help="of the other machine")
    parser.add_argument("--output", type=Path, default=ROOT / ".cache" / "gpu-carry")
    options = parser.parse_args()
    for folder, file, cure in (
        (options.model, "model.safetensors", "make one by benchmarks/small_llama.py"),
        (options.data, "train.jsonl", "name a mixture with train.jsonl and test.jsonl by --data"),
    ):
        if not (folder / file).is_file():
            parser.error(f"{folder} should hold {file}: {cure}")
    shutil.rmtree(options.output, ignore_errors=True)
    shutil.copytree(options.model, options.output / "model")
    (options.output / "data").mkdir()
    for split in ("train", "test"):
        shutil.copy(options.data / f"{split}.jsonl", options.output / "data")
    fetch(options.packages, options.output / "wheels", options.python_version)
    write_note(options.output)
    size = sum(path.stat().st_size for path in options.output.rglob("*") if path.is_file()) / 1e6
    if size > MOST_MB:
        sys.exit(f"What is carried should be below {MOST_MB} MB. Found {size:.0f} in {options.output}.")
    print(f"{size:.1f} MB in {options.output}")


def fetch(packages: list[str], folder: Path, python_version: str) -> None:
    """Their wheels, for another Python on Linux on x86-64, without what they need."""
    folder.mkdir()
    if packages:
        wanted = [f"{package}=={version(package)}" for package in packages]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", python_version, "--implementation", "cp"]
        command += ["--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64", "-d", str(folder)]
        subprocess.run([*command, *wanted], check=True)


def write_note(folder: Path) -> None:
    """The commit and a digest of the code, by which the other machine, without the repository's history, knows both."""
    from corebatch.record.provenance import commit_of_corebatch

    (folder / NOTE).write_text(json.dumps({"commit": commit_of_corebatch(), "digest": digest()}))


def carried_commit(folder: Path) -> str | None:
    """The commit that was carried, with "+" if the code here is another; None: nothing was."""
    if not (folder / NOTE).is_file():
        return None
    note = json.loads((folder / NOTE).read_text())
    commit: str | None = note["commit"]
    changed = note["digest"] != digest() and commit is not None and not commit.endswith("+")
    return f"{commit}+" if changed else commit


def digest() -> str:
    """Of all code that the check runs."""
    found = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]):
        found.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    main()

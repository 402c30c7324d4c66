"""The wheel in empty environments, as a user meets it: `make wheel`.

    python tests/wheel/run_wheel.py [--pythons python3.11 python3.12 python3.13] [--torch torch==2.13.0] [--write]

Builds wheel and sdist of the commit into dist/, looks at what is in them, and tries the wheel on each Python: alone,
beside torch and numpy, with its core dependencies, and by the commands of README's first screen. torch is kept in
.cache/wheel, all else is installed anew. --write puts the table into docs/running/combinations.md.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CACHE, DIST = ROOT / ".cache" / "wheel", ROOT / "dist"
PAGE = ROOT / "docs" / "running" / "combinations.md"
sys.path.insert(0, str(ROOT / "benchmarks"))
from pages import table, write_between  # noqa: E402

BESIDE = {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff", "MANIFEST.in"}
"""What an sdist has of the repository beside the package."""
MADE = r"(PKG-INFO|setup\.cfg|src/corebatch\.egg-info/.*)$"
IMPORT, HELP = 0.3, 1.0
"""The most seconds of a process that imports corebatch, and of `corebatch --help`, where cores are free for them."""
SELECT = (
    "import torch, corebatch; print(len(corebatch.select(torch.randn(64, 8), 16).indices)); "
    "import sys; sys.exit('transformers' in sys.modules)"
)
TRAIN = ("train", "config.yaml")
SUBSET = ("subset", "config.yaml", "--keep", "0.5", "--method")
TARGET = ("--subset.target", "{datasets: [chats.jsonl]}")
EXTRAS: dict[str, tuple[str, ...]] = {
    "report": ("report", "runs/core"),
    "bench": ("compare", "config.yaml", "--eval_datasets", "[chats.jsonl]"),
    "bench gradients: report": ("bench", "gradients", "config.yaml", "--output", "lines.jsonl"),
    "GaLore: layerwise": (*TRAIN, "--optim", "galore_adamw_layerwise"),
    "APOLLO: layerwise": (*TRAIN, "--optim", "apollo_adamw_layerwise"),
    "LOMO: layerwise": (*TRAIN, "--optim", "lomo"),
    "LAMB: optimizers": (*TRAIN, "--optim", "lamb"),
    "8 bits: qlora": (*TRAIN, "--optim", "adamw_bnb_8bit"),
    "4 bits: qlora": (*TRAIN, "--load_in_4bit", "true"),
    "liger": (*TRAIN, "--use_liger_kernel", "true"),
    "deepspeed": (*TRAIN, "--deepspeed", "zero.json"),
    "tensorboard": (*TRAIN, "--report_to", "tensorboard"),
    "trackio": (*TRAIN, "--report_to", "trackio"),
    "template: trl": (*TRAIN, "--chat_template", "trl"),
    "task: demo": (*TRAIN, "--eval_tasks", "['reasoning_gym:chain_sum']"),
    "task: evaluation": ("evaluate", "runs/core", "--task", "math:sums.jsonl"),
    "harness: lm-eval": ("evaluate", "runs/core", "--lm_eval", "arc_easy"),
    "near-duplicates: subset": (*SUBSET, "near_duplicates"),
    "relevance: subset": (*SUBSET, "relevance", *TARGET, "--subset.options", "{by: words}"),
    "GORACS: subset": (*SUBSET, "goracs", *TARGET),
    "search": ("mixture", "search", "config.yaml", "--eval_datasets", "[chats.jsonl]"),
    "demo": ("demo", "--output-dir", "runs/demo"),
}
"""Commands that need an extra, which is the last word of their name."""
TIMED, DONE = ("import", "help"), ("torch and numpy", "core", "extras named", "README", "types")
HEAD = ("Python", "torch", *TIMED, *DONE, "failed", "load")


def run(words: list[Any], folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], cwd=folder, env=env, capture_output=True, text=True)


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def fastest(words: list[Any], folder: Path, env: Mapping[str, str], times: int = 5) -> float:
    """Seconds of a whole process, the best of some; infinite where it fails."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        if run(words, folder, env).returncode:
            return float("inf")
        seconds.append(time.perf_counter() - start)
    return min(seconds)


# ---- the distributions -----------------------------------------------------------------------------------------------


def build() -> Path:
    """Wheel and sdist of the commit, into dist/; the wheel. What is in them is what git has, and nothing else."""
    shutil.rmtree(DIST, ignore_errors=True)
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name) / "tree"
        tree.mkdir()
        packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=tree, input=packed, check=True)
        python = environment(Path(name) / "env", sys.executable)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "build>=1.2"], check=True)
        subprocess.run([python, "-m", "build", "--outdir", DIST, tree], check=True, stdout=subprocess.DEVNULL)
    (wheel,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    listed = git("ls-files", "src")
    with zipfile.ZipFile(wheel) as opened:
        found = {f"src/{each}" for each in opened.namelist() if ".dist-info/" not in each}
    differ = found ^ set(listed.split())
    with tarfile.open(sdist) as archive:
        names = {each.name.partition("/")[2] for each in archive if each.isfile()}
    differ |= {each for each in names if not re.match(MADE, each)} ^ (set(listed.split()) | BESIDE)
    if differ:
        raise SystemExit(f"wheel or sdist have too much or too little: {', '.join(sorted(differ))}")
    return wheel


def environment(folder: Path, python: str) -> Path:
    """An empty environment, and its Python."""
    subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
    return folder / "bin" / "python"


def with_torch(version: str, python: str, torch: str) -> Path:
    """The kept site-packages with torch and numpy alone."""
    folder, stamp = CACHE / version, CACHE / version / "made-of.json"
    if not stamp.is_file() or json.loads(stamp.read_text()) != torch:
        made = environment(folder, python)
        subprocess.run([made, "-m", "pip", "install", "--quiet", torch, "numpy>=1.26"], check=True)
        stamp.write_text(json.dumps(torch))
    (packages,) = folder.glob("lib/python*/site-packages")
    return packages


# ---- what a user does ------------------------------------------------------------------------------------------------


def readme(kind: str) -> str:
    """README's first block of a kind."""
    found = re.search(rf"^```{kind}\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S | re.M)
    if found is None:
        raise SystemExit(f"README.md should have a block of {kind} on its first screen.")
    return found[1]


MODEL = """
from pathlib import Path
from transformers import AutoTokenizer
from folders import save_tiny_model
save_tiny_model(Path("model"))
tokenizer = AutoTokenizer.from_pretrained("model")
tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
tokenizer.save_pretrained("model")
"""


def furnish(folder: Path, python: Path, env: Mapping[str, str]) -> None:
    """What README takes for granted: a config, chats and a model; and what the commands of extras read."""
    (folder / "config.yaml").write_text(readme("yaml"))
    lines = []
    for number in range(96):
        turns = [{"role": "user", "content": f"{number} + 1?"}, {"role": "assistant", "content": str(number + 1)}]
        lines.append(json.dumps({"messages": turns, "source": "rare" if number % 8 == 0 else "sums"}))
    (folder / "chats.jsonl").write_text("\n".join(lines))
    (folder / "sums.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "So #### 2"}))
    (folder / "zero.json").write_text('{"zero_optimization": {"stage": 2}}')
    done = run([python, "-c", MODEL], folder, {**env, "PYTHONPATH": str(ROOT / "tests")})
    if done.returncode:
        raise SystemExit(done.stderr)


COMMANDS = """
import contextlib, io, json, sys, traceback
from corebatch.cli.main import main
for words in json.loads(sys.argv[1]):
    sys.argv, code = ["corebatch", *words], 0
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        except BaseException:
            traceback.print_exc()
    print(json.dumps([code, out.getvalue()[-500:], err.getvalue()[-1500:]]), flush=True)
"""


def unnamed_extras(python: Path, folder: Path, env: Mapping[str, str]) -> Iterator[str]:
    """Commands that do not end with the name of the extra that they need; what they said is printed. One process runs
    all, since importing transformers is most of each."""
    done = run([python, "-c", COMMANDS, json.dumps(list(EXTRAS.values()))], folder, env)
    said = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    if len(said) != len(EXTRAS):
        raise SystemExit(f"Not all commands came to an end.\n{done.stderr[-2000:]}")
    for name, (code, out, err) in zip(EXTRAS, said, strict=True):
        if code != 2 or f"corebatch[{name.split()[-1]}]" not in err:
            print(f"{name}: exit {code}\n{out}\n{err}", flush=True)
            yield name


def four_commands(python: Path, wheel: Path, folder: Path, env: Mapping[str, str]) -> list[float]:
    """Seconds of each of README's commands, which leave a page."""
    commands = [line.partition("  #")[0].strip() for line in readme("sh").splitlines() if line.strip()]
    seconds = []
    for command in commands:
        start = time.perf_counter()
        done = run(["bash", "-c", command.replace(f"'{wheel.name}", f"'{wheel}")], folder, env)
        if done.returncode:
            raise SystemExit(f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
        seconds.append(time.perf_counter() - start)
    page = folder / commands[-1].split()[2] / "report.html"
    if len(commands) != 4 or not page.is_file():
        raise SystemExit(f"README's first screen should have four commands that leave {page.name}. Found {commands}.")
    return seconds


def typed(python: Path, folder: Path, env: Mapping[str, str]) -> bool:
    """Whether mypy sees the types of what is installed."""
    run([python, "-m", "pip", "install", "--quiet", "mypy>=1.14"], folder, env)
    (folder / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = silent\n[mypy-torch.*,numpy.*,transformers.*,datasets.*]\nfollow_imports = skip\n"
    )
    done = run([python, "-m", "mypy", "--config-file=mypy.ini", ROOT / "tests" / "wheel" / "typed.py"], folder, env)
    return '"corebatch.types.Selection"' in done.stdout and "Found 1 error" in done.stdout


def measure(python: str, wheel: Path, torch: str, folder: Path) -> dict[str, Any]:
    """All of one Python."""
    tested = git("rev-parse", "--short=7", "HEAD").strip()  # before, since a long run outlives a commit
    version = run([python, "-c", "import platform; print(platform.python_version())"], folder, os.environ)
    found = version.stdout.strip()
    packages = with_torch(found.rpartition(".")[0], python, torch)
    made = environment(folder / "env", python)
    corebatch = made.with_name("corebatch")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "OMP_"))}
    env |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PATH": f"{made.parent}:{env['PATH']}"}
    env |= {"XDG_CACHE_HOME": str(folder / "cache"), "HF_HOME": str(folder / "cache")}
    install = [made, "-m", "pip", "install", "--quiet"]
    failed = []

    def check(what: str, good: bool, done: subprocess.CompletedProcess[str] | None = None) -> str:
        if not good:
            failed.append(what)
            print(f"{what} failed on {found}\n{'' if done is None else done.stdout + done.stderr}", flush=True)
        return "yes" if good else "no"

    subprocess.run([*install, "--no-deps", wheel], check=True)
    alone = fastest([made, "-c", "import corebatch"], folder, env)
    load, busy = os.getloadavg()[0], os.getloadavg()[0] > (os.cpu_count() or 1)
    check("import", alone < IMPORT or busy)
    (installed,) = (folder / "env").glob("lib/python*/site-packages")
    (installed / "torch-alone.pth").write_text(f"{packages}\n")
    done = run([made, "-c", SELECT], folder, env)
    beside = check("torch and numpy", done.stdout == "16\n" and done.returncode == 0, done)
    subprocess.run([*install, wheel], check=True)
    helped = fastest([corebatch, "--help"], folder, env)
    check("help", helped < HELP or busy)
    furnish(folder, made, env)
    done = run([corebatch, *TRAIN, "--output_dir", "runs/core", "--max_steps", 4], folder, env)
    core = check("core", done.returncode == 0 and (folder / "runs/core/finished.json").is_file(), done)
    missed = list(unnamed_extras(made, folder, env))
    check("extras", not missed)
    seconds = four_commands(made, wheel, folder, env)
    return {
        "Python": found,
        "torch": run([made, "-c", "import torch; print(torch.__version__)"], folder, env).stdout.strip(),
        "import": f"{alone:.2f} s",
        "help": f"{helped:.2f} s",
        "torch and numpy": beside,
        "core": core,
        "extras named": f"{len(EXTRAS) - len(missed)} of {len(EXTRAS)}",
        "README": " + ".join(f"{each:.0f}" for each in seconds) + " s",
        "types": check("types", typed(made, folder, env)),
        "failed": len(failed),
        "load": f"{load:.0f}",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": tested,
    }


def page(rows: list[dict[str, Any]]) -> str:
    """The table, and what it is of."""
    text = table(HEAD, [[str(row[key]) for key in HEAD] for row in rows])
    of = ", ".join(dict.fromkeys(f"{row['date']}, commit {row['commit']}" for row in rows))
    return f"{text}\n\n{of}; {platform.machine()}, {os.cpu_count()} cores, no GPU."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pythons", nargs="+", default=["python3.11", "python3.12", "python3.13"])
    parser.add_argument("--torch", default="torch==2.13.0")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    wheel, rows = build(), []
    for python in args.pythons:
        if shutil.which(python) is None or subprocess.run([python, "-c", ""], stderr=subprocess.DEVNULL).returncode:
            print(f"{python} is not on this machine", flush=True)
            continue
        print(f"== {python}", flush=True)
        with tempfile.TemporaryDirectory(prefix="corebatch-wheel-") as folder:
            rows.append(measure(python, wheel, args.torch, Path(folder)))
    print(page(rows))
    if args.write:
        write_between(PAGE, "table of make wheel", page(rows))
    if not rows or any(row["failed"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()

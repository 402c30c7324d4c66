"""Malformed inputs, made from a seed: files, rows, settings, command lines, templates, model folders.

Whatever a user gives, the command line answers with exit code 0, or with exit code 2 and one message; never with a
traceback, never without an end. `python tests/faults/malformed.py --inputs 2000 --seed 1` looks for inputs that do
otherwise; the suite tries some of each family.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import lzma
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

sys.path.append(str(Path(__file__).parents[1]))  # for a run without pytest

from corebatch.cli.main import main
from folders import save_tiny_model

SECONDS = 60
Json = Any
Maker = Callable[[random.Random, Path, dict[str, Any]], list[str]]

GOOD_ROWS: list[dict[str, Json]] = [
    {"prompt": "2+2?", "completion": "4", "source": "sums"},
    {"instruction": "Add.", "input": "2 2", "output": "4"},
    {"text": "Two and two are four."},
    {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]},
    {
        "messages": [
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
            {"role": "assistant", "content": "", "reasoning_content": "Ask the tool.", "tool_calls": [
                {"type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
            {"role": "tool", "name": "weather", "content": "rain"},
            {"role": "assistant", "content": "Rain.", "weight": 1},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    },
    {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}], "system": "Be short."},
    {"prompt": [{"role": "user", "content": "2+2?"}], "completion": [{"role": "assistant", "content": "4"}]},
]  # fmt: skip
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>{% endfor %}"


def odd_value(random_: random.Random) -> Json:
    """A value that hardly any key takes."""
    deep: Json = 0
    for _ in range(random_.choice([3, 60, 400])):
        deep = [deep] if random_.random() < 0.5 else {"a": deep}
    return random_.choice(
        [
            None, True, False, 0, -1, 1, 10**30, 1e308, math.nan, math.inf, "", " ", "\n", "\x00", "\ud800", "[/]",
            "[red]",
            "\x1b[31m", "nan", "1e400", "a" * 5000, "9" * 5000, "../..", "/", "~", "{{ x }}", "{% x", "$(ls)", "é",
            [], {}, [[]], [None], [{}], {"": None}, {"role": "user"}, [0, "a"], deep, "2026-01-01",
            "!!python/name:os",
        ]
    )  # fmt: skip


def places(value: Json, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths of all inner values of a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inner:
        yield (*path, key)
        yield from places(part, (*path, key))


def mutated(random_: random.Random, value: Json) -> Json:
    """A copy in which one place is replaced, removed, renamed or doubled."""
    value = json.loads(json.dumps(value))
    path = random_.choice(list(places(value)))
    at = value
    for key in path[:-1]:
        at = at[key]
    last, how = path[-1], random_.choice(["replace", "replace", "remove", "rename", "add", "double"])
    if how == "replace":
        at[last] = odd_value(random_)
    elif how == "remove":
        del at[last]
    elif how == "double" and isinstance(at, list):
        at.append(at[last])
    elif isinstance(at, dict):
        keys = [
            "role",
            "content",
            "weight",
            "tools",
            "system",
            "label",
            "images",
            "name",
            "x",
            "",
            "source",
            "thinking",
        ]
        new = random_.choice(keys)
        at[new] = at.pop(last) if how == "rename" else odd_value(random_)
    return value


def damaged(random_: random.Random, data: bytes) -> bytes:
    """Bytes with a hole, a flip, an insertion, another encoding, or an early end."""
    position = random_.randrange(len(data) + 1)
    piece = random_.choice(
        [b"\x00", b"\xff", b"\xe9", b'"', b"{", b"[", b"\r", b"\n\n", b",", b"\xef\xbb\xbf", b"\x1a"]
    )
    how = random_.randrange(6)
    if how == 0:
        return data[:position]
    if how == 1:
        return data[:position] + piece + data[position + 1 :]
    if how == 2:
        return data[:position] + piece + data[position:]
    if how == 3:
        return b"\xef\xbb\xbf" + data
    if how == 4:
        return data.decode("utf-8", "replace").encode(random_.choice(["utf-16", "utf-16-le", "utf-32"]))
    return data + data[:position]


def rows_of(random_: random.Random, count: int = 40) -> list[dict[str, Json]]:
    """Good rows of one form."""
    return [json.loads(json.dumps(random_.choice(GOOD_ROWS)))] * count


def with_data(folder: Path, settings: dict[str, Any], name: str, data: bytes) -> list[str]:
    """The words of a command over one file of data."""
    path = folder / name
    path.write_bytes(data)
    return over(folder, {**settings, "datasets": [{"path": str(path)}]})


def over(folder: Path, settings: dict[str, Any]) -> list[str]:
    """The words of a command over settings."""
    config = folder / "config.yaml"
    try:
        text = yaml.safe_dump(settings)
    except RecursionError:  # values nested a thousand deep, which JSON's writer takes
        text = json.dumps(settings)
    config.write_text(text, encoding="utf-8", errors="surrogatepass")
    return ["validate", str(config)]


def lines(rows: list[Json]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def odd_row(random_: random.Random, folder: Path, settings: dict[str, Any]) -> list[str]:
    rows = rows_of(random_)
    place = random_.randrange(len(rows))
    for _ in range(random_.choice([1, 1, 2, 5])):
        with contextlib.suppress(IndexError):
            rows[place] = mutated(random_, rows[place])
    settings["apply_chat_template"] = random_.random() < 0.3
    return with_data(folder, settings, "rows.jsonl", lines(rows))


def csv_text(rows: list[dict[str, Json]], separator: str) -> bytes:
    import csv

    keys = list(rows[0])
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator)
    writer.writerow(keys)
    writer.writerows([[row[key] for key in keys] for row in rows])
    return out.getvalue().encode()


def parquet(rows: list[dict[str, Json]]) -> bytes:
    from datasets import Dataset

    out = io.BytesIO()
    Dataset.from_list(rows).to_parquet(out)
    return out.getvalue()


def bad_file(random_: random.Random, folder: Path, settings: dict[str, Any]) -> list[str]:
    rows = rows_of(random_)
    flat = [{"prompt": "2+2?", "completion": "4"}] * 40
    kinds: dict[str, Callable[[], bytes]] = {
        "rows.jsonl": lambda: lines(rows),
        "rows.ndjson": lambda: lines(rows),
        "rows.json": lambda: json.dumps(rows).encode(),
        "rows.csv": lambda: csv_text(flat, ","),
        "rows.tsv": lambda: csv_text(flat, "\t"),
        "rows.parquet": lambda: parquet(flat),
        "rows.jsonl.gz": lambda: gzip.compress(lines(rows)),
        "rows.jsonl.xz": lambda: lzma.compress(lines(rows)),
        "rows.jsonl.zst": lambda: b"\x28\xb5\x2f\xfd" + lines(rows),
        "rows.txt": lambda: b"a line\n" * 40,
        "rows": lambda: lines(rows),
        "rows.jsonl.bz2": lambda: b"BZh9" + lines(rows),
    }
    name = random_.choice(list(kinds))
    return with_data(folder, settings, name, damaged(random_, kinds[name]()))


def odd_path(random_: random.Random, folder: Path, settings: dict[str, Any]) -> list[str]:
    (folder / "empty.jsonl").touch()
    (folder / "empty").mkdir()
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "nowhere.jsonl").symlink_to(folder / "gone.jsonl")
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "nested" / "deeper").mkdir(parents=True)
    (folder / "nested" / "deeper" / "a.jsonl").write_bytes(lines(rows_of(random_)))
    (folder / "nested" / "link").symlink_to(folder / "nested")
    (folder / "folder.jsonl").mkdir()
    given: Any = random_.choice(
        [*(str(path) for path in sorted(folder.iterdir())), f"{folder}/*", f"{folder}/**", f"{folder}/[", "*", "",
        " ", ".",
         "/dev/null", "/dev/zero", "~", "http://x/y.jsonl", "s3://x/y", "a" * 300, "a/b/c/d", "\x00", "gsm8k", [],
         [[]],
         [f"{folder}/empty.jsonl"] * 2, odd_value(random_)]
    )  # fmt: skip
    key = random_.choice(["datasets", "datasets", "eval_datasets"])
    return over(folder, {**settings, key: [{"path": given}] if random_.random() < 0.9 else given})


def odd_setting(random_: random.Random, folder: Path, settings: dict[str, Any]) -> list[str]:
    from corebatch.config.settings import KEYS
    from corebatch.trainer import CoresetConfig

    block = list(CoresetConfig.__dataclass_fields__)
    for _ in range(random_.choice([1, 1, 2])):
        if random_.random() < 0.4:
            settings["coreset"] = {**settings["coreset"], random_.choice(block): odd_value(random_)}
        else:
            settings[random_.choice(KEYS)] = odd_value(random_)
    return over(folder, settings)


def bad_config(random_: random.Random, folder: Path, settings: dict[str, Any]) -> list[str]:
    words = over(folder, settings)
    config = Path(words[1])
    data = config.read_bytes()
    for _ in range(random_.choice([1, 2, 4])):
        data = damaged(random_, data)
    config.write_bytes(data)
    return words


def odd_words(random_: random.Random, folder: Path, settings: dict[str, Any]) -> list[str]:
    words = over(folder, settings)
    pieces = [
        "--max_steps", "--coreset.pool_factor", "--coreset", "--datasets", "--=", "--", "-", "--a.b.c", "=",
        "--output_dir",
        "3", "-3", "nan", "1e999", "[", "{", "a: b: c", "true", "\udcff", "--coreset.selector", "cube", "[[[",
        "&a [*a]",
        "--eval_datasets", "--resume_from_checkpoint", "--overwrite", "--learning_rate", ".nan", "'", "9" * 5000,
        "null",
    ]  # fmt: skip
    return words + [random_.choice(pieces) for _ in range(random_.randrange(1, 5))]


def bad_template(random_: random.Random, folder: Path, settings: dict[str, Any]) -> list[str]:
    template = random_.choice(
        [
            "{{ raise_exception('no') }}", "{{ x.y.z }}", "{% for", "{{ messages[99].content }}", "", " ",
            "plain words",
            "{{ 1/0 }}", "{% for i in range(99999999) %}x{% endfor %}", "{{ messages }}", "{{ tools }}",
            "{% include 'x' %}", "{{ ''.__class__.__mro__ }}", "{{ strftime_now(1) }}", "chat.jinja",
            "/no/such.jinja",
            "{{ 'x' * 99999999 }}", TEMPLATE[: random_.randrange(len(TEMPLATE))],
        ]
    )  # fmt: skip
    settings.update(apply_chat_template=True, chat_template=template)
    return with_data(folder, settings, "rows.jsonl", lines(rows_of(random_)))


def bad_model(random_: random.Random, folder: Path, settings: dict[str, Any]) -> list[str]:
    model = folder / "model"
    shutil.copytree(settings["model_name_or_path"], model)
    path = random_.choice(sorted(path for path in model.iterdir() if path.is_file()))
    if path.suffix == ".json" and random_.random() < 0.7:
        path.write_text(json.dumps(mutated(random_, json.loads(path.read_text()))))
    elif random_.random() < 0.3:
        path.unlink()
    else:
        path.write_bytes(damaged(random_, path.read_bytes()))
    return over(folder, {**settings, "model_name_or_path": str(model)})


FAMILIES: dict[str, Maker] = {
    "row": odd_row,
    "file": bad_file,
    "path": odd_path,
    "setting": odd_setting,
    "config": bad_config,
    "words": odd_words,
    "template": bad_template,
    "model": bad_model,
}


@dataclass(frozen=True)
class Outcome:
    """What the command line did: its exit code, what it said, and what is wrong with that ("" if nothing is)."""

    words: list[str]
    code: int | None
    said: str
    wrong: str


class TooLongError(BaseException):
    """The time was up; no handler of `Exception` may catch this."""


def _stop(*_: Any) -> None:
    raise TooLongError


def outcome(words: list[str]) -> Outcome:
    """Runs the command line in this process."""
    out, code, wrong = io.StringIO(), 0, ""
    before, sys.argv = sys.argv, ["corebatch", *words]
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except TooLongError:
        wrong = f"no end within {SECONDS} s"
    except BaseException:
        wrong = traceback.format_exc()
    finally:
        signal.alarm(0)
        sys.argv = before
    said = out.getvalue()
    if not wrong and code not in (0, 2):
        wrong = f"exit code {code}"
    elif not wrong and "Traceback (most recent" in said:
        wrong = "a traceback"
    elif not wrong and code == 2 and not said.strip():
        wrong = "exit code 2 without a word"
    return Outcome(words, code, said, wrong)


def try_one(family: str, seed: int, model: Path) -> Outcome:
    """One input of a family."""
    random_ = random.Random(f"{family} {seed}")
    folder = Path(tempfile.mkdtemp(prefix="malformed-"))
    rows = folder / "good.jsonl"
    rows.write_bytes(lines([{"prompt": f"{n}+1?", "completion": str(n + 1)} for n in range(40)]))
    settings = {
        "model_name_or_path": str(model), "datasets": [{"path": str(rows)}], "output_dir": str(folder / "run"),
        "max_steps": 2, "per_device_train_batch_size": 2, "max_length": 128, "use_cpu": True, "lora_r": 2,
        "coreset": {"pool_factor": 2},
    }  # fmt: skip
    here = Path.cwd()
    os.chdir(folder)
    try:
        return outcome(FAMILIES[family](random_, folder, settings))
    finally:
        os.chdir(here)
        shutil.rmtree(folder, ignore_errors=True)


def search() -> None:
    """Tries many inputs and prints those that end badly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=400, help="of each family")
    parser.add_argument("--seed", type=int, default=0, help="the first input's number")
    parser.add_argument("--family", choices=list(FAMILIES), action="append")
    given = parser.parse_args()
    bad, model = 0, Path(tempfile.mkdtemp(prefix="malformed-model-"))
    save_tiny_model(model)
    for family in given.family or FAMILIES:
        for seed in range(given.seed, given.seed + given.inputs):
            done = try_one(family, seed, model)
            if done.wrong:
                bad += 1
                print(f"--- {family} {seed}: {' '.join(done.words)[:300]!r}\n{done.wrong[-1500:]}", flush=True)
        print(f"{family}: {given.inputs} inputs from {given.seed}", flush=True)
    shutil.rmtree(model)
    sys.exit(bad > 0)


if __name__ == "__main__":
    search()

"""Tokenised rows are made once, and those that are kept are bit for bit those that are made anew."""

from __future__ import annotations

import copy
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import psutil
import pytest
from mixture_rows import WriteLines, qa
from transformers import AutoTokenizer

from corebatch import scratch
from corebatch.errors import ConfigError, DataError
from corebatch.mixture import Mixture, cache, digests, load_mixture
from corebatch.mixture.cache import RowCache, write_record
from corebatch.mixture.digests import Memo, tokenizer_digest
from corebatch.mixture.parallel import in_order
from corebatch.mixture.tally import Tally
from corebatch.mixture.tokenise import Tokeniser

ROWS = [*qa(40, source="a"), *qa(7, source="b"), {"prompt": "q", "completion": " ", "source": "b", "note": 1}]


def table(mixture: Mixture) -> Any:
    return mixture.dataset.with_format("arrow")[:]


def same(one: Mixture, other: Mixture) -> bool:
    return (
        table(one).equals(table(other))
        and one.dataset.column_names == other.dataset.column_names
        and one.counts == other.counts
        and list(one.counts) == list(other.counts)
        and one.summary() == other.summary()
        and one.unused_columns == other.unused_columns
    )


def entries(kept: Path) -> list[str]:
    return sorted(entry.folder.name for entry in RowCache(kept).entries())


def forked(work: Callable[[], Any]) -> int:
    """A process that does the work and ends, without the handlers that a Python runs at its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, from Python 3.12 on
        pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("weight", [1, 2.5])
def test_kept_rows_are_those_that_are_made(
    write_jsonl: WriteLines, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    specs = [{"path": str(write_jsonl("a.jsonl", ROWS)), "weight": weight}, str(write_jsonl("c.jsonl", qa(5)))]
    anew = load_mixture(specs, tokenizer, cache=False, max_length=30)
    first = load_mixture(specs, tokenizer, max_length=30)
    monkeypatch.setattr(Tokeniser, "__call__", None)
    second = load_mixture(specs, tokenizer, max_length=30)
    assert same(anew, first)
    assert same(anew, second)
    assert second.counts["b"].rows_dropped == 1
    assert second.unused_columns == {specs[0]["path"]: ("note",)}
    folder = Path(second.dataset.cache_files[0]["filename"]).parent
    assert isinstance(Tally.load(folder, cache.read_record(folder)["tally"]).rows, np.memmap)


def test_what_is_not_in_the_rows_is_not_in_the_key(
    write_jsonl: WriteLines, tokenizer: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(write_jsonl("a.jsonl", ROWS))
    load_mixture([{"path": path, "source": "x", "weight": 1}], tokenizer, max_length=30, separator=" ")
    monkeypatch.setattr(Tokeniser, "__call__", None)
    load_mixture([{"weight": 0.5, "source": "x", "path": path}], tokenizer, separator=" ", max_length=30, seed=7)
    assert len(entries(kept)) == 1


CHANGES: dict[str, Any] = {
    "max_length": {"max_length": 9},
    "separator": {"separator": " "},
    "source_column": {"source_column": "kind"},
    "apply_chat_template": {"apply_chat_template": True},
    "train_turns": {"train_turns": "last"},
    "chat_template": {"chat_template": "plain"},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_another_setting_makes_other_rows(
    write_jsonl: WriteLines, tokenizer: Any, kept: Path, changes: dict[str, Any]
) -> None:
    specs = [str(write_jsonl("a.jsonl", ROWS))]
    load_mixture(specs, tokenizer)
    assert same(load_mixture(specs, tokenizer, **changes), load_mixture(specs, tokenizer, cache=False, **changes))
    assert len(entries(kept)) == 2


def test_another_tokenizer_makes_other_rows(write_jsonl: WriteLines, kept: Path, make_tokenizer: Any) -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    specs = [str(write_jsonl("a.jsonl", [{"messages": turns}, {"text": "x"}][:1]))]
    plain = make_tokenizer()
    other_template = make_tokenizer()
    other_template.chat_template = plain.chat_template.replace("<|end|>", "</s>")
    with_token = make_tokenizer()
    with_token.add_tokens(["answer"])
    tokenizers = [
        plain,
        other_template,
        with_token,
        make_tokenizer(bos=True),
        make_tokenizer(eos_token="<pad>"),
    ]
    for number, one in enumerate(tokenizers, start=1):
        assert same(load_mixture(specs, one), load_mixture(specs, one, cache=False))
        assert len(entries(kept)) == number


def test_a_tokenizer_is_the_same_after_use_and_in_another_process(tmp_path: Path, make_tokenizer: Any) -> None:
    one = make_tokenizer()
    before = tokenizer_digest(one)
    one(["a", "b c d e"], padding=True, truncation=True, max_length=3, return_tensors="pt")
    one.apply_chat_template([{"role": "user", "content": "q"}], tokenize=True)
    assert tokenizer_digest(one) == tokenizer_digest(copy.deepcopy(one)) == before
    one.save_pretrained(tmp_path / "saved")
    shutil.copytree(tmp_path / "saved", tmp_path / "copied")
    code = (
        "import sys; from transformers import AutoTokenizer; from corebatch.mixture.digests import tokenizer_digest; "
        "print(tokenizer_digest(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    elsewhere = subprocess.check_output(
        [sys.executable, "-c", code, str(tmp_path / "copied")], text=True, env={**os.environ, "PYTHONHASHSEED": "7"}
    )
    assert elsewhere.strip() == tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path / "saved"))


def test_a_template_that_writes_the_date(
    write_jsonl: WriteLines, kept: Path, make_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = make_tokenizer()
    one.chat_template = "{{ strftime_now('%Y') }}" + one.chat_template
    specs = [str(write_jsonl("a.jsonl", qa(3)))]
    load_mixture(specs, one)

    class Tomorrow(digests.datetime.date):
        @classmethod
        def today(cls) -> Any:
            return super().today() + digests.datetime.timedelta(days=1)

    monkeypatch.setattr(digests.datetime, "date", Tomorrow)
    load_mixture(specs, one)
    assert len(entries(kept)) == 2


@pytest.mark.parametrize("settled", [digests.SETTLED, -(10**18)], ids=["young", "noted"])
def test_a_file_changed_with_equal_size_and_time(
    write_jsonl: WriteLines, tokenizer: Any, kept: Path, monkeypatch: pytest.MonkeyPatch, settled: int
) -> None:
    monkeypatch.setattr(digests, "SETTLED", settled)
    path = write_jsonl("a.jsonl", [{"text": "one"}])
    load_mixture([str(path)], tokenizer)
    assert len(list(kept.glob("digests/*.json"))) == (settled < 0)
    times = path.stat()
    with path.open("r+") as stream:  # the same inode
        stream.write(json.dumps({"text": "two"}))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert path.stat().st_size == times.st_size
    mixture = load_mixture([str(path)], tokenizer)
    assert tokenizer.decode(mixture.dataset[0]["input_ids"]) == "two</s>"


def test_files_are_not_read_twice(write_jsonl: WriteLines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "SETTLED", -(10**18))
    path = write_jsonl("a.jsonl", qa(3))
    digest = Memo(tmp_path / "notes").digest(path)
    monkeypatch.setattr(digests.hashlib, "file_digest", None)
    assert Memo(tmp_path / "notes").digest(path) == digest
    next((tmp_path / "notes").iterdir()).write_text("damaged")
    with pytest.raises(TypeError):
        Memo(tmp_path / "notes").digest(path)


def test_rows_of_a_file_that_changes_meanwhile_are_not_kept(
    write_jsonl: WriteLines, tokenizer: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl("a.jsonl", qa(3))
    tokenise = Tokeniser.__call__

    def slowly(self: Any, *arguments: Any) -> Any:
        with path.open("a") as stream:
            stream.write("\n")
        return tokenise(self, *arguments)

    monkeypatch.setattr(Tokeniser, "__call__", slowly)
    assert len(load_mixture([str(path)], tokenizer).dataset) == 3
    assert entries(kept) == []


def test_errors_are_not_kept(write_jsonl: WriteLines, tokenizer: Any, kept: Path) -> None:
    for rows in ([{"text": 3}], [{"prompt": "q", "completion": " "}]):
        path = write_jsonl("a.jsonl", rows)
        for _ in range(2):
            with pytest.raises(DataError):
                load_mixture([str(path)], tokenizer)
    assert [path.name for path in (kept / "rows").iterdir() if path.is_dir()] == []
    assert len(load_mixture([str(write_jsonl("a.jsonl", qa(3)))], tokenizer).dataset) == 3


@pytest.mark.parametrize("damage", ["rows.arrow", "tally.npy", "entry.json", "short", "edited", "number"])
def test_damaged_rows_are_made_anew(
    write_jsonl: WriteLines, tokenizer: Any, kept: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    specs = [str(write_jsonl("a.jsonl", ROWS))]
    anew = load_mixture(specs, tokenizer, cache=False)
    load_mixture(specs, tokenizer)
    folder = RowCache(kept).entries()[0].folder
    if damage == "short":
        os.truncate(folder / "rows.arrow", 100)
    elif damage == "edited":
        record = folder / "entry.json"
        record.write_text(record.read_text().replace('"read": [40', '"read": [41'))
    elif damage == "number":
        (folder / "entry.json").write_text("3")
    else:
        (folder / damage).unlink()
    assert same(load_mixture(specs, tokenizer), anew)
    assert "are damaged" in caplog.text
    caplog.clear()
    assert same(load_mixture(specs, tokenizer), anew)
    assert not caplog.records


def test_a_folder_that_cannot_be_written(
    write_jsonl: WriteLines, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(cache, "_said", set())
    specs = [str(write_jsonl("a.jsonl", ROWS))]
    for _ in range(2):
        mixture = load_mixture(specs, tokenizer, cache=tmp_path / "file")
        assert same(mixture, load_mixture(specs, tokenizer, cache=False))
    assert [record.getMessage().split(",")[0] for record in caplog.records] == ["Tokenised rows are not kept"]


def test_kept_rows_serve_where_nothing_can_be_written(
    write_jsonl: WriteLines, tokenizer: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [str(write_jsonl("a.jsonl", ROWS))]
    first = load_mixture(specs, tokenizer)
    monkeypatch.setattr(RowCache, "_lock", lambda *_: None)
    monkeypatch.setattr(Tokeniser, "__call__", None)
    assert same(load_mixture(specs, tokenizer), first)


def test_two_processes_make_rows_once(
    write_jsonl: WriteLines, tokenizer: Any, tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs, made = [str(write_jsonl("a.jsonl", qa(30)))], tmp_path / "made"
    tokenise = Tokeniser.__call__

    def slowly(self: Any, *arguments: Any) -> Any:
        with made.open("a") as stream:
            stream.write("made ")
        time.sleep(0.5)
        return tokenise(self, *arguments)

    monkeypatch.setattr(Tokeniser, "__call__", slowly)
    processes = [forked(lambda: load_mixture(specs, tokenizer)) for _ in range(3)]
    assert [code_of(pid) for pid in processes] == [0, 0, 0]
    assert made.read_text() == "made "
    assert len(entries(kept)) == 1


def test_a_kill_in_the_middle_leaves_nothing(
    write_jsonl: WriteLines, tokenizer: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = [str(write_jsonl("a.jsonl", qa(30)))]
    with monkeypatch.context() as patch:
        patch.setattr(Tally, "end_spec", lambda _: os.kill(os.getpid(), signal.SIGKILL))
        assert code_of(forked(lambda: load_mixture(specs, tokenizer))) == -signal.SIGKILL
    assert len(list(kept.glob("rows/building-*"))) == 1
    assert len(load_mixture(specs, tokenizer).dataset) == 30
    assert list(kept.glob("rows/building-*")) == []
    assert len(entries(kept)) == 1


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP, signal.SIGKILL, None], ids=str)
def test_temporary_rows_go_at_the_end_or_at_the_next_start(
    write_jsonl: WriteLines, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Any
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    specs = [str(write_jsonl("a.jsonl", qa(30)))]
    ready, tell = os.pipe()

    def work() -> None:
        if end in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(end, signal.SIG_DFL)  # a shell may have had it ignored
        load_mixture(specs, tokenizer, cache=False)
        os.write(tell, b"!")
        if end is None:
            scratch._remove_all()
        else:
            time.sleep(60)

    process = forked(work)
    assert os.read(ready, 1) == b"!"
    if end is not None:
        other = scratch.scratch_folder(temporary, cache.TEMPORARY)  # a start beside a living process
        assert len(list(temporary.iterdir())) == 2
        scratch.discard(other)
        os.kill(process, end)
    assert code_of(process) == (0 if end is None else -end)
    assert len(list(temporary.iterdir())) == (0 if end is None else 1)
    other = scratch.scratch_folder(temporary, cache.TEMPORARY)
    assert list(temporary.iterdir()) == [other]
    scratch.discard(other)


def test_folders_of_comparisons_go_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def work() -> None:
        with scratch.temporary_folder("corebatch-compare-"):
            os.kill(os.getpid(), signal.SIGKILL)

    assert code_of(forked(work)) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    with scratch.temporary_folder("corebatch-compare-") as folder:
        assert list(Path(folder).iterdir()) == []
        assert not left.exists()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []


def make_of(size: int) -> Any:
    def make(folder: Path) -> bool:
        (folder / "rows").write_bytes(b"x" * size)
        write_record(folder, {"specs": ["x"], "tally": {"ends": [3]}})
        return True

    return make


def test_the_folder_is_bounded_and_what_is_in_use_stays(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREBATCH_CACHE_GB", "0.005")
    rows = RowCache()
    for number, key in enumerate("abcd"):
        folder = rows.folder_for(key, make_of(10**6))
        os.utime(folder / scratch.LOCK, (number, number))
        if key != "a":
            scratch._let_go(folder)
    rows.folder_for("b", make_of(1))  # used again
    scratch._let_go(rows.rows / "b")
    rows.folder_for("e", make_of(2_500_000))
    assert entries(kept) == ["a", "b", "e"]  # c and d went first; a is in use, and b was used after them
    assert rows.folder_for("f", make_of(6 * 10**6)).name.startswith(cache.BUILDING)  # beyond the bound by itself
    assert entries(kept) == ["a", "b", "e"]


@pytest.mark.parametrize("value", ["much", "-1", "nan", "inf"])
def test_a_bad_bound(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("COREBATCH_CACHE_GB", value)
    with pytest.raises(ConfigError, match="COREBATCH_CACHE_GB should be a number"):
        RowCache()


def test_what_a_removal_left_is_removed(kept: Path) -> None:
    rows = RowCache()
    folder = rows.folder_for("a", make_of(10))
    (folder / cache.RECORD).unlink()
    scratch._let_go(folder)
    removed, left = rows.clear()
    assert ([entry.folder.name for entry in removed], left) == (["a"], [])


def test_the_command(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from corebatch.cli.main import app

    rows = RowCache()
    for key in ("aaa1", "aaa2", "bbb"):
        scratch._let_go(rows.folder_for(key, make_of(10)))
    rows.folder_for("bbb", make_of(10))
    run = CliRunner().invoke
    listed = run(app, ["cache", "list"]).output
    assert all(word in listed for word in ("aaa1", "aaa2", "bbb", "of at most 20 GB", str(kept)))
    assert isinstance(run(app, ["cache", "clear", "c"]).exception, ConfigError)
    assert "removed 1 sets" in run(app, ["cache", "clear", "aaa1"]).output
    assert "removed 1 sets of rows, 0.00 GB; 1 are in use and stay" in run(app, ["cache", "clear"]).output
    assert entries(kept) == ["bbb"]


@pytest.mark.parametrize("kind", ["saved", "parquet", "arrow", "slice"])
def test_other_kinds_of_files(tmp_path: Path, tokenizer: Any, kept: Path, kind: str) -> None:
    def write(rows: list[Any]) -> str:
        table = datasets.Dataset.from_list(rows)
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        if kind == "parquet":
            (tmp_path / "x").mkdir()
            table.to_parquet(tmp_path / "x" / "a.parquet")
            return str(tmp_path / "x" / "a.parquet")
        table.save_to_disk(tmp_path / "x")
        return str(next((tmp_path / "x").glob("*.arrow")) if kind == "arrow" else tmp_path / "x")

    split = "train[1:3]" if kind == "slice" else None
    for number, rows in enumerate((qa(5), qa(5, source="s"), qa(6)), start=1):
        spec = {"path": write(rows), "split": split}
        assert same(load_mixture([spec], tokenizer), load_mixture([spec], tokenizer, cache=False))
        assert same(load_mixture([spec], tokenizer), load_mixture([spec], tokenizer, cache=False))
        assert len(entries(kept)) == number


def test_a_warning_is_repeated(write_jsonl: WriteLines, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"text": "x", "source": str(i % 1001)} for i in range(2100)]
    specs = [str(write_jsonl("a.jsonl", rows))]
    for _ in range(2):
        with caplog.at_level(logging.WARNING):
            load_mixture(specs, tokenizer)
        assert caplog.text.count("1,001 sources in 2,100 rows") == 1
        caplog.clear()


def test_several_processes_give_the_rows_of_one(write_jsonl: WriteLines, tokenizer: Any, tmp_path: Path) -> None:
    specs = [str(write_jsonl("a.jsonl", [*ROWS * 30])), str(write_jsonl("b.jsonl", qa(700)))]
    made = [
        load_mixture(specs, tokenizer, dataset_num_proc=processes, cache=tmp_path / str(processes), max_length=20)
        for processes in (1, 3)
    ]
    assert same(*made)
    files = [Path(mixture.dataset.cache_files[0]["filename"]) for mixture in made]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert files[0].with_name("tally.npy").read_bytes() == files[1].with_name("tally.npy").read_bytes()


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_error_is_that_of_one_process(write_jsonl: WriteLines, tokenizer: Any, processes: int) -> None:
    rows: list[Any] = [*qa(600), {"input_ids": [10**6], "labels": [1]}]
    tokens = [{"input_ids": [1, 2], "labels": [1, 2]}] * 600
    path = write_jsonl("a.jsonl", [*tokens, {"input_ids": [10**6], "labels": [1]}, *tokens * 4, {"input_ids": "x"}])
    with pytest.raises(DataError, match="line 601: token ids should be below"):
        load_mixture([str(path)], tokenizer, dataset_num_proc=processes)
    path = write_jsonl("b.jsonl", [*rows[:600], {"prompt": 3}])
    with pytest.raises(DataError, match=r"b\.jsonl, line 601"):
        load_mixture([str(path)], tokenizer, dataset_num_proc=processes)


def test_a_worker_that_dies(write_jsonl: WriteLines, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tokeniser, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(DataError, match="One of the 2 processes that tokenise died"):
        load_mixture([str(write_jsonl("a.jsonl", qa(30)))], tokenizer, dataset_num_proc=2)


@pytest.mark.parametrize("given", [0, -1, True, 1.5, "2"])
def test_a_bad_number_of_processes(write_jsonl: WriteLines, tokenizer: Any, given: Any) -> None:
    with pytest.raises(ConfigError, match="`dataset_num_proc` should be"):
        load_mixture([str(write_jsonl("a.jsonl", qa(3)))], tokenizer, dataset_num_proc=given)


def test_workers_end_with_their_parent() -> None:
    ready, tell = os.pipe()

    def work() -> None:
        for pid in in_order(lambda _: os.getpid(), range(9), 2):
            os.write(tell, str(pid).encode())
            os.kill(os.getpid(), signal.SIGKILL)

    assert code_of(forked(work)) == -signal.SIGKILL
    worker = int(os.read(ready, 20))
    until = time.time() + 30
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.time() < until, "a worker outlived its parent"
        time.sleep(0.2)

"""What `corebatch train` begins, goes on with, and leaves alone in a folder; and what comes after the last step."""

import json
import signal
import sys
import time
from pathlib import Path

import pytest

from corebatch.cli.main import main
from corebatch.launch import closing

pytestmark = pytest.mark.usefixtures("one_thread")
RESUME = ("--resume_from_checkpoint", "true")


@pytest.fixture
def run(settings):
    return Path(settings["output_dir"])


@pytest.fixture
def train(monkeypatch, config, capfd):
    """`corebatch train CONFIG words...`: the exit code, and what was printed."""

    def call(*words, command="train"):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["corebatch", command, str(config), *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        out, err = capfd.readouterr()
        return code, out + err

    return call


def files(folder):
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    "words", [(), ("--coreset.pool_factor", "1"), ("--max_steps", "-1", "--num_train_epochs", "1")]
)
def test_a_finished_run_has_nothing_to_do_and_changes_no_file(train, run, words):
    assert train(*words)[0] == 0
    before = files(run)
    for _ in range(2):
        code, said = train(*words, *RESUME)
        assert code == 0
        assert "Nothing to do: the run in" in said
        assert files(run) == before
    code, said = train(*words, *RESUME, command="validate")
    assert code == 0
    assert "Nothing to do: the run has made all its steps" in said
    assert "step was made" not in said
    code, said = train(*words)
    assert code == 2
    assert "is not empty" in said
    assert files(run) == before


@pytest.mark.parametrize("missing", ["README.md", "report.html", "adapter_model.safetensors"])
def test_a_kill_behind_the_last_step_leaves_the_rest_to_be_finished(train, run, missing, caplog):
    assert train()[0] == 0
    whole = {name: (run / name).read_bytes() for name in ("adapter_model.safetensors", "README.md")}
    (run / "finished.json").unlink()
    (run / missing).unlink()
    code, said = train(*RESUME)
    assert code == 0, said
    assert "All 4 steps are done" in caplog.text
    assert (run / missing).is_file()
    assert {name: (run / name).read_bytes() for name in whole} == whole
    assert len((run / "selection.jsonl").read_text().splitlines()) == 4
    assert "Nothing to do" in train(*RESUME)[1]


def test_a_longer_run_goes_on_from_a_finished_one(train, run):
    assert train("--lr_scheduler_type", "constant")[0] == 0
    assert train("--lr_scheduler_type", "constant", "--max_steps", "6", *RESUME)[0] == 0
    assert "Steps: 6" in (run / "README.md").read_text()
    assert json.loads((run / "finished.json").read_text())["step"] == 6


def full(*_, **__):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("part, safe", [("write_card", "{run}."), ("finish", "{run}.")])
def test_a_full_disk_behind_the_last_step(train, run, monkeypatch, part, safe):
    with monkeypatch.context() as patch:
        patch.setattr(closing, part, full)
        code, said = train()
    assert code == 2
    for words in ("Training is done, but", "No space left", f"The model is safe in {safe.format(run=run)}", *RESUME):
        assert words in said
    assert "Traceback" not in said
    assert train(*RESUME)[0] == 0
    assert (run / "report.html").is_file()
    assert "Nothing to do" in train(*RESUME)[1]


def test_a_full_disk_when_the_final_model_is_saved(train, run, monkeypatch):
    from corebatch.launch.held_out import TrainerBySource

    with monkeypatch.context() as patch:
        patch.setattr(TrainerBySource, "save_state", full)
        code, said = train()
    assert code == 2
    assert (
        f"the model could not be written: OSError: [Errno 28] No space left on device. The model is safe in {run}"
        in said
    )
    assert "checkpoint-4" in said
    assert train(*RESUME)[0] == 0


# ---- what lies in the folder ---------------------------------------------------------------------------------------


def left_by_a_killed_run(run, steps=3):
    run.mkdir()
    (run / "corebatch.json").write_text("{}")
    (run / "selection.jsonl").write_text("".join(json.dumps({"step": i + 1}) + "\n" for i in range(steps)))
    (run / "chosen.jsonl").write_text("")
    (run / "_corebatch.lock").touch()
    (run / "_corebatch.owner.json").write_text(json.dumps({"host": "gone", "pid": 1, "started": 1.0}))
    return run


def test_killed_before_the_first_checkpoint(train, run):
    left_by_a_killed_run(run)
    (run / "checkpoint-2").mkdir()
    (run / "checkpoint-2" / "optimizer.pt").write_bytes(b"half")
    before = files(run)
    code, said = train()
    assert code == 2
    for words in ("a run of 3 steps that ended before its first checkpoint was complete", "--overwrite true"):
        assert words in said
    assert "--resume_from_checkpoint" not in said  # there is nothing to resume from
    assert files(run).keys() - before.keys() == set()
    assert train("--overwrite", "true", command="validate")[0] == 0
    assert files(run).keys() - before.keys() == set()
    code, said = train("--overwrite", "true")
    assert code == 0, said
    assert "a run of 3 steps without a complete checkpoint, which is begun anew" in said
    assert len((run / "selection.jsonl").read_text().splitlines()) == 4
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]
    assert not list(run.glob("*.old-*"))


def test_resuming_before_the_first_checkpoint_begins_from_the_start_and_says_so(train, run):
    left_by_a_killed_run(run)
    assert train(*RESUME, command="validate")[0] == 0
    code, said = train(*RESUME)
    assert code == 0, said
    assert "holds no complete checkpoint to resume from: the run begins from the start" in said
    assert len((run / "selection.jsonl").read_text().splitlines()) == 4
    assert len((run / "selection.old-1.jsonl").read_text().splitlines()) == 3


def test_a_run_that_made_no_step_blocks_nobody(train, run, settings):
    code, said = train("--max_length", "1")  # no row has a trained token
    assert code == 2, said
    assert train()[0] == 0
    other = run.parent / "other"
    left_by_a_killed_run(other, steps=0)
    code, said = train("--output_dir", other)
    assert code == 0, said
    assert "a run that made no step, which is begun anew" in said


@pytest.mark.parametrize(
    "name, words",
    [
        ("notes.txt", "Found notes.txt, which is no file of a run"),
        ("README.md", "Found README.md"),
        ("adapter_model.safetensors", "Found a trained model, adapter_model.safetensors"),
        ("checkpoint-7/corebatch_state.json", "Found checkpoint-7"),
        ("data/train.jsonl", "Found data"),
    ],
)
def test_overwrite_takes_nothing_that_may_be_wanted(train, run, name, words):
    left_by_a_killed_run(run)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).write_text("mine")
    before = files(run)
    for more in ((), ("--overwrite", "true")):
        code, said = train(*more)
        assert code == 2
        assert words in said
        assert {key: value for key, value in files(run).items() if "_corebatch." not in key} == {
            key: value for key, value in before.items() if "_corebatch." not in key
        }


def test_a_plain_trainers_checkpoint_is_a_complete_one(train, run):
    (run / "checkpoint-3").mkdir(parents=True)
    (run / "checkpoint-3" / "trainer_state.json").write_text("{}")
    code, said = train("--overwrite", "true")
    assert code == 2
    assert "Found checkpoint-3" in said


def test_nothing_is_taken_away_for_a_config_that_cannot_be_trained(train, run):
    left_by_a_killed_run(run)
    before = files(run)
    assert train("--overwrite", "true", "--max_length", "1")[0] == 2
    found = files(run)
    assert all(found[key] == before[key] for key in before if "_corebatch." not in key)


@pytest.mark.parametrize("words", [("--overwrite", "maybe"), ("--overwrite_output_dir", "true")])
def test_how_overwrite_is_asked_for(train, words):
    code, said = train(*words)
    assert code == 2
    assert "overwrite" in said


# ---- processes -----------------------------------------------------------------------------------------------------


def wait_for(process, run, count):
    log = run / "selection.jsonl"
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until:
        if log.exists() and log.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.01)
    raise AssertionError(process.said())


@pytest.mark.slow
def test_a_second_run_and_a_resume_are_refused_and_a_signal_saves(train, forks, config, run):
    words = ("--max_steps", "4000", "--save_steps", "5")
    (first,) = forks.commands("train", config, *words, world=1, folder=run.parent)
    wait_for(first, run, 6)
    for more in ((), RESUME, ("--overwrite", "true")):
        code, said = train(*words, *more)
        assert code == 2
        assert f"belongs to another process: {first.pid}" in said or "is not empty" in said
    assert f"belongs to another process: {first.pid}" in train(*words, *RESUME)[1]
    first.send_signal(signal.SIGTERM)
    code, said = first.wait(), first.said()
    assert code == 143, said
    lines = [json.loads(line)["step"] for line in (run / "selection.jsonl").read_text().splitlines()]
    assert lines == list(range(1, len(lines) + 1))
    assert f"is finished and saved in {run}/checkpoint-{lines[-1]}" in said
    assert "Traceback" not in said
    assert train("--max_steps", len(lines) + 1, "--save_steps", "5", *RESUME)[0] == 0


# ---- report --------------------------------------------------------------------------------------------------------


def test_a_report_goes_where_it_is_asked_to(train, run, tmp_path, monkeypatch, capfd):
    assert train()[0] == 0

    def report(*words):
        monkeypatch.setattr(sys, "argv", ["corebatch", "report", *map(str, words)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        return code, "".join(capfd.readouterr())

    before = files(run)
    with monkeypatch.context() as patch:  # a folder that cannot be written to, for root too
        write = Path.write_bytes

        def refuses(path, content):
            if path.is_relative_to(run):
                raise OSError(30, "Read-only file system", str(path))
            return write(path, content)

        patch.setattr(Path, "write_bytes", refuses)
        code, said = report(run)
        assert code == 2
        assert f"The page of {run} could not be written" in said
        assert f"corebatch report {run} --output PATH" in said
        assert "Phases of a step" in said  # the tables are shown all the same
        assert report(run, "--output", tmp_path / "pages" / "page.html")[0] == 0
        (tmp_path / "there").mkdir()
        assert report(run, "--output", tmp_path / "there")[0] == 0
    assert files(run) == before
    assert (tmp_path / "pages" / "page.html").read_bytes() == (tmp_path / "there" / "report.html").read_bytes()


def test_a_report_of_a_run_that_is_at_work(train, run, tmp_path, monkeypatch, capfd):
    assert train()[0] == 0
    log = (run / "selection.jsonl").read_text()
    (run / "selection.jsonl").write_text(log[:-100])
    (run / "examples.json").unlink()
    (run / "trainer_state.json").write_text('{"global')
    monkeypatch.setattr(sys, "argv", ["corebatch", "report", str(run), "--output", str(tmp_path / "page.html")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert "unfinished" in capfd.readouterr().out

"""The commits that a run's record names."""

import json
import shutil
import subprocess
from importlib import metadata

import pytest

from corebatch.record import provenance
from corebatch.trainer import CoresetConfig
from training import run, trainer

git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def call(folder, *arguments):
    name = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    done = subprocess.run(["git", *name, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path, monkeypatch):
    folder = tmp_path / "project"
    folder.mkdir()
    call(folder, "init", "--quiet")
    (folder / "train.py").write_text("1\n")
    call(folder, "add", "train.py")
    call(folder, "commit", "--quiet", "-m", "one")
    monkeypatch.chdir(folder)
    provenance._commit.cache_clear()
    yield folder
    provenance._commit.cache_clear()


@git
def test_the_record_names_the_users_commit(repository):
    run(trainer(repository / "run", None, CoresetConfig(), max_steps=1))
    found = json.loads((repository / "run" / "corebatch.json").read_text())
    assert len(found["commit"]) == 12
    assert call(repository, "rev-parse", "HEAD").startswith(found["commit"])  # new files are no changes
    provenance._commit.cache_clear()
    (repository / "train.py").write_text("2\n")
    assert provenance.commit_of_user() == found["commit"] + "+"
    assert "corebatch_commit" in found


@git
def test_outside_of_a_repository_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit_of_user() is None


def test_without_git_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    provenance._commit.cache_clear()
    assert provenance.commit_of_user() is None


class Distribution:
    def __init__(self, told):
        self.told = told

    def read_text(self, name):
        return self.told if name == "direct_url.json" else None


def test_a_package_that_was_installed_from_a_commit_says_so(monkeypatch):
    told = json.dumps({"url": "git", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef0123"}})
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(told))
    assert provenance.commit_of_corebatch() == "0123456789ab"


@git
@pytest.mark.parametrize("told", [None, "{}", "no json", '{"vcs_info": null}'])
def test_an_installed_package_does_not_take_the_commit_of_the_repository_around_it(repository, monkeypatch, told):
    package = repository / ".venv" / "corebatch"
    (package / "record").mkdir(parents=True)
    (package / "record" / "provenance.py").touch()
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(told))
    monkeypatch.setattr(provenance, "PACKAGE", package)
    assert provenance.commit_of_corebatch() is None
    call(repository, "add", "-A", "-f")
    call(repository, "commit", "--quiet", "-m", "two")
    provenance._commit_around.cache_clear()
    assert provenance.commit_of_corebatch() == call(repository, "rev-parse", "--short=12", "HEAD")


MISCHIEF = """
[core]
    fsmonitor = "touch {proof}; false"
    hooksPath = {hooks}
    pager = touch {proof}
    sshCommand = touch {proof}
    attributesFile = {attributes}
[filter "evil"]
    clean = touch {proof}; cat
    process = touch {proof}
[diff "evil"]
    textconv = touch {proof}
    command = touch {proof}
[diff]
    external = touch {proof}
[alias]
    status = !touch {proof}
[include]
    path = {attributes}
"""


@git
def test_no_program_that_a_repository_names_is_run(repository, tmp_path, monkeypatch):
    proof = tmp_path / "proof"
    (repository / ".gitattributes").write_text("* filter=evil diff=evil\n")
    attributes = tmp_path / "attributes"
    attributes.write_text("* filter=evil\n")
    program = f"#!/bin/sh\ntouch {proof}\n"
    for name in ("git", ".git/hooks/post-index-change", ".git/hooks/fsmonitor-watchman", "sh"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text(program)
        (repository / name).chmod(0o755)
    with open(repository / ".git" / "config", "a") as file:
        file.write(MISCHIEF.format(proof=proof, hooks=repository / ".git" / "hooks", attributes=attributes))
    (repository / "train.py").write_text("2\n")  # git would run the filter
    monkeypatch.setenv("PATH", f".:{repository}")
    run(trainer(repository / "run", None, CoresetConfig(), max_steps=1))
    assert json.loads((repository / "run" / "corebatch.json").read_text())["commit"].endswith("+")
    assert not proof.exists()


def now_known(folder):
    provenance._commit.cache_clear()
    return provenance._commit(folder)


@git
@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_what_has_changed_is_seen_as_git_sees_it(repository, version):
    for number in range(40):
        path = repository / f"folder{number % 3}" / f"file{number}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(number))
    (repository / "link").symlink_to("train.py")
    call(repository, "add", "-A")
    call(repository, "update-index", "--index-version", version)
    call(repository, "commit", "--quiet", "-m", "many")
    clean = call(repository, "rev-parse", "--short=12", "HEAD")
    assert now_known(repository) == now_known(repository / "folder1") == clean
    (repository / "new.txt").write_text("not tracked")
    (repository / "train.py").touch()  # another time, the same content
    assert now_known(repository) == clean
    (repository / "folder1" / "file1.txt").write_text("9")
    assert now_known(repository) == clean + "+"
    call(repository, "checkout", "folder1/file1.txt")
    (repository / "folder0" / "file0.txt").unlink()
    assert now_known(repository) == clean + "+"
    call(repository, "checkout", "folder0/file0.txt")
    call(repository, "reset", "--quiet", "--soft", "HEAD~1")
    assert now_known(repository)[-1] in "+?"


@git
def test_references_and_commits_that_are_packed(repository, tmp_path):
    call(repository, "gc", "--quiet")
    assert now_known(repository) == call(repository, "rev-parse", "--short=12", "HEAD")
    linked = tmp_path / "linked"
    call(repository, "worktree", "add", "--quiet", str(linked))
    assert now_known(linked) == now_known(repository)
    call(repository, "checkout", "--quiet", "--detach")
    assert now_known(repository) == now_known(linked)


@git
@pytest.mark.parametrize("name", ["HEAD", "index", "refs/heads/master"])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\0", b"ref: refs/../../../../etc/passwd", b"DIRC\0\0\0\2\xff\xff\xff\xff"]
)
def test_a_repository_that_is_none_is_unknown_and_no_error(repository, name, content):
    call(repository, "branch", "--quiet", "-M", "master")
    (repository / ".git" / name).write_bytes(content)
    assert now_known(repository) is None or now_known(repository).endswith("?")

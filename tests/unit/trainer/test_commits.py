"""The commits that a run's record names."""

import json
import shutil
import subprocess
from importlib import metadata

import pytest

from corebatch.trainer import CoresetConfig, commits
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
    commits._commit.cache_clear()
    yield folder
    commits._commit.cache_clear()


@git
def test_the_record_names_the_users_commit(repository):
    run(trainer(repository / "run", None, CoresetConfig(), max_steps=1))
    found = json.loads((repository / "run" / "corebatch.json").read_text())
    assert len(found["commit"]) == 12
    assert call(repository, "rev-parse", "HEAD").startswith(found["commit"])  # new files are no changes
    commits._commit.cache_clear()
    (repository / "train.py").write_text("2\n")
    assert commits.commit_of_user() == found["commit"] + "+"
    assert "corebatch_commit" in found


@git
def test_outside_of_a_repository_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commits.commit_of_user() is None


def test_without_git_it_is_unknown(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    commits._commit.cache_clear()
    assert commits.commit_of_user() is None


class Distribution:
    def __init__(self, told):
        self.told = told

    def read_text(self, name):
        return self.told if name == "direct_url.json" else None


def test_a_package_that_was_installed_from_a_commit_says_so(monkeypatch):
    told = json.dumps({"url": "git", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef0123"}})
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(told))
    assert commits.commit_of_corebatch() == "0123456789ab"


@git
@pytest.mark.parametrize("told", [None, "{}", "no json", '{"vcs_info": null}'])
def test_an_installed_package_does_not_take_the_commit_of_the_repository_around_it(repository, monkeypatch, told):
    package = repository / ".venv" / "corebatch"
    (package / "trainer").mkdir(parents=True)
    (package / "trainer" / "commits.py").touch()
    monkeypatch.setattr(metadata, "distribution", lambda name: Distribution(told))
    monkeypatch.setattr(commits, "PACKAGE", package)
    assert commits.commit_of_corebatch() is None
    call(repository, "add", "-A", "-f")
    call(repository, "commit", "--quiet", "-m", "two")
    assert commits.commit_of_corebatch() == call(repository, "rev-parse", "--short=12", "HEAD")

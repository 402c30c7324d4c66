"""The notebook runs from its first cell to its last, and what is kept of it is no run's output."""

import contextlib
import io
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def notebook():
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))


def source(cell):
    return "".join(cell["source"])


def test_its_form_is_what_notebooks_have(notebook):
    """The required fields of nbformat 4.5, and nothing that a run left."""
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        outputs = {"outputs": [], "execution_count": None} if cell["cell_type"] == "code" else {}
        assert {key: cell[key] for key in cell if key not in ("id", "cell_type", "metadata", "source")} == outputs
        assert cell["cell_type"] in ("code", "markdown")
        assert all(len(line) <= 120 for line in source(cell).splitlines())
        assert all(line.endswith("\n") for line in cell["source"][:-1])


@pytest.mark.usefixtures("one_thread")
def test_its_cells_run_in_their_order(notebook, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names, said = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(said):
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                exec(compile(source(cell), f"{NOTEBOOK.name}, cell {cell['id']}", "exec"), names)
    run, summary = names["run"], names["summary"]
    assert tmp_path in run.parents
    assert {path.name for path in run.iterdir()} >= {
        "selection.jsonl",
        "examples.json",
        "report.html",
        "model.safetensors",
    }
    assert (summary.pool_size, summary.chosen_size, summary.steps) == ((16, 16), (8, 8), 40)
    (overall,) = summary.held_out
    assert (overall.first_step, overall.last_step) == (0, 40)
    assert overall.loss.last < 2.5 < 5 < overall.loss.first  # from ln 400 = 6.0
    assert {source.name for source in summary.sources} == {"sums", "reversal", "spelling"}
    assert "Held-out loss fell from" in said.getvalue()
    assert "'source': 'spelling', 'rows': 40" in said.getvalue()
    examples = json.loads((run / "examples.json").read_text())
    assert [turn["role"] for turn in examples["most"][0]["turns"]] == ["user", "assistant"]
    assert [turn["trained"] for turn in examples["most"][0]["turns"]] == [False, True]

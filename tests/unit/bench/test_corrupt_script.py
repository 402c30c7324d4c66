"""benchmarks/corrupt.py: whose answers rows get."""

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import corrupt

    yield corrupt
    del sys.modules["corrupt"]


def rows():
    made = [
        {"prompt": f"{n}", "completion": f" {n % 7}", "answer": f"{n % 7}", "source": "ab"[n % 3 > 0]}
        for n in range(90)
    ]
    return [*made, *({"prompt": f"c{n}", "completion": f" c{n}", "source": "c"} for n in range(5))]


def test_a_share_of_each_source_has_the_answer_of_another_row_of_it(script, tmp_path):
    source, output = tmp_path / "train.jsonl", tmp_path / "dirty.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    assert script.corrupt(source, output, 0.4) == 12 + 24 + 2
    made = [json.loads(line) for line in output.read_text().splitlines()]
    marks = [json.loads(line) for line in (tmp_path / "dirty.corrupted.jsonl").read_text().splitlines()]
    wrong = {mark["row"]: mark["answer_of"] for mark in marks}
    assert len(wrong) == len(marks)
    for number, (row, new) in enumerate(zip(rows(), made, strict=True)):
        other = rows()[wrong.get(number, number)]
        assert new == {**row, **{key: other[key] for key in ("completion", "answer") if key in other}}
        assert (new["completion"] != row["completion"]) == (number in wrong)
        assert other["source"] == row["source"]
    first = output.read_bytes()
    script.corrupt(source, output, 0.4)
    assert output.read_bytes() == first
    script.corrupt(source, output, 0.4, seed=1)
    assert output.read_bytes() != first


def test_what_cannot_be_is_an_error(script):
    with pytest.raises(ValueError, match=r"from 0 to 1. Found 1.4"):
        script.corrupted(rows(), 1.4, 0)
    with pytest.raises(ValueError, match=r"Found one in all of 'a'"):
        script.corrupted([{"completion": "x", "source": "a"}] * 4, 0.5, 0)
    assert script.corrupted(rows(), 0.0, 0) == (rows(), [])

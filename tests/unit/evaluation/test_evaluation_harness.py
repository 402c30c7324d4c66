"""lm-evaluation-harness around a tiny model, with a local task and local data."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from corebatch.errors import ConfigError, DataError
from corebatch.evaluation import option_scores, run_lm_eval

TASK = """task: even_or_odd
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "Q: {{{{question}}}} A:"
doc_to_choice: ["yes", "no"]
doc_to_target: label
metric_list:
  - metric: acc
metadata:
  version: 1.0
"""
ROWS = [{"question": f"Is {n} even?", "label": n % 2} for n in range(6)]


def test_without_the_package_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, model: Any, tokenizer: Any
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"pip install 'corebatch\[lm-eval\]'"):
        run_lm_eval(model, tokenizer, ["even_or_odd"])


@pytest.mark.filterwarnings("ignore")  # of the harness and its own dependencies
class TestHarness:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'corebatch[lm-eval]'", exc_type=ImportError)
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        data = tmp_path / "even.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
        tasks = tmp_path / "tasks"
        tasks.mkdir()
        (tasks / "even.yaml").write_text(TASK.format(data=data))
        return tasks

    def test_a_local_task(self, folder: Path, model: Any, tokenizer: Any) -> None:
        model.train()
        found = run_lm_eval(model, tokenizer, ["even_or_odd"], include_path=folder, batch_size=2)
        assert model.training
        prompts = [f"Q: {row['question']} A:" for row in ROWS]
        scores = option_scores(model, tokenizer, prompts, [(" yes", " no")] * len(ROWS), progress=False)
        right = [
            max((0, 1), key=lambda n, s=row: s[n].log_prob) == item["label"]
            for row, item in zip(scores, ROWS, strict=True)
        ]
        assert found.results["even_or_odd"]["acc,none"] == pytest.approx(sum(right) / len(ROWS))
        assert found.rows()[0][:2] == ("even_or_odd", "acc")
        assert json.loads(json.dumps(found.to_dict()))["n-samples"]["even_or_odd"]["effective"] == len(ROWS)

    def test_what_it_does_not_know(self, folder: Path, model: Any, tokenizer: Any) -> None:
        with pytest.raises(DataError, match="nowhere"):
            run_lm_eval(model, tokenizer, ["even_or_odd"], include_path=folder / "nowhere")
        with pytest.raises(ConfigError, match="no task 'even_or_od'"):
            run_lm_eval(model, tokenizer, ["even_or_od"], include_path=folder)
        with pytest.raises(ConfigError, match="Found no task"):
            run_lm_eval(model, tokenizer, [], include_path=folder)
        (folder / "even.yaml").write_text(TASK.format(data=folder / "gone.jsonl"))
        with pytest.raises(DataError, match="lm-eval cannot run even_or_odd"):
            run_lm_eval(model, tokenizer, ["even_or_odd"], include_path=folder)

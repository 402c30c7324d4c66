"""`corebatch evaluate` on a saved model and on a LoRA run, in this process: tables, files, and what is refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from corebatch.cli.main import main
from corebatch.evaluation import evaluate as measure
from corebatch.evaluation import parse_task
from corebatch.evaluation.loading import load_trained
from corebatch.mixture import PaddingCollator, load_mixture

pytestmark = pytest.mark.usefixtures("one_thread")


def corebatch(monkeypatch: pytest.MonkeyPatch, *words: Any) -> int:
    """Exit code of `corebatch words...`."""
    monkeypatch.setattr(sys, "argv", ["corebatch", *map(str, words)])
    try:
        main()
    except SystemExit as stop:
        return 0 if stop.code is None else int(stop.code)
    return 0


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def numbers(tmp_path: Path) -> Path:
    rows = [{"prompt": f"{n}+{n}=", "answer": 2 * n, "source": "odd" if n % 2 else "even"} for n in range(6)]
    return write(tmp_path / "numbers.jsonl", *rows)


@pytest.fixture
def review(tmp_path: Path) -> Path:
    return write(tmp_path / "sst.jsonl", *({"sentence": f"film {n}", "label": n % 2, "idx": n} for n in range(4)))


@pytest.fixture
def adapters(model_folder: Path, tmp_path: Path) -> Path:
    """A LoRA run's folder whose adapters change the model."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    made = get_peft_model(
        model, LoraConfig(r=2, target_modules=["v_proj", "q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    )
    made.save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def test_a_model_on_two_tasks(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path, numbers: Path, review: Path, capsys: Any
) -> None:
    out = tmp_path / "results"
    words = ["--task", f"numeric:{numbers}", "--task", f"sst2:{review}", "--output", out, "--batch_size", 3]
    assert corebatch(monkeypatch, "evaluate", model_folder, *words, "--max_new_tokens", 4) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("numbers", "even", "odd", "all items", "95 % interval", "mean of sources", "sst2", str(out)):
        assert text in shown, text
    found = json.loads((out / "numbers.json").read_text())
    assert found["model"] == str(model_folder)
    assert found["settings"]["max_new_tokens"] == 4
    assert set(found["sources"]) == {"even", "odd"}
    assert "transformers" in found["versions"]
    assert len(found["answers"]) == 6
    scored = json.loads((out / "sst2.json").read_text())
    model, tokenizer = load_trained(str(model_folder))
    again = measure(model, tokenizer, parse_task(f"sst2:{review}"), progress=False)
    assert [row["text"] for row in scored["answers"]] == [answer.text for answer in again.answers]
    for row, answer in zip(scored["answers"], again.answers, strict=True):
        assert row["scores"] == pytest.approx(answer.scores, abs=1e-5)
    assert not list(out.glob("*.tmp"))


def test_a_run_with_adapters_is_its_base_with_them(
    monkeypatch: pytest.MonkeyPatch, adapters: Path, model_folder: Path, review: Path, tmp_path: Path
) -> None:
    assert corebatch(monkeypatch, "evaluate", adapters, "--task", f"sst2:{review}") == 0
    found = json.loads((adapters / "evaluation" / "sst2.json").read_text())
    with_adapters, tokenizer = load_trained(str(adapters))
    plain, _ = load_trained(str(model_folder))
    task = parse_task(f"sst2:{review}")
    scores = [measure(model, tokenizer, task, progress=False).answers[0].scores for model in (with_adapters, plain)]
    assert found["answers"][0]["scores"] == pytest.approx(scores[0], abs=1e-5)
    assert found["answers"][0]["scores"] != pytest.approx(scores[1], abs=1e-5)
    # the base model has moved
    settings = json.loads((adapters / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(tmp_path / "gone")
    (adapters / "adapter_config.json").write_text(json.dumps(settings))
    words = ["--task", f"sst2:{review}", "--overwrite"]
    assert corebatch(monkeypatch, "evaluate", adapters, *words) == 2
    assert corebatch(monkeypatch, "evaluate", adapters, *words, "--base_model", model_folder) == 0
    assert json.loads((adapters / "evaluation" / "sst2.json").read_text())["answers"] == found["answers"]


def test_nothing_is_overwritten_unless_asked_for(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path, numbers: Path, capfd: Any
) -> None:
    target = tmp_path / "mine.json"
    target.write_text("mine")
    words = [model_folder, "--task", f"numeric:{numbers},limit=1", "--output", target]
    assert corebatch(monkeypatch, "evaluate", *words) == 2
    assert "--overwrite" in capfd.readouterr().err
    assert target.read_text() == "mine"
    assert corebatch(monkeypatch, "evaluate", *words, "--overwrite") == 0
    assert json.loads(target.read_text())["overall"]["total"] == 1


def test_the_limit_given_here_wins(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path, numbers: Path
) -> None:
    words = ["--task", f"numeric:{numbers},limit=1", "--output", tmp_path / "o", "--limit", 4]
    assert corebatch(monkeypatch, "evaluate", model_folder, *words) == 0
    found = json.loads((tmp_path / "o" / "numbers.json").read_text())
    assert {name: count["total"] for name, count in found["sources"].items()} == {"even": 2, "odd": 2}


def test_held_out_loss_reads_what_training_reads(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, tmp_path: Path, data_file: Path, capsys: Any
) -> None:
    from corebatch.evaluation import heldout_loss

    words = ["--task", f"heldout_loss:{data_file},separator=' '", "--output", tmp_path / "o"]
    assert corebatch(monkeypatch, "evaluate", model_folder, *words) == 0
    assert "nats a token" in capsys.readouterr().out
    found = json.loads((tmp_path / "o" / "heldout_loss.json").read_text())
    model, tokenizer = load_trained(str(model_folder))
    rows = load_mixture([{"path": str(data_file)}], tokenizer, separator=" ").dataset
    collate = PaddingCollator(tokenizer)
    expected = heldout_loss(model, [{**collate([row]), "source": [row["source"]]} for row in rows])
    assert found["overall"]["token_mean"] == pytest.approx(expected.token_mean, abs=1e-5)
    assert found["overall"]["examples"] == 80
    for name, means in expected.sources.items():
        assert found["sources"][name]["token_mean"] == pytest.approx(means.token_mean, abs=1e-5)


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "a --task or --lm_eval"),
        (["--task", "numeric:nowhere.jsonl"], "nowhere.jsonl"),
        (["--task", "nummeric:{numbers}"], "Did you mean 'numeric'"),
        (["--task", "numeric:{numbers}", "--task", "auto:{numbers}"], "'numbers' twice"),
        (["--task", "numeric:{numbers}", "--batch_size", "0"], "`batch_size`"),
        (["--task", "numeric:{numbers}", "--dtype", "int8"], "--dtype"),
        (["--task", "numeric:{numbers}", "--base_model", "x"], "--base_model goes with adapters"),
        (["--task", "numeric:{numbers}", "--lm_eval_path", "x"], "--lm_eval_path goes with --lm_eval"),
        (["--task", "numeric:{numbers}", "--task", "auto:{numbers},name=b", "--output", "x.json"], "a folder for 2"),
        (["--task", "heldout_loss:{numbers},max_length=1", "--output", "x"], "max_length"),
    ],
)
def test_what_is_wrong_is_one_message(
    monkeypatch: pytest.MonkeyPatch, model_folder: Path, numbers: Path, words: list[str], message: str, capfd: Any
) -> None:
    given = [word.format(numbers=numbers) for word in words]
    assert corebatch(monkeypatch, "evaluate", model_folder, *given) == 2
    error = capfd.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (model_folder / "evaluation").exists()


def test_a_folder_without_a_model_says_what_it_holds(
    monkeypatch: pytest.MonkeyPatch, numbers: Path, tmp_path: Path, capfd: Any
) -> None:
    for step in (2, 10):
        (tmp_path / "run" / f"checkpoint-{step}").mkdir(parents=True)
    assert corebatch(monkeypatch, "evaluate", tmp_path / "run", "--task", f"numeric:{numbers}") == 2
    assert "checkpoint-2, checkpoint-10. Give one of them" in capfd.readouterr().err
    assert corebatch(monkeypatch, "evaluate", tmp_path / "empty", "--task", f"numeric:{numbers}") == 2
    assert str(tmp_path / "empty") in capfd.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of the harness and its own dependencies
def test_lm_eval_on_a_run(
    monkeypatch: pytest.MonkeyPatch, adapters: Path, model_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'corebatch[lm-eval]'", exc_type=ImportError)
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    data = write(tmp_path / "d.jsonl", *({"q": f"Is {n} even?", "y": n % 2} for n in range(4)))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "t.yaml").write_text(
        f"task: parity\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: ["yes", "no"]\ndoc_to_target: y\n'
    )
    words = ["--lm_eval", "parity", "--lm_eval_path", tmp_path / "tasks", "--limit", 2]
    assert corebatch(monkeypatch, "evaluate", adapters, *words) == 0
    found = json.loads((adapters / "evaluation" / "lm_eval.json").read_text())
    assert found["n-samples"]["parity"]["effective"] == 2
    assert 0 <= found["results"]["parity"]["acc,none"] <= 1
    assert "parity" in capsys.readouterr().out

"""`corebatch validate`: what stops `train` before its second step stops it, with the same words and exit code 2."""

import json
import os
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, set_seed

pytestmark = pytest.mark.usefixtures("one_thread")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def message_of(error):
    return error[error.index("corebatch: ") :]


@pytest.fixture
def refused_alike(corebatch, config, settings):
    """Both commands end with exit code 2 and the same message, which it returns, and leave no record."""

    def check(*words, path=config):
        found = []
        for command in ("validate", "train"):
            code, _, error = corebatch(command, path, *words)
            assert code == 2, (command, error)
            assert "Traceback" not in error
            found.append(message_of(error))
        assert found[0] == found[1]
        assert not (Path(settings["output_dir"]) / "selection.jsonl").exists()
        return found[0]

    return check


@pytest.mark.parametrize(
    "words, message",
    [
        (["--eval_strategy", "steps", "--eval_steps", "1"], "eval_strategy: steps needs held-out rows"),
        (["--eval_strategy", "epoch"], "eval_strategy: epoch needs held-out rows: give eval_datasets"),
        (["--eval_on_start"], "eval_on_start"),
        (["--do_eval"], "do_eval"),
        (["--load_best_model_at_end"], "load_best_model_at_end requires"),
        (["--eval_datasets", "[{path: nope.jsonl}]"], "nope.jsonl: no such file"),
        (["--max_length", "3"], "max_length"),
        (["--pad_token", "<|nowhere|>"], "pad_token should be a token of the tokenizer's vocabulary"),
        (["--eval_tasks", "[heldout_loss:nope.jsonl]"], "nope.jsonl"),
        (["--lora_target_modules", "[no_such_projection]"], "no_such_projection"),
        (["--label_smoothing_factor", "0.1"], "label_smoothing_factor"),
        (["--optim", "nothing_known"], "nothing_known"),
        (["--resume_from_checkpoint", "true"], "complete checkpoint"),
        (["--coreset.small_sources", "[nobody]", "--coreset.source_column", "origin"], "origin"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_both_refuse(refused_alike, words, message):
    assert message in refused_alike(*words)


def test_a_held_out_row_that_cannot_be_used(refused_alike, tmp_path):
    path = write(tmp_path / "held.jsonl", [{"prompt": "Q0", "completion": None}])
    message = refused_alike("--eval_datasets", f"[{{path: {path}}}]")
    assert "held.jsonl" in message
    assert "line 1" in message


def test_held_out_rows_that_are_cut_away(refused_alike, tmp_path):
    path = write(tmp_path / "held.jsonl", [{"prompt": "word " * 30, "completion": "short"}])
    assert "max_length" in refused_alike("--eval_datasets", f"[{{path: {path}}}]", "--max_length", 64)


def test_a_metric_that_no_evaluation_gives(refused_alike, data_file):
    words = ["--eval_datasets", f"[{{path: {data_file}}}]", "--eval_strategy", "steps", "--eval_steps", "2"]
    message = refused_alike(*words, "--metric_for_best_model", "accuracy")
    assert "metric_for_best_model should be one of eval_loss" in message


def test_all_rows_cut_away(refused_alike, corebatch, config, data_file):
    write(data_file, [{"prompt": "word " * 60, "completion": "short"}] * 100)
    message = refused_alike("--max_length", 32)
    assert "100 read" in message
    assert "aise max_length" in message
    code, out, _ = corebatch("validate", config, "--max_length", 32, "--fast")
    assert code == 0
    assert "none of 64 rows that were looked at of test_all_rows_cut_away0 has a trained token" in out


def test_rows_longer_than_the_model(refused_alike, settings, tmp_path, model_folder, data_file):
    folder = tmp_path / "gpt2"
    shutil.copytree(model_folder, folder)
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (folder / name).unlink()
    set_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=300, n_embd=16, n_layer=2, n_head=2, n_positions=64)).save_pretrained(folder)
    write(data_file, [{"text": "word " * 40}] * 8)
    message = refused_alike("--model_name_or_path", folder, "--use_peft", "false")
    assert "64" in message


def test_a_tokenizer_that_cannot_pad(refused_alike, corebatch, config, settings, tmp_path, model_folder):
    folder = tmp_path / "bare"
    shutil.copytree(model_folder, folder)
    about = json.loads((folder / "tokenizer_config.json").read_text())
    for key in ("pad_token", "eos_token"):
        about.pop(key)
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    message = refused_alike("--model_name_or_path", folder)
    assert "eos_token" in message
    assert "pad_token" in message
    words = ["--model_name_or_path", folder, "--eos_token", "</s>"]
    assert corebatch("validate", config, *words)[0] == 0
    assert corebatch("train", config, *words)[0] == 0
    saved = AutoTokenizer.from_pretrained(settings["output_dir"])
    assert (saved.eos_token, saved.pad_token) == ("</s>", "</s>")
    code, out, _ = corebatch(
        "validate", config, "--model_name_or_path", folder, "--pad_token", "<pad>", "--output_dir", tmp_path / "other"
    )
    assert code == 0
    assert "no answer of sums ends with the end-of-sequence token or a special token" in out


TEMPLATE = "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}"


def test_answers_without_an_end_are_told(corebatch, config, tmp_path):
    rows = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]
    chats = write(tmp_path / "chats.jsonl", [{"messages": rows}] * 6)
    plain = write(tmp_path / "plain.jsonl", [{"text": "abc"}] * 6)
    words = ["--datasets", f"[{{path: {chats}}}, {{path: {plain}}}]"]
    for command in (["validate"], ["validate", "--fast"], ["train"]):
        code, out, error = corebatch(*command, config, *words, "--chat_template", TEMPLATE)
        assert code == 0, error
        assert "no answer of chats ends with" in out
        assert "no answer of plain" not in out
    good = TEMPLATE.replace("{{ m.content }}", "{{ m.content }}</s>")
    code, out, _ = corebatch("validate", config, *words, "--output_dir", tmp_path / "other", "--chat_template", good)
    assert code == 0
    assert "no answer of" not in out


@pytest.mark.parametrize("fast", [False, True])
def test_rows_are_shown_with_what_is_trained(corebatch, config, fast):
    words = ["--fast"] if fast else []
    code, out, _ = corebatch("validate", config, *words)
    assert code == 0
    assert "sums 0? ⟦0</s>⟧" in out
    assert "rare 0?" in out
    assert "sums 1?" not in out
    assert r"separator between prompt and completion '\n'" in out
    assert ("The first step was made" in out) is not fast
    assert ("a sample of the data was looked at, and no step was made" in out) is fast
    code, out, _ = corebatch("validate", config, *words, "--rows", 2)
    assert "sums 0? ⟦0</s>⟧" in out
    if not fast:
        assert "sums 1? ⟦7</s>⟧" in out


def test_no_rows_are_shown_and_bad_counts_are_refused(corebatch, config):
    code, out, _ = corebatch("validate", config, "--rows", 0, "--fast")
    assert code == 0
    assert "⟦" not in out
    code, _, error = corebatch("validate", config, "--rows", -1)
    assert code == 2
    assert "--rows" in error


def test_marks_that_a_row_holds_itself(corebatch, config, data_file):
    write(data_file, [{"prompt": "⟦a⟧", "completion": "b"}] * 8)
    code, out, _ = corebatch("validate", config, "--fast")
    assert code == 0
    assert "⟪b</s>⟫" in out


def test_held_out_sets_are_shown_and_measured(corebatch, config, tmp_path):
    path = write(tmp_path / "held.jsonl", [{"prompt": "Q", "completion": "A", "source": s} for s in "xy"])
    code, out, _ = corebatch("validate", config, "--eval_datasets", f"[{{path: {path}}}]")
    assert code == 0
    assert "Held-out sets" in out


def test_the_state_of_the_folder_is_told(corebatch, config, settings, refused_alike, tmp_path):
    run = Path(settings["output_dir"])
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    assert "not empty" in refused_alike()
    (tmp_path / "a_file").write_text("x")
    assert "output_dir" in refused_alike("--output_dir", tmp_path / "a_file")
    assert "output_dir" in refused_alike("--output_dir", tmp_path / "a_file" / "below")
    os.symlink(tmp_path / "nowhere" / "none", tmp_path / "dangling")
    assert "output_dir" in refused_alike("--output_dir", tmp_path / "dangling")


@pytest.mark.parametrize("pool_factor", [1, 2])
def test_a_resumed_run_is_validated_from_its_checkpoint(corebatch, config, settings, pool_factor):
    words = ["--coreset.pool_factor", pool_factor]
    run = Path(settings["output_dir"])
    assert corebatch("train", config, *words, "--max_steps", 6, "--save_steps", 4)[0] == 0
    shutil.rmtree(run / "checkpoint-6")
    before = {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}
    words += ["--max_steps", 6, "--save_steps", 4, "--resume_from_checkpoint", "true"]
    code, _, error = corebatch("validate", config, *words)
    assert code == 0, error
    assert {p: p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()} == before
    code, _, error = corebatch("validate", config, *words, "--resume_from_checkpoint", run / "checkpoint-9")
    assert code == 2


def test_many_sources_are_not_a_line_each(corebatch, config, data_file):
    write(data_file, [{"text": f"row {n}", "source": f"http://id/{n}"} for n in range(60)])
    code, out, _ = corebatch("validate", config)
    assert code == 0
    assert "40 more" in out
    assert out.count("http://id/") < 60


NAMES = [
    "[/]",
    "[red]x",
    "\x1b]0;owned\x07\x1b[31mred",
    "</p><img src=x onerror=alert(1)>",
    "x\n# Heading\n![t](http://127.0.0.1)",
]


def test_names_of_sources_and_folders_are_text(corebatch, config, data_file, tmp_path):
    write(data_file, [{"text": "ab cd ef", "source": NAMES[n % 5]} for n in range(60)])
    run = tmp_path / "a[" / "b] \x1b[31m"
    for command in ("validate", "train", "report"):
        words = [config, "--output_dir", run] if command != "report" else [run]
        code, out, error = corebatch(command, *words)
        assert code == 0, error
        assert "\x1b" not in out + error.replace("\x1b[A", "")
        assert "[red]x" in out
        assert "[/]" in out
    card = (run / "README.md").read_text()
    data = card.split("## Data")[1].split("## Settings")[0]
    assert "\x1b" not in card
    assert "<img" not in card.split("## Settings")[0]
    assert len(data.strip().splitlines()) == 5
    assert "![" not in data


def test_what_is_left_out_is_told_with_the_reason(corebatch, config, data_file):
    rows = [{"prompt": "Q", "completion": "A"}] * 5
    rows += [{"prompt": "Q", "completion": " "}] * 2 + [{"prompt": "word " * 20, "completion": "A"}]
    write(data_file, [{**row, "stars": 5} for row in rows * 3])
    for words, kind in (([], "read"), (["--fast"], "looked at")):
        code, out, _ = corebatch("validate", config, "--max_length", 32, *words)
        assert code == 0
        assert f"of 24 rows {kind}, 6 with nothing to train" in out
        assert "3 with no trained token within max_length 32 are left out." in out
        assert out.count("not used: stars") == 1


def test_special_tokens_in_turns_and_rows_that_are_known(corebatch, config, settings, tmp_path):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    turns = [{"role": "user", "content": "q</s>"}, {"role": "assistant", "content": "a"}]
    path = write(tmp_path / "chat.jsonl", [{"messages": turns, "mood": "good"}] * 16)
    held = write(tmp_path / "held.jsonl", [{"messages": turns}, {"messages": [turns[0], {**turns[1], "content": "b"}]}])
    words = ["--datasets", f"[{{path: {path}}}]", "--eval_datasets", f"[{{path: {held}}}]", "--chat_template", template]
    words += ["--max_steps", 1, "--per_device_train_batch_size", 1]
    for command in ("validate", "train"):
        code, out, error = corebatch(command, config, *words)
        assert code == 0, error
        assert f"in 16 conversations of {path} a turn holds the text of a special token (</s> in {path}, line 1)" in out
        assert "1 of 2 held-out rows are trained as well" in out
        assert "not used: mood" in out


def test_keys_without_effect_are_told(corebatch, config):
    words = ["--eval_steps", 2, "--save_strategy", "no"]
    for command in (["validate", "--fast"], ["validate"], ["train"]):
        code, out, _ = corebatch(*command, config, *words)
        assert code == 0
        for key in ("eval_steps", "save_steps"):
            assert f"Warning: {key} has no effect without" in out


def damaged(name):
    def change(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:40])

    return change


def configured(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "config.json").write_text("[1]"),
        lambda folder: (folder / "tokenizer.json").unlink(),
        lambda folder: (folder / "model.safetensors").unlink(),
        damaged("config.json"), damaged("tokenizer.json"), damaged("tokenizer_config.json"),
        damaged("model.safetensors"),
        configured(model_type="nothing"), configured(model_type="t5"), configured(num_hidden_layers=3),
        configured(hidden_size=32), configured(hidden_size=-4), configured(vocab_size=10),
    ],
)  # fmt: skip
def test_models_that_cannot_be_loaded(refused_alike, tmp_path, model_folder, change):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    change(folder)
    message = refused_alike("--model_name_or_path", folder)
    assert str(folder) in message


def test_generation_settings_that_could_not_be_saved(refused_alike, tmp_path, model_folder):
    folder = tmp_path / "model"
    shutil.copytree(model_folder, folder)
    (folder / "generation_config.json").write_text('{"temperature": 0.5, "do_sample": false}')
    assert "generation_config.json" in refused_alike("--model_name_or_path", folder, "--use_peft", "false")


def test_only_what_nobody_could_mend_is_a_traceback(monkeypatch, corebatch, config):
    def broken(*_):
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("corebatch.config.settings.load_settings", broken)
    with pytest.raises(ZeroDivisionError):
        corebatch("validate", config)
    for error in (OSError(28, "No space left on device", "a/b"), MemoryError(), RecursionError(), UnicodeError("x")):
        monkeypatch.setattr(
            "corebatch.config.settings.load_settings", lambda *_, error=error: (_ for _ in ()).throw(error)
        )
        code, _, told = corebatch("validate", config)
        assert code == 2
        assert told.startswith("corebatch: ")
    monkeypatch.setenv("COREBATCH_TRACEBACK", "1")
    with pytest.raises(UnicodeError):
        corebatch("validate", config)

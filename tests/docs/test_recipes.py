"""Each recipe is trained as it stands, and evaluated where it tells how, on a tiny model and rows made up for it; the
steps are fewer."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from transformers import AutoTokenizer

from corebatch.cli.main import main
from folders import save_tiny_model

PAGES = sorted(path for path in (Path(__file__).parents[2] / "docs" / "recipes").glob("*.md") if path.stem != "index")
TEMPLATE = "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}{% generation %}{{ m.content + '</s>' }}"
TEMPLATE += "{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
SMALLER = {"max_steps": 2, "eval_steps": 2, "save_steps": 2, "max_length": 64, "use_cpu": True, "dataset_cache": False}
"""What stands in the place of the recipe's own numbers."""
ROWS = 140
"""Of a file: enough for two steps of a recipe that has one."""


def config_of(page):
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.S | re.M)
    return yaml.safe_load(text)


def rows_for(path, spec):
    """Rows in the form that the recipe tells of."""
    if path.suffix == ".parquet" or "general" in path.name or "law" in path.name:
        return [{"text": f"{path.stem} {n} is {n * 7 % 13}. " * 2} for n in range(ROWS)]
    if path.stem in ("tutor", "tools"):
        turns = ("user", "assistant", "user", "assistant")
        return [{"messages": [{"role": r, "content": f"{i} {n}"} for i, r in enumerate(turns)]} for n in range(ROWS)]
    if path.stem == "answers":
        return [{"prompt": f"{n}?", "answer": str(n * 7 % 13)} for n in range(4)]
    if path.stem in ("reviews", "tickets", "held_out"):
        return [{"prompt": f"{path.stem} {n}. Sentiment:", "completion": (" good", " bad")[n % 2]} for n in range(ROWS)]
    prompt, answer = (spec.get("columns") or {}).values() or ("prompt", "completion")
    rows = [{prompt: f"{path.stem} {n}?", answer: f" {n * 7 % 13}"} for n in range(ROWS)]
    return [row if "source" in spec else {**row, "source": "ab"[n % 2]} for n, row in enumerate(rows)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes") / "model"
    save_tiny_model(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def recipe(model, tmp_path, monkeypatch):
    """Runs the config of a page within a folder that has its data; gives the folder that it leaves."""
    monkeypatch.chdir(tmp_path)

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["corebatch", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        assert not stop.value.code, words

    def run(page):
        values = config_of(page)
        for block in ("datasets", "eval_datasets"):
            for entry in values.get(block, []):
                spec = entry if isinstance(entry, dict) else {"path": entry}
                write(Path(spec["path"].replace("*", "part")), spec)
        values |= {**SMALLER, "model_name_or_path": model}
        if "subset" in values:
            values["subset"]["reference"] = model
        if "optim_args" in values:
            values["optim_args"] = "rank=4,update_proj_gap=2"
        Path("config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        commands = [line for line in page.read_text().splitlines() if line.startswith("corebatch ")]
        if "subset" in values:
            command("subset", "config.yaml")
            (given,) = (line for line in commands if "--datasets" in line)
            command("train", "config.yaml", *shlex.split(given)[3:])
        else:
            command("train", "config.yaml")
        evaluated(page, commands)
        return Path(values["output_dir"])

    def evaluated(page, commands):
        variables = dict(re.findall(r'^(\w+)="(.*)"$', page.read_text(), re.M))
        for line in commands:
            _, name, *words = shlex.split(line, comments=True)
            if name != "evaluate":
                continue
            words = [variables.get(word.removeprefix("$"), word) for word in words]
            task = words[words.index("--task") + 1]
            for path in re.findall(r"data/[\w.]+", task):
                write(Path(path), {"source": "held"})
            command(name, *words, "--limit", "4")
            (told,) = Path(words[0], "evaluation").glob("*.json")
            assert json.loads(told.read_text())["overall"]["total"] == 4

    return run


def write(path, spec):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_for(path, spec)
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(str(path))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_recipe_trains(page, recipe):
    values = config_of(page)
    if values.get("optim", "").startswith("apollo"):
        pytest.importorskip("apollo_torch")
    lines = [json.loads(line) for line in (recipe(page) / "selection.jsonl").read_text().splitlines()]
    step = values["per_device_train_batch_size"] * values.get("gradient_accumulation_steps", 1)
    drawn = step * values["coreset"]["pool_factor"]
    assert [(line["chosen_examples"], line["pool_examples"]) for line in lines] == [(step, drawn)] * 2


def test_the_index_has_each_recipe():
    index = (PAGES[0].parent / "index.md").read_text()
    assert set(re.findall(r"\]\((\w+\.md)\)", index)) == {page.name for page in PAGES}

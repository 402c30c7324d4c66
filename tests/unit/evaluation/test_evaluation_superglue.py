"""Each SuperGLUE task in the hub's fields and in the benchmark's own: the same items, prompts, labels and metrics."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from corebatch.errors import ConfigError, DataError
from corebatch.evaluation import SUPERGLUE, ChoiceItem, SuperGlueTask, evaluate, parse_task

HUB: dict[str, list[dict[str, Any]]] = {
    "boolq": [
        {"question": "is a newt an amphibian", "passage": "Newts are amphibians.", "idx": 0, "label": 1},
        {"question": "is tin a gas?", "passage": "Tin is a metal.", "idx": 1, "label": 0},
    ],
    "cb": [
        {"premise": "It rained all day.", "hypothesis": "it rained", "idx": 0, "label": 0},
        {"premise": "It never rained.", "hypothesis": "it rained", "idx": 1, "label": 1},
        {"premise": "Did it rain?", "hypothesis": "it rained", "idx": 2, "label": 2},
    ],
    "copa": [
        {"premise": "The glass broke.", "choice1": "I dropped it.", "choice2": "It was clean.", "question": "cause",
         "idx": 0, "label": 0},
        {"premise": "The sun set.", "choice1": "It got warm.", "choice2": "It got dark.", "question": "effect",
         "idx": 1, "label": 1},
    ],
    "multirc": [
        {"paragraph": "Ann has a cat.", "question": "What has Ann?", "answer": "a cat",
         "idx": {"paragraph": 0, "question": 0, "answer": 0}, "label": 1},
        {"paragraph": "Ann has a cat.", "question": "What has Ann?", "answer": "a dog",
         "idx": {"paragraph": 0, "question": 0, "answer": 1}, "label": 0},
        {"paragraph": "Ann has a cat.", "question": "Who has a cat?", "answer": "Ann",
         "idx": {"paragraph": 0, "question": 1, "answer": 2}, "label": 1},
    ],
    "rte": [
        {"premise": "Two men sing.", "hypothesis": "Men sing.", "idx": 0, "label": 0},
        {"premise": "Men sing.", "hypothesis": "Two men dance.", "idx": 1, "label": 1},
    ],
    "sst2": [
        {"sentence": "a joy to watch", "label": 1, "idx": 0},
        {"sentence": "two lost hours", "label": 0, "idx": 1},
    ],
    "wic": [
        {"word": "bank", "sentence1": "The bank was steep.", "sentence2": "He robbed a bank.", "start1": 4,
         "start2": 12, "end1": 8, "end2": 16, "idx": 0, "label": 0},
        {"word": "run", "sentence1": "They run.", "sentence2": "We run home.", "start1": 5, "start2": 3, "end1": 8,
         "end2": 6, "idx": 1, "label": 1},
    ],
    "wsc": [
        {"text": "Mark told Pete about himself.", "span1_index": 0, "span2_index": 4, "span1_text": "Mark",
         "span2_text": "himself", "idx": 0, "label": 1},
        {"text": "Pete saw Mark before he left.", "span1_index": 0, "span2_index": 4, "span1_text": "Pete",
         "span2_text": "he", "idx": 1, "label": 0},
    ],
}  # fmt: skip


def published(task: str) -> list[dict[str, Any]]:
    """The same rows with the fields of the benchmark's own JSONL files."""
    rows = [dict(row) for row in HUB[task]]
    if task in ("boolq", "wic", "wsc"):
        rows = [{**row, "label": bool(row["label"])} for row in rows]
    if task in ("cb", "rte"):
        rows = [{**row, "label": SUPERGLUE[task].labels[row["label"]]} for row in rows]
    if task == "wsc":
        spans = ("span1_index", "span2_index", "span1_text", "span2_text")
        rows = [
            {"text": r["text"], "target": {key: r[key] for key in spans}, "idx": r["idx"], "label": r["label"]}
            for r in rows
        ]
    if task == "multirc":
        one, two, three = (
            {"text": r["answer"], "idx": r["idx"]["answer"], "label": r["label"]} for r in HUB["multirc"]
        )
        questions = [
            {"question": "What has Ann?", "answers": [one, two], "idx": 0},
            {"question": "Who has a cat?", "answers": [three], "idx": 1},
        ]
        rows = [{"idx": 0, "version": 1.1, "passage": {"text": "Ann has a cat.", "questions": questions}}]
    return rows


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8"
    )
    return path


def items(task: str, path: Path, **options: Any) -> tuple[ChoiceItem, ...]:
    return tuple(SuperGlueTask(task, path, **options).items())


@pytest.mark.parametrize("task", HUB)
def test_both_forms_of_rows_are_the_same_items(tmp_path: Path, task: str) -> None:
    hub = items(task, write(tmp_path / "hub.jsonl", HUB[task]))
    own = items(task, write(tmp_path / "own.jsonl", published(task)))
    assert hub == own
    assert [item.answer for item in hub] == [row["label"] for row in HUB[task]]
    assert all(item.source == task for item in hub)
    for item, row in zip(hub, HUB[task], strict=True):
        assert not item.prompt[-1].isspace()
        assert all(option.startswith(" ") for option in item.options)
        for field in set(SUPERGLUE[task].fields) & row.keys():
            assert str(row[field]).rstrip(".?") in item.prompt


@pytest.mark.parametrize("task", HUB)
def test_parquet_folder_and_hub_layout(tmp_path: Path, task: str) -> None:
    expected = items(task, write(tmp_path / "rows.jsonl", HUB[task]))
    table = datasets.Dataset.from_list(HUB[task])
    table.to_parquet(tmp_path / "rows.parquet")
    assert items(task, tmp_path / "rows.parquet") == expected
    # the benchmark's folder
    folder = tmp_path / "release" / {"sst2": "SST-2", "boolq": "BoolQ"}.get(task, task.upper())
    folder.mkdir(parents=True)
    write(folder / "val.jsonl", published(task))
    write(folder / "test.jsonl", ["broken: nobody reads this"])
    assert items(task, tmp_path / "release") == expected
    assert items(task, folder) == expected


def test_a_data_set_as_on_the_hub_goes_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with configurations in its README is loaded by the code that loads a hub id."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "super_glue"
    (folder / "data").mkdir(parents=True)
    features = datasets.Features(
        {
            **{key: datasets.Value("string") for key in ("premise", "hypothesis")},
            "idx": datasets.Value("int32"),
            "label": datasets.ClassLabel(names=["entailment", "contradiction", "neutral"]),
        }
    )
    datasets.Dataset.from_list(HUB["cb"], features=features).to_parquet(folder / "data" / "cb-validation.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: cb\n  data_files:\n"
        "  - split: validation\n    path: data/cb-validation.parquet\n---\n"
    )
    found = items("cb", folder)
    assert found == items("cb", write(tmp_path / "rows.jsonl", HUB["cb"]))
    asked = []
    real = datasets.load_dataset
    monkeypatch.setattr(
        datasets,
        "load_dataset",
        lambda *args, **kwargs: asked.append((args, kwargs)) or real(str(folder), *args[1:], **kwargs),
    )
    assert items("cb", Path("somebody/super_glue")) == found
    assert asked == [(("somebody/super_glue", "cb"), {"split": "validation"})]
    with pytest.raises(DataError, match=r"somebody/super_glue \(cb, nosuch\)"):
        items("cb", Path("somebody/super_glue"), split="nosuch")


def test_a_saved_data_set(tmp_path: Path) -> None:
    table = datasets.Dataset.from_list(HUB["rte"])
    datasets.DatasetDict({"validation": table, "train": table.select([0])}).save_to_disk(tmp_path / "saved")
    assert items("rte", tmp_path / "saved") == items("rte", write(tmp_path / "rows.jsonl", HUB["rte"]))
    assert len(items("rte", tmp_path / "saved", split="train")) == 1


def test_glue_rte_and_its_own_tables(tmp_path: Path) -> None:
    renamed = [{"sentence1": r["premise"], "sentence2": r["hypothesis"], "label": r["label"]} for r in HUB["rte"]]
    expected = items("rte", write(tmp_path / "rows.jsonl", HUB["rte"]))
    assert items("rte", write(tmp_path / "glue.jsonl", renamed)) == expected
    lines = [
        f"{n}\t{r['sentence1']}\t{r['sentence2']}\t{SUPERGLUE['rte'].labels[r['label']]}" for n, r in enumerate(renamed)
    ]
    assert items("rte", write(tmp_path / "dev.tsv", ["index\tsentence1\tsentence2\tlabel", *lines])) == expected
    sst = [f"{row['sentence']}\t{row['label']}" for row in HUB["sst2"]]
    found = items("sst2", write(tmp_path / "sst.tsv", ["sentence\tlabel", *sst]))
    assert found == items("sst2", write(tmp_path / "sst.jsonl", HUB["sst2"]))
    with pytest.raises(DataError, match=r"sst\.tsv:2 should have 2 cells"):
        items("sst2", write(tmp_path / "sst.tsv", ["sentence\tlabel", "one cell"]))


def test_words_stand_for_the_labels_in_the_hubs_order(tmp_path: Path) -> None:
    found = {task: items(task, write(tmp_path / f"{task}.jsonl", HUB[task]))[0] for task in HUB}
    assert {task: item.options for task, item in found.items() if task != "copa"} == {
        "boolq": (" no", " yes"), "cb": (" yes", " no", " unclear"), "multirc": (" no", " yes"),
        "rte": (" yes", " no"), "sst2": (" negative", " positive"), "wic": (" no", " yes"), "wsc": (" no", " yes"),
    }  # fmt: skip
    assert found["rte"].names == ("entailment", "not_entailment")
    assert found["sst2"].names == ("negative", "positive")
    assert found["cb"].names == ("entailment", "contradiction", "neutral")


def test_copa_reads_as_one_sentence(tmp_path: Path) -> None:
    one, two = items("copa", write(tmp_path / "copa.jsonl", HUB["copa"]))
    assert (one.prompt, one.options) == ("The glass broke because", (" I dropped it.", " it was clean."))
    assert (two.prompt, two.options) == ("The sun set so", (" it got warm.", " it got dark."))


def test_other_words_and_templates(tmp_path: Path) -> None:
    path = write(tmp_path / "sst.jsonl", HUB["sst2"])
    task = parse_task(f"sst2:{path},template='Review: {{sentence}} It was',words=[terrible, great],normalise=tokens")
    item = task.items()[0]
    assert (item.prompt, item.options) == ("Review: a joy to watch It was", (" terrible", " great"))
    assert task.normalise == "tokens"
    with pytest.raises(ConfigError, match=r"may name sentence. Found 'review'"):
        parse_task(f"sst2:{path},template='{{review}}'")
    with pytest.raises(ConfigError, match="should be 2, for negative, positive"):
        parse_task(f"sst2:{path},words=[good]")


def answered(task: SuperGlueTask, chosen: list[int]) -> Any:
    return task.metrics(task.items(), chosen)


def test_metrics_of_multirc(tmp_path: Path) -> None:
    task = SuperGlueTask("multirc", write(tmp_path / "m.jsonl", published("multirc")))
    found = answered(task, [1, 1, 1])  # expected 1 0 | 1
    assert found["f1_answers"] == pytest.approx(2 * 2 / (2 * 2 + 1))
    assert (found["exact_match"].correct, found["exact_match"].total) == (1, 2)
    assert answered(task, [1, 0, 1])["exact_match"].accuracy == answered(task, [1, 0, 1])["f1_answers"] == 1
    assert answered(task, [0, 0, 0])["f1_answers"] == 0


def test_metrics_of_cb(tmp_path: Path) -> None:
    task = SuperGlueTask("cb", write(tmp_path / "cb.jsonl", HUB["cb"]))
    assert answered(task, [0, 1, 2])["f1_macro"] == 1
    # labels 0 1 2, chosen 0 0 2: F1 of 2/3, 0 and 1
    assert answered(task, [0, 0, 2])["f1_macro"] == pytest.approx((2 / 3 + 0 + 1) / 3)


@pytest.mark.parametrize("task", HUB)
def test_a_model_answers_and_the_result_is_plain_json(tmp_path: Path, model: Any, task: str) -> None:
    tokenizer = _bytes()
    model.resize_token_embeddings(len(tokenizer))
    made = SuperGlueTask(task, write(tmp_path / "rows.jsonl", HUB[task]))
    result = evaluate(model, tokenizer, made, progress=False, batch_size=2)
    single = evaluate(model, tokenizer, made, progress=False, batch_size=1)
    assert [answer.text for answer in result.answers] == [answer.text for answer in single.answers]
    record = json.loads(json.dumps(result.to_dict()))
    assert record["overall"]["total"] == len(HUB[task])
    assert record["metrics"]["accuracy"] == record["overall"]["accuracy"]
    assert ("exact_match" in record["metrics"]) == (task == "multirc") == ("counts" in record)
    assert any(row[0] == "all items" for row in result.rows())


def _bytes() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = ["<pad>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={token: n for n, token in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize(
    "task, change, found",
    [
        ("boolq", {"label": -1}, r"rows\.jsonl:2.*`label` should be false or true.*Found -1\. Test splits"),
        ("boolq", {"label": None}, r"rows\.jsonl:2.*Found None\. Test splits"),
        ("boolq", {"label": 2}, r"rows\.jsonl:2.*Found 2\."),
        ("boolq", {"label": "entailment"}, r"rows\.jsonl:2.*Found 'entailment'"),
        ("boolq", {"passage": ""}, r"rows\.jsonl:2.*`passage`.*''"),
        ("boolq", {"question": 3}, r"rows\.jsonl:2.*`question`.*3"),
        ("cb", {"label": True}, r"rows\.jsonl:2.*`label`.*True"),
        ("rte", {"label": "neutral"}, r"rows\.jsonl:2.*'neutral'"),
        ("copa", {"question": "why"}, r"rows\.jsonl:2.*cause or effect.*'why'"),
        ("copa", {"choice2": None}, r"rows\.jsonl:2.*`choice2`"),
        ("multirc", {"answer": None}, r"rows\.jsonl:2.*`answer`"),
        ("wsc", {"span1_text": " "}, r"rows\.jsonl:2.*`span1_text`"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, task: str, change: dict[str, Any], found: str) -> None:
    good, bad, *_ = HUB[task]
    with pytest.raises(DataError, match=found):
        SuperGlueTask(task, write(tmp_path / "rows.jsonl", [good, {**bad, **change}]))


@pytest.mark.parametrize("passage", ["text", {"text": "t"}, {"text": "t", "questions": [{"question": "q"}]}])
def test_bad_passages(tmp_path: Path, passage: Any) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:1"):
        SuperGlueTask("multirc", write(tmp_path / "rows.jsonl", [{"idx": 0, "passage": passage}]))


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows\.jsonl:2 should be JSON"):
        SuperGlueTask("cb", write(tmp_path / "rows.jsonl", [HUB["cb"][0], "{"]))
    with pytest.raises(DataError, match="nowhere"):
        SuperGlueTask("cb", tmp_path / "nowhere.jsonl")
    with pytest.raises(DataError, match="without a split"):
        SuperGlueTask("cb", write(tmp_path / "rows.jsonl", HUB["cb"]), split="test")
    with pytest.raises(DataError, match="at least one row"):
        SuperGlueTask("cb", write(tmp_path / "rows.jsonl", []))
    (tmp_path / "rows.parquet").write_text("no table")
    with pytest.raises(DataError, match=r"rows\.parquet"):
        SuperGlueTask("cb", tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"Found '.csv'"):
        SuperGlueTask("cb", write(tmp_path / "rows.csv", ["a,b"]))
    with pytest.raises(ConfigError, match="record"):
        SuperGlueTask("record", tmp_path)

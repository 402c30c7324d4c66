"""`corebatch subset` end to end: what it keeps, what it leaves in its folder, and how it goes on and refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

from corebatch.launch import subset_scoring
from corebatch.mixture import load_mixture


def another_model(model_folder, folder):
    """The folder of a model with other weights."""
    shutil.copytree(model_folder, folder)
    model = LlamaForCausalLM.from_pretrained(folder)
    for weight in model.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(settings):
    return Path(settings["output_dir"] + "-subset")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def report(folder):
    return json.loads((folder / "subset.json").read_text())


def changed(config, **keys):
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump({**values, **keys}))


def test_rows_are_unchanged_but_for_their_weight(corebatch, config, settings, folder, data_file):
    code, out, err = corebatch("subset", config, "--keep", 0.25, "--method", "stratified")
    assert code == 0, err
    given = lines(data_file)
    kept = lines(folder / "data.jsonl")
    assert len(kept) == 20
    assert all(row.pop("weight") == 1 for row in kept)
    assert [row for row in given if row in kept] == kept
    found = report(folder)
    assert (found["rows"], found["of"], found["follows"]) == (20, 80, "pool")
    assert found["sources"]["sums"]["rows"] == 30
    assert sum(source["kept"] for source in found["sources"].values()) == 20
    assert not (folder / "scored").exists()  # nothing had to be scored
    assert "20 of 80 rows by stratified: the kept rows stand for the data" in out
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "data.jsonl",
        "subset.json",
    ]


def test_the_output_trains(corebatch, config, folder):
    assert corebatch("subset", config, "--keep", 0.5, "--method", "balanced")[0] == 0
    weights = [row["weight"] for row in lines(folder / "data.jsonl")]
    assert np.mean(weights) == pytest.approx(1)
    assert len(set(weights)) > 1
    changed(config, datasets=[{"path": str(folder / "data.jsonl")}])
    code, _, err = corebatch("train", config, "--coreset.weight_column", "weight", "--max_steps", 1)
    assert code == 0, err


def test_a_pass_goes_on_and_serves_other_shares_and_methods(corebatch, config, folder, monkeypatch):
    monkeypatch.setattr(subset_scoring, "BLOCK", 16)
    scored, fail = subset_scoring.ScoredRows.add, [True]

    def killed(self, *numbers):
        if self.done == 48 and fail:
            raise KeyboardInterrupt
        scored(self, *numbers)

    monkeypatch.setattr(subset_scoring.ScoredRows, "add", killed)
    assert corebatch("subset", config, "--keep", 0.2, "--method", "facility_location")[0] == 130
    assert not (folder / "subset.json").exists()
    assert json.loads((folder / "scored/features/scored.json").read_text())["done"] == 48
    fail.clear()
    code, out, err = corebatch("subset", config, "--keep", 0.2, "--method", "facility_location")
    assert code == 0, err
    assert "going on at row 48" in out
    features = np.load(folder / "scored/features/features.npy")
    (folder / "subset.json").unlink()
    shutil.rmtree(folder / "scored")
    assert corebatch("subset", config, "--keep", 0.2, "--method", "facility_location")[0] == 0
    assert np.array_equal(np.load(folder / "scored/features/features.npy"), features)
    before = (folder / "data.jsonl").read_bytes()
    code, _, err = corebatch("subset", config, "--keep", 0.3, "--method", "balanced")
    assert code == 2
    assert "holds a finished subset, and nothing in it is overwritten" in err
    assert (folder / "data.jsonl").read_bytes() == before
    code, out, _ = corebatch("subset", config, "--keep", 0.3, "--method", "balanced", "--overwrite", "true")
    assert code == 0
    assert "Scoring 80 rows" not in out
    assert report(folder)["rows"] == 24


def test_numbers_of_other_data_or_models_are_refused_by_name(
    corebatch, config, folder, data_file, tmp_path, model_folder
):
    assert corebatch("subset", config, "--keep", 0.2, "--method", "facility_location")[0] == 0
    (folder / "subset.json").unlink()
    kept = data_file.read_text()
    data_file.write_text(kept.replace("sums 1?", "sums 99?"))
    code, _, err = corebatch("subset", config, "--keep", 0.2, "--method", "facility_location")
    assert code == 2
    assert "holds numbers of other rows or by another model" in err
    assert "Found data" in err
    data_file.write_text(kept)
    words = ("subset", config, "--keep", 0.2, "--method", "facility_location")
    code, _, err = corebatch(*words, "--subset.model", another_model(model_folder, tmp_path / "other"))
    assert code == 2
    assert "Found model" in err
    code, _, err = corebatch(*words, "--subset.features", "{scorer: last_layer, width: 8}")
    assert code == 2
    assert "Found scorer" in err
    assert "width" in err
    assert (folder / "data.jsonl").exists()


@pytest.mark.parametrize("score", ["loss", "el2n", "gradient_norm", "forgetting", "excess_loss"])
def test_difficulty_by_each_score(corebatch, config, folder, score, model_folder, tmp_path, settings):
    other = another_model(model_folder, tmp_path / "other")
    more = {
        "forgetting": ["--subset.states", f"[{other}]"],
        "excess_loss": ["--subset.reference", other],
    }
    words = ["subset", config, "--keep", 0.25, "--method", "difficulty", "--subset.score", score]
    code, _, err = corebatch(*words, *more.get(score, []))
    assert code == 0, err
    assert len(lines(folder / "data.jsonl")) == 20
    if score == "excess_loss":
        passes = {
            path.name: np.load(path / "losses.npy")[:, 0].astype(float) for path in (folder / "scored").glob("loss*")
        }
        own = passes.pop("loss")
        excess = torch.tensor(own - next(iter(passes.values())))
        wanted = excess.argsort(descending=True, stable=True)[:20].sort().values.tolist()
        given = lines(Path(settings["datasets"][0]["path"]))
        assert [{**given[row], "weight": 1.0} for row in wanted] == lines(folder / "data.jsonl")


@pytest.mark.parametrize(
    ("method", "options", "given"),
    [
        ("simcore", "{stop: null, centers: 4}", {"target"}),
        ("goracs", "{exchanges: 2}", {"target"}),
        ("autocoreset", "{queries: 1}", {"states"}),
        ("near_duplicates", "{threshold: 0.99}", set()),
        ("relevance", "{by: words}", {"target"}),
    ],
)
def test_a_target_states_and_texts(
    corebatch, config, folder, data_file, tmp_path, model_folder, method, options, given
):
    """What the rows of a target, other models and texts are to the methods that need them."""
    rows = lines(data_file)
    data_file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *rows[:8]]))
    (tmp_path / "target.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if "sums" in row["prompt"]))
    words = ["subset", config, "--keep", 0.2, "--method", method, "--subset.options", options]
    if "target" in given:
        words += ["--subset.target", f"{{datasets: [{{path: {tmp_path / 'target.jsonl'}}}]}}"]
    if "states" in given:
        words += ["--subset.states", f"[{another_model(model_folder, tmp_path / 'other')}]"]
    code, _, err = corebatch(*words)
    assert code == 0, err
    kept, told = lines(folder / "data.jsonl"), report(folder)
    assert len(kept) == told["rows"] == 18
    assert told["follows"] == ("target" if "target" in given else "pool")
    if method == "relevance":
        assert all("sums" in row["prompt"] for row in kept)
    if method == "goracs":
        assert (folder / "scored/score-gradient_norm").is_dir()
    if method == "near_duplicates":
        assert told["told"]["exact"] == 8
    if method == "autocoreset":
        assert told["told"]["queries"] == 2
        assert len({row["weight"] for row in kept}) > 1


def test_scores_of_ones_own(corebatch, config, folder, data_file, tmp_path):
    rows = lines(data_file)
    rows[3]["completion"] = " "  # has no trained token
    for number, row in enumerate(rows):
        row["hardness"] = (number * 37) % 80
    data_file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = np.array([row["hardness"] for row in rows], np.float32)
    np.save(tmp_path / "scores.npy", scores)
    outputs = []
    for given in (tmp_path / "scores.npy", "hardness"):
        code, _, err = corebatch(
            *("subset", config, "--keep", 0.1, "--method", "difficulty", "--scores", given, "--overwrite", "true")
        )
        assert code == 0, err
        outputs.append(lines(folder / "data.jsonl"))
    assert outputs[0] == outputs[1]
    best = sorted((row for i, row in enumerate(rows) if i != 3), key=lambda row: -row["hardness"])[:8]
    assert sorted(row["hardness"] for row in outputs[0]) == sorted(row["hardness"] for row in best)
    np.save(tmp_path / "scores.npy", scores[:79])
    words = ("subset", config, "--keep", 0.1, "--method", "difficulty", "--overwrite", "true", "--scores")
    told = corebatch(*words, tmp_path / "scores.npy")[2]
    assert "a number for each of the 80 rows that are read. Found float32 (79,)" in told
    np.save(tmp_path / "scores.npy", np.where(scores == 5, np.nan, scores))
    assert "`scores` should be finite" in corebatch(*words, tmp_path / "scores.npy")[2]
    assert "'prompt' (subset.scores) should be a number" in corebatch(*words, "prompt")[2]
    assert lines(folder / "data.jsonl") == outputs[0]


def test_several_sources_forms_and_files(corebatch, config, folder, tmp_path, settings):
    turns = [[{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(9)]
    chats = [{"messages": each} for each in turns]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    pairs = [{"question": f"q{i}", "completion": f"a{i}", "note": i, "worth": 2.0} for i in range(11)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    changed(
        config,
        datasets=[
            {"path": str(tmp_path / "chats.jsonl")},
            {"path": str(tmp_path / "pairs.jsonl"), "columns": {"prompt": "question"}, "ignore_columns": ["note"]},
        ],
        chat_template="plain",
        coreset={"weight_column": "worth"},
    )
    code, out, err = corebatch("subset", config, "--keep", 0.5, "--method", "random")
    assert code == 0, err
    first, second = lines(folder / "data-1.jsonl"), lines(folder / "data-2.jsonl")
    assert len(first) + len(second) == 10
    assert first[0]["source"] == "chats"
    assert first[0]["weight"] == 1.0
    assert set(second[0]) == {"prompt", "completion", "source", "weight"}
    assert second[0]["source"] == "pairs"
    assert second[0]["weight"] == 2.0
    assert f"{{path: {folder / 'data-2.jsonl'}}}]" in out
    again = load_mixture(
        [str(folder / "data-1.jsonl"), str(folder / "data-2.jsonl")],
        AutoTokenizer.from_pretrained(settings["model_name_or_path"]),
        weight_column="weight",
        chat_template="plain",
        cache=False,
    )
    assert set(again.counts) == {"chats", "pairs"}
    assert sorted(again.dataset["weight"]) == [1.0] * len(first) + [2.0] * len(second)


def test_parquet_stays_parquet(corebatch, config, folder, tmp_path, data_file):
    rows = lines(data_file)
    table = pa.Table.from_pylist([{**row, "extra": [number]} for number, row in enumerate(rows)])
    pq.write_table(table, tmp_path / "train.parquet")
    changed(config, datasets=[{"path": str(tmp_path / "train.parquet")}])
    assert corebatch("subset", config, "--keep", 0.25, "--method", "random")[0] == 0
    kept = pq.read_table(folder / "data.parquet")
    assert kept.schema.field("extra").type == table.schema.field("extra").type
    for row in kept.to_pylist():
        assert row.pop("weight") == 1.0
        assert row == table.slice(row["extra"][0], 1).to_pylist()[0]
    assert not (folder / "data.jsonl").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--keep", "0"], "`keep` should be a share of the rows in (0, 1]"),
        (["--keep", "1.5"], "`keep` should be a share"),
        ([], "subset.keep should be given"),
        (["--keep", "0.5", "--method", "cccs"], "Did you mean 'ccs'"),
        (["--keep", "0.5", "--subset.kep", "1"], "subset has the keys"),
        (["--keep", "0.5", "--subset.options", "{floor: 1}"], "takes no options"),
        (["--keep", "0.5", "--subset.score", "loss"], "subset.score does nothing beside method 'random'"),
        (["--keep", "0.5", "--scores", "a.npy"], "subset.scores does nothing beside method 'random'"),
        (["--keep", "0.5", "--subset.target", "{datasets: []}"], "subset.target.datasets"),
        (["--keep", "0.5", "--method", "difficulty", "--subset.score", "gues"], "subset.score should be one of"),
        (["--keep", "0.5", "--method", "difficulty", "--subset.score", "forgetting"], "subset.states should list"),
        (["--keep", "0.5", "--method", "difficulty", "--subset.score", "excess_loss"], "subset.reference is needed"),
        (["--keep", "0.5", "--method", "difficulty", "--subset.reference", "x"], "subset.reference does nothing"),
        (["--keep", "0.5", "--method", "difficulty", "--subset.score", "representation"], "a scorer of one column"),
        (["--keep", "0.5", "--method", "ccs", "--scores", "none.npy"], "none.npy should be a readable .npy file"),
        (["--keep", "0.5", "--method", "balanced", "--subset.features", "{scorer: x}"], "scorer should be one of"),
        (["--keep", "0.5", "--train_turns", "each"], "train_turns: each"),
    ],
)
def test_bad_settings_are_named_before_anything_is_written(corebatch, config, folder, words, message):
    method = [] if "--method" in words else ["--method", "random"]
    code, _, err = corebatch("subset", config, *method, *words)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (folder / "subset.json").exists()
    assert not list(folder.glob("data*"))


def test_fewer_rows_than_strata_and_foreign_folders(corebatch, config, folder, settings):
    words = ("subset", config, "--keep", 0.1, "--method", "ccs", "--subset.options", "{strata: 70}")
    assert "and the 70 strata. Found" in corebatch(*words)[2]
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    code, _, err = corebatch("subset", config, "--keep", 0.1, "--method", "random", "--overwrite", "true")
    assert code == 2
    assert "should be empty or a subset's. Found notes.txt" in err
    changed(config, datasets=[{**settings["datasets"][0], "repeat": 2}])
    code, _, err = corebatch("subset", config, "--keep", 0.1, "--method", "random", "--output", f"{folder}-2")
    assert code == 2
    assert "say how often rows come in training" in err


@pytest.mark.parametrize(
    "method, more",
    [
        ("simcore", {"target": True}),
        ("goracs", {"target": True, "score": "gradient_norm", "options": {"gradient_weight": 0.3}}),
        ("autocoreset", {"states": True}),
        ("near_duplicates", {}),
        ("near_duplicates", {"options": {"by": "embedding"}}),
        ("relevance", {"target": True}),
        ("relevance", {"target": True, "options": {"by": "words"}}),
    ],
    ids=str,
)
def test_methods_that_need_a_target_texts_or_states(corebatch, config, folder, tmp_path, model_folder, method, more):
    (tmp_path / "target.jsonl").write_text(
        "".join(json.dumps({"prompt": f"colours {n}?", "completion": "3"}) + "\n" for n in range(100, 110))
    )
    block = {"method": method, "keep": 0.2, **more}
    if "target" in more:
        block["target"] = {"datasets": [str(tmp_path / "target.jsonl")]}
    if "states" in more:
        block["states"] = [str(another_model(model_folder, tmp_path / "state"))]
    changed(config, subset=block)
    code, out, err = corebatch("subset", config)
    assert code == 0, err
    found = report(folder)
    kept = lines(folder / "data.jsonl")
    assert len(kept) == found["rows"] <= 16
    assert ("target" in more) == ("follow the target" in out)
    if method == "relevance":
        assert found["sources"]["colours"]["share_kept"] > found["sources"]["names"]["share_kept"]
    if "target" in more:
        changed(config, subset={**block, "target": None})
        assert "subset.target is needed by method" in corebatch("subset", config, "--overwrite", "true")[2]
        (tmp_path / "empty.jsonl").write_text("")
        changed(config, subset={**block, "target": {"datasets": [str(tmp_path / "empty.jsonl")]}})
        assert "empty.jsonl" in corebatch("subset", config, "--overwrite", "true")[2]
        assert lines(folder / "data.jsonl") == kept


def test_what_cannot_be_written_leaves_the_finished_subset(corebatch, config, folder, tmp_path, data_file):
    assert corebatch("subset", config, "--keep", 0.5, "--method", "random")[0] == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    pq.write_table(pa.Table.from_pylist([{"prompt": "a", "completion": "b", "raw": b"x"}]), tmp_path / "raw.parquet")
    changed(config, datasets=[str(data_file), str(tmp_path / "raw.parquet")])
    code, _, err = corebatch("subset", config, "--keep", 1.0, "--method", "random", "--overwrite", "true")
    assert code == 2
    assert "A kept row should be plain JSON" in err
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before

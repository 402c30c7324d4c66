"""Which examples were chosen most and least often, and their texts."""

import json
import math

import pytest

from corebatch.record.example_counts import count_examples, text_of, write_examples
from corebatch.record.example_turns import CHARACTERS, shortened
from corebatch.trainer import CoresetConfig
from training import mixture, run, trainer


def written(path, steps):
    path.write_text("".join(json.dumps({"step": i, **step}) + "\n" for i, step in enumerate(steps, start=1)))
    return path


def ids(entries):
    return [entry["id"] for entry in entries]


STEPS = [
    {"chosen": [1, 2], "weights": [0.5, 1.5], "passed": [3, 4]},
    {"chosen": [1, 3], "weights": [0.7, 1.1], "passed": [2, 4]},
    {"chosen": [1, 5], "weights": [0.6, 1.0], "passed": [4, 6]},
]


def test_the_lists_go_by_deviations_from_a_random_choice(tmp_path):
    found = count_examples(written(tmp_path / "chosen.jsonl", STEPS))
    assert found["ranked_by"] == "rate"
    assert found["most"][0] == {"id": 1, "drawn": 3, "chosen": 3, "expected": 1.5, "weight": 0.6}
    assert ids(found["most"]) == [1, 5, 3, 2, 6, 4]  # 5: one of one; 3 before 2 by the smaller weight
    assert found["least"][0] == {"id": 4, "drawn": 3, "chosen": 0, "expected": 1.5, "weight": None}
    assert ids(found["least"])[:2] == [4, 6]
    assert (found["examples_drawn"], found["draws"], found["steps"], found["last_step"]) == (6, [1, 3], 3, 3)
    assert found["never_chosen"] == 2
    # 1 and 4 are drawn three times, 2 and 3 twice, 5 and 6 once, always by a half
    assert found["never_chosen_by_chance"] == pytest.approx(2 / 8 + 2 / 4 + 2 / 2, abs=0.06)
    assert ids(count_examples(tmp_path / "chosen.jsonl", shown=2)["least"]) == [4, 6]


def test_where_no_example_came_twice_they_go_by_weight(tmp_path):
    steps = [STEPS[0], {"chosen": [7], "weights": [0.2], "passed": [8]}]
    found = count_examples(written(tmp_path / "chosen.jsonl", steps))
    assert (found["ranked_by"], ids(found["most"]), ids(found["least"])) == ("weight", [7, 1, 2], [2, 1, 7])
    without = [{"chosen": [1], "passed": [2]}]
    found = count_examples(written(tmp_path / "chosen.jsonl", without))
    assert (found["ranked_by"], found["most"], found["never_chosen"]) == (None, [], 1)


def test_whole_pools_and_nothing_at_all(tmp_path):
    found = count_examples(written(tmp_path / "chosen.jsonl", [{"chosen": [1, 2], "passed": []}] * 3))
    assert found["never_chosen"] == found["never_chosen_by_chance"] == 0
    assert ids(found["most"]) == [1, 2]
    found = count_examples(written(tmp_path / "chosen.jsonl", []))
    assert (found["examples_drawn"], found["most"]) == (0, [])


class Tokenizer:
    def decode(self, ids, skip_special_tokens=False, clean_up_tokenization_spaces=None):
        return " ".join(f"t{i}" for i in ids if i or not skip_special_tokens)


def test_texts_are_decoded_and_shortened():
    assert text_of({"input_ids": [0, 3, 4]}, Tokenizer()) == "t3 t4"  # without special tokens
    assert text_of({"input_ids": [3, 4]}, None) is None
    assert text_of({"prompt": "two  and\n two", "completion": "four", "source": "x"}, None) == "two and two four"
    text = shortened("begin " + "x " * 400 + "end")
    assert text.startswith("begin")
    assert text.endswith("end")
    assert len(text) <= CHARACTERS
    assert " … " in text


def test_a_run_leaves_its_examples_with_their_texts(tmp_path):
    made = trainer(tmp_path, None, CoresetConfig(), max_steps=14, extra={"processing_class": Tokenizer()})
    run(made)
    found = json.loads((tmp_path / "examples.json").read_text())
    assert found["steps"] == found["last_step"] == 14
    assert found["examples_in_data"] == 96
    data = mixture()
    for entry in (*found["most"], *found["least"]):
        assert entry["source"] == data[entry["id"]]["source"]
        assert entry["text"].startswith(f"t{data[entry['id']]['input_ids'][0]} ")
        turns = entry["turns"]
        assert [(turn["role"], turn["trained"]) for turn in turns] == [("prompt", False), ("answer", True)]
        assert " ".join(turn["text"] for turn in turns) == entry["text"]
    lines = [json.loads(line) for line in (tmp_path / "chosen.jsonl").read_text().splitlines()]
    entry = found["most"][0]
    assert entry["chosen"] == sum(entry["id"] in line["chosen"] for line in lines)
    assert entry["drawn"] - entry["chosen"] == sum(entry["id"] in line["passed"] for line in lines)


def test_the_record_has_weights_by_source_and_ids(tmp_path):
    run(trainer(tmp_path, None, CoresetConfig(), max_steps=3))
    run(trainer(tmp_path / "uniform", None, CoresetConfig(selector="random"), max_steps=3))
    data = mixture()
    for folder, weighted in ((tmp_path, True), (tmp_path / "uniform", False)):
        lines, rows = (
            [json.loads(line) for line in (folder / name).read_text().splitlines()]
            for name in ("selection.jsonl", "chosen.jsonl")
        )
        for line, row in zip(lines, rows, strict=True):
            assert line["step"] == row["step"]
            weights = row.get("weights", [1.0] * len(row["chosen"]))
            assert ("weights" in row) == weighted
            sums = {}
            for number, weight in zip(row["chosen"], weights, strict=True):
                source = data[number]["source"]
                sums[source] = sums.get(source, 0.0) + weight
            assert sums == pytest.approx(line["weights"], rel=1e-3)
            assert line["weights"].keys() == line["chosen"].keys()
            assert len(row["chosen"]) == line["chosen_examples"]
            assert len(row["chosen"]) + len(row["passed"]) == line["pool_examples"]
            assert not set(row["chosen"]) & set(row["passed"])
            assert math.isfinite(sum(line["weights"].values()))


def test_what_goes_wrong_after_training_is_a_warning(tmp_path, caplog):
    class Broken(Tokenizer):
        def decode(self, ids, **options):
            raise RuntimeError("no vocabulary")

    made = trainer(tmp_path, None, CoresetConfig(), max_steps=7, extra={"processing_class": Broken()})
    run(made)
    assert "examples.json was not written: RuntimeError: no vocabulary" in caplog.text
    assert not (tmp_path / "examples.json").exists()
    write_examples(tmp_path / "nowhere", made)

"""Rows by length from a config: what `validate` foretells is what `train` makes."""

import json
import re
from pathlib import Path


def test_validate_foretells_the_steps_of_train(corebatch, config, settings):
    words = ["--coreset.pool_factor", "1", "--coreset.by_length.curriculum", "grow_p2", "--num_train_epochs", "1"]
    words += ["--max_steps", "-1"]
    code, out, error = corebatch("validate", config, *words)
    assert code == 0, error
    out = " ".join(out.split())
    assert "(drawn a step, in rows of the longest bucket) 8" in out
    (steps,) = re.findall(r"steps in all (\d+)", out)
    code, out, error = corebatch("train", config, *words)
    assert code == 0, error
    lines = (Path(settings["output_dir"]) / "selection.jsonl").read_text().splitlines()
    assert len(lines) == int(steps)
    record = json.loads((Path(settings["output_dir"]) / "corebatch.json").read_text())
    assert record["coreset"]["by_length"]["curriculum"] == "grow_p2"


def test_a_key_that_it_has_not_is_named(corebatch, config):
    code, _, error = corebatch("validate", config, "--coreset.by_length.curriculm", "grow_p2")
    assert code != 0
    assert "Did you mean 'curriculum'" in error

"""A batch that grows from a config: what `validate` says, what `train` makes and records."""

import json
import re
from pathlib import Path


def test_validate_says_how_far_it_grows(corebatch, config, settings):
    words = ["--coreset.budget.ramp.most", "3", "--coreset.budget.ramp.until", "0.4", "--max_steps", "8"]
    code, out, error = corebatch("validate", config, *words)
    assert code == 0, error
    out = " ".join(out.split())
    assert "steps in all, at most 8" in out
    (small,) = re.findall(r"small batch \(trained a step\) (\d+)", out)
    (most,) = re.findall(r"grown by the budget ramp (\d+)", out)
    assert int(most) == 3 * int(small)
    code, out, error = corebatch("train", config, *words)
    assert code == 0, error
    folder = Path(settings["output_dir"])
    sizes = [json.loads(line)["chosen_examples"] for line in (folder / "selection.jsonl").read_text().splitlines()]
    assert sizes[0] == int(small)
    assert max(sizes) > 2 * int(small)
    assert len(sizes) < 8
    assert json.loads((folder / "corebatch.json").read_text())["coreset"]["budget"] == {
        "ramp": {"most": 3, "until": 0.4}
    }


def test_a_key_that_it_has_not_is_named(corebatch, config):
    code, _, error = corebatch("validate", config, "--coreset.budget.ramp.untill", "0.4")
    assert code != 0
    assert "Did you mean 'until'" in error

"""Online objectives in a config file: what is validated, and held-out sets by source for those that follow them."""

import json

import yaml


def test_validate_names_a_bad_option(corebatch, settings, tmp_path):
    settings["coreset"] = {"objective": {"online": "odm", "alfa": 0.5}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    code, _, err = corebatch("validate", path)
    assert code == 2
    assert "Found 'alfa'. Did you mean 'alpha'?" in err


def test_train_with_shares_that_follow_held_out_losses(corebatch, settings, data_file, tmp_path):
    names = ["sums", "names", "colours", "rare"]
    settings["coreset"] = {
        "objective": {"online": "skill_it", "graph": {name: {"rare": 1.0} for name in names[2:]}, "period": 1}
    }
    settings |= {"eval_datasets": [{"path": str(data_file)}], "max_steps": 3}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    code, out, err = corebatch("train", path)
    assert code == 0, err
    assert "shares that skill_it changes" in out
    assert "What is trained, at the start of the run" in out
    lines = [json.loads(line) for line in (tmp_path / "run" / "selection.jsonl").read_text().splitlines()]
    assert len({line["shares"]["rare"] for line in lines}) == 3
    assert lines[0]["shares"]["rare"] == lines[0]["shares"]["colours"] > lines[0]["shares"]["sums"]


def test_validate_says_which_held_out_sets_are_missing(corebatch, settings, tmp_path):
    settings["coreset"] = {"objective": {"online": "aioli"}}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    code, _, err = corebatch("validate", path, "--coreset.objective.sweeps", "1")
    assert code == 2
    assert "eval_datasets with rows of every source" in err

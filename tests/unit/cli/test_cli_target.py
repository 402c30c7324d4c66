"""A target and a reference in a config file: trained, told in record, report and card."""

import json

import yaml


def written(settings, tmp_path, **more):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**settings, **more}))
    return path


def test_train_after_a_target(corebatch, settings, data_file, tmp_path):
    coreset = {"pool_factor": 2, "selector": "greats", "target": {"every": 2, "rows": 4}}
    path = written(settings, tmp_path, coreset=coreset, target_datasets=[str(data_file)], max_steps=3)
    code, out, err = corebatch("train", path)
    assert code == 0, err
    follows = "a target, by the gradients of 4 of its rows at every 2 steps, and not the pool"
    assert f"the choice follows {follows}" in out
    record = json.loads((tmp_path / "run" / "corebatch.json").read_text())
    assert record["follows"] == follows
    assert record["method_note"] == f"What is trained follows {follows}."
    assert follows in " ".join((tmp_path / "run" / "README.md").read_text().split())
    assert follows in " ".join((tmp_path / "run" / "report.html").read_text().split())


def test_validate_says_what_a_target_lacks(corebatch, settings, data_file, tmp_path):
    coreset = {"pool_factor": 2, "selector": "greats", "target": {"every": 2}}
    code, _, err = corebatch("validate", written(settings, tmp_path, coreset=coreset))
    assert code == 2
    assert "coreset.target needs rows to follow" in err
    assert "or the config target_datasets. Found none." in err
    path = written(settings, tmp_path, coreset={"pool_factor": 2}, target_datasets=[str(data_file)])
    code, _, err = corebatch("validate", path)
    assert code == 2
    assert "set coreset.selector to greats, coreset.target" in err
    entry = {"path": str(data_file), "source": "a", "share": 0.5}
    path = written(settings, tmp_path, target_datasets=[entry])
    code, _, err = corebatch("validate", path)
    assert code == 2
    assert "target_datasets: `share` says how often rows are drawn in training" in err


def test_train_after_a_reference(corebatch, settings, model_folder, tmp_path):
    options = {"reference": str(model_folder)}
    coreset = {"pool_factor": 2, "scorer": "excess_loss", "scorer_options": options, "selector": "hard"}
    code, out, err = corebatch("train", written(settings, tmp_path, coreset=coreset, max_steps=3))
    assert code == 0, err
    assert f"the choice follows what {model_folder} was trained on, by excess loss, and not the pool" in out
    assert corebatch("validate", written(settings, tmp_path, coreset={**coreset, "scorer_options": {}}))[0] == 2

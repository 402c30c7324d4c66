"""Shares of what is drawn on the command line: in `coreset.sampling` or in entries of `datasets`; and the table of what
is trained."""

import json
from pathlib import Path

import pytest

from corebatch.errors import ConfigError
from corebatch.launch.trained_mixture import in_a_sentence, trained_sources
from corebatch.trainer import CoresetConfig

ROWS, TOKENS = {"math": 60, "code": 30, "rare": 10}, {"math": 600, "code": 900, "rare": 500}
UPSAMPLED = {"shares": {"rare": 0.5}}
AT_THE_END = [{"until": 0.8, "is": {}}, {"is": {"rare": 0.5}}]


def trained(end=False, **settings):
    return trained_sources(CoresetConfig(**settings), ROWS, TOKENS, end=end)


def shares(found, name):
    return [getattr(one, f"of_{name}") for one in found]


@pytest.mark.parametrize(
    "settings, drawn, tokens, objective",
    [
        ({}, [0.6, 0.3, 0.1], [0.3, 0.45, 0.25], [0.3, 0.45, 0.25]),
        ({"objective": "sources"}, [0.6, 0.3, 0.1], [0.3, 0.45, 0.25], [1 / 3] * 3),
        ({"objective": "examples"}, [0.6, 0.3, 0.1], [0.3, 0.45, 0.25], [0.6, 0.3, 0.1]),
        ({"objective": {"rare": 0.9}}, [0.6, 0.3, 0.1], [0.3, 0.45, 0.25], [0.04, 0.06, 0.9]),
        # tokens a draw: 10, 30, 50 on 1/3, 1/6, 1/2 of the rows
        ({"sampling": UPSAMPLED}, [1 / 3, 1 / 6, 1 / 2], [2 / 20, 3 / 20, 15 / 20], [0.3, 0.45, 0.25]),
        ({"sampling": UPSAMPLED, "objective": "drawn"}, [1 / 3, 1 / 6, 1 / 2], [0.1, 0.15, 0.75], [0.1, 0.15, 0.75]),
        ({"sampling": UPSAMPLED, "objective": "sources"}, [1 / 3, 1 / 6, 1 / 2], [0.1, 0.15, 0.75], [1 / 3] * 3),
        ({"sampling": {"temperature": 0}}, [1 / 3] * 3, [1 / 9, 3 / 9, 5 / 9], [0.3, 0.45, 0.25]),
        # what is never drawn cannot count
        ({"sampling": {"shares": {"math": 0.5, "code": 0.5}}}, [0.5, 0.5, 0], [0.25, 0.75, 0], [0.4, 0.6, 0]),
    ],
)
def test_what_is_trained(settings, drawn, tokens, objective):
    found = trained(**settings)
    assert [one.source for one in found] == ["math", "code", "rare"]
    assert shares(found, "rows") == pytest.approx([0.6, 0.3, 0.1])
    assert shares(found, "drawn") == pytest.approx(drawn)
    assert shares(found, "tokens") == pytest.approx(tokens)
    assert shares(found, "objective") == pytest.approx(objective)
    assert [one.times for one in found] == pytest.approx(
        [100 * share / rows for share, rows in zip(drawn, ROWS.values(), strict=True)]
    )


def test_schedules_have_a_start_and_an_end():
    settings = {"sampling": {"shares": AT_THE_END}, "objective": [{"until": 0.5, "is": "tokens"}, {"is": "sources"}]}
    start, end = trained(**settings), trained(**settings, end=True)
    assert (shares(start, "drawn")[2], shares(end, "drawn")[2]) == pytest.approx((0.1, 0.5))
    assert (shares(start, "objective")[2], shares(end, "objective")[2]) == pytest.approx((0.25, 1 / 3))


def test_an_epoch_until_all_are_seen():
    found = trained(sampling={**UPSAMPLED, "until": "all_seen"})  # 180 rows: 60 of a third, 30 of a sixth, 90 of a half
    assert [one.times for one in found] == pytest.approx([1, 1, 9])


def test_one_sentence_says_it():
    assert (
        in_a_sentence(trained(objective={"rare": 0.9}))
        == "rare: 10 % of rows, 25 % of loss tokens, 90 % of the objective."
    )
    assert in_a_sentence(trained_sources(CoresetConfig(), {"a": 3}, {"a": 9})) == ""


def test_sources_that_are_not_there():
    for settings in ({"sampling": {"shares": {"rar": 0.5}}}, {"objective": {"rar": 0.5}}):
        with pytest.raises(ConfigError, match=r"math.*Found 'rar'. Did you mean 'rare'"):
            trained(**settings)


# ---- the commands ----------------------------------------------------------------------------------------------------


def entries(settings, tmp_path, **more):
    """The mixture as files with a source each, of which the last has more keys."""
    rows = [json.loads(line) for line in Path(settings["datasets"][0]["path"]).read_text().splitlines()]
    made = []
    for source in ("sums", "names", "rare"):
        path = tmp_path / f"{source}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["source"] == source))
        made.append({"path": str(path), "source": source})
    made[-1].update(more)
    return json.dumps(made)


def test_validate_prints_what_is_trained(corebatch, config, settings, tmp_path):
    code, out, error = corebatch("validate", config, "--fast")
    assert code == 0, error
    assert "What is trained (shares in %)" in out
    assert "The update is the mean over trained tokens. Rows come as often as they are in the data." in out
    data = entries(settings, tmp_path, share=0.4, repeat=2)
    words = ["--datasets", data, "--coreset.objective", "sources", "--coreset.sampling.until", "all_seen"]
    code, out, error = corebatch("validate", config, "--fast", *words)
    assert code == 0, error
    assert "rare 12 18.2 40.0" in out
    assert "The update is the mean over 3 sources" in out
    assert "weights undo in the update how often they come" in out
    assert "rare.jsonl: its rows are in the data 2 times. That changes the data." in out
    assert "steps an epoch 6" in out  # 30 sums of a third of the draws: 90 rows of 16 a step
    code, out, error = corebatch("validate", config, "--fast", "--datasets", entries(settings, tmp_path, weight=0.5))
    assert "in the data 0.5 times, drawn once: each epoch has the same. That changes the data." in out


def test_a_share_in_an_entry_is_one_of_sampling(corebatch, config, settings, tmp_path):
    words = ["--datasets", entries(settings, tmp_path, share=0.5), "--coreset.pool_factor", "1", "--max_steps", "2"]
    code, out, error = corebatch("train", config, *words)
    assert code == 0, error
    assert "What is trained" in out
    folder = Path(settings["output_dir"])
    record = json.loads((folder / "corebatch.json").read_text())
    assert record["coreset"]["sampling"] == {"shares": {"rare": 0.5}}
    lines = [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]
    assert sum(line["drawn"]["rare"] for line in lines) == pytest.approx(8, abs=3)


def test_replay_in_an_entry_is_that_of_coreset(corebatch, config, settings, tmp_path):
    words = ["--datasets", entries(settings, tmp_path, replay=0.25), "--coreset.pool_factor", "2", "--max_steps", "4"]
    code, _, error = corebatch("train", config, *words)
    assert code == 0, error
    folder = Path(settings["output_dir"])
    coreset = json.loads((folder / "corebatch.json").read_text())["coreset"]
    assert coreset["replay"] == coreset["objective"] == coreset["sampling"]["shares"] == {"rare": 0.25}
    lines = [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]
    assert [line["chosen"]["rare"] for line in lines] == [line["chosen_examples"] / 4 for line in lines]


@pytest.mark.parametrize(
    "more, words, message",
    [
        ({}, ["--coreset.sampling", "{shares: {rar: 0.5}}"], "names, rare, sums. Found 'rar'. Did you mean 'rare'"),
        ({}, ["--coreset.sampling", "{shares: {rare: 0, sums: 0}}"], "sum to more than 0"),
        ({}, ["--coreset.sampling", "{temperature: -1}"], "temperature should be a number of at least 0"),
        ({}, ["--coreset.sampling", "{temperature: 0, shares: {rare: 1}}"], "one of them. Found both"),
        ({}, ["--coreset.objective", "{rar: 0.5}"], "Found 'rar'. Did you mean 'rare'"),
        ({"share": 0.5}, ["--coreset.sampling", "{temperature: 0}"], "coreset.sampling.temperature and `share`"),
        ({"share": 0.5, "source": "sums"}, [], "Found another entry of this source"),
        ({"share": 1.5}, [], "above 0 and at most 1. Found 1.5"),
        ({"replay": 1.0}, [], "coreset.replay: the share of 'rare' should be above 0 and below 1. Found 1.0"),
        ({"replay": 0.5}, ["--coreset.replay", "{sums: 0.2}"], "coreset.replay and `replay`"),
        ({"share": 0.5}, ["--group_by_length"], "group_by_length"),
    ],
)
def test_what_does_not_go_is_said_before_training(corebatch, config, settings, tmp_path, more, words, message):
    for command in ("validate", "train"):
        code, _, error = corebatch(command, config, "--datasets", entries(settings, tmp_path, **more), *words)
        assert code == 2, error
        assert message in " ".join(error.split())
        assert not (Path(settings["output_dir"]) / "selection.jsonl").exists()


def test_held_out_rows_have_no_share(corebatch, config, settings, tmp_path):
    code, _, error = corebatch("validate", config, "--eval_datasets", entries(settings, tmp_path, share=0.5))
    assert code == 2
    assert "eval_datasets: `share` says how often rows are drawn in training" in error
    code, _, error = corebatch("validate", config, "--eval_datasets", entries(settings, tmp_path, replay=0.5))
    assert code == 2
    assert "eval_datasets: `replay` says how often rows are trained in training" in error

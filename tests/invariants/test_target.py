"""A target in a run: its gradients are those of its rows as they are, it is looked at when it is due, and followed."""

import copy
import json
import shutil

import pytest
import torch

from corebatch.errors import CheckpointError, ConfigError, DataError
from corebatch.scoring import LastLayer
from corebatch.trainer import CoresetConfig
from training import Collator, mixture, run, same, tiny_model, trainer, weights

TARGET = mixture(24, seed=7)


def config(target=None, **settings):
    given = {
        "scorer": "last_layer",
        "selector": "greats",
        "pool_factor": 2,
        "target": target or {"every": 2, "rows": 6},
    }
    return CoresetConfig(**{**given, **settings})


def made(folder, coreset=None, target=TARGET, **settings):
    return trainer(folder, tiny_model(), coreset or config(), extra={"target_dataset": target}, **settings)


def watched(made_trainer):
    """The trainer, and of each step the mean that it follows, the features, the choice, and the model as it was."""
    seen, choose = [], made_trainer._choose

    def take(pool, plan, scores):
        choice = choose(pool, plan, scores)
        model = copy.deepcopy(made_trainer._run.model())
        seen.append((made_trainer._run.method.validation.clone(), scores.features.clone(), choice.selection, model))
        return choice

    made_trainer._choose = take
    return made_trainer, seen


def twin(model, rows):
    """[1, P], one row at a time."""
    features = []
    for row in rows:
        batch = Collator()([TARGET[row]])
        features.append(LastLayer().run(model, batch).features)
    return torch.cat(features).mean(0, keepdim=True)


def test_it_is_the_mean_gradient_of_rows_in_turn(tmp_path):
    model, seen = watched(made(tmp_path, max_steps=10))
    run(model)
    target = model._run.scoring.target
    looks = [target.rows(look) for look in range(5)]
    assert sorted(row for look in looks[:4] for row in look) == list(range(24))  # all have had their turn
    assert sorted(looks[4]) != sorted(looks[0])
    for step, (mean, _, _, at) in enumerate(seen):
        if step % 2 == 0:
            torch.testing.assert_close(mean, twin(at, looks[step // 2]), rtol=1e-4, atol=1e-7)
        else:
            assert torch.equal(mean, seen[step - 1][0])
    assert not torch.equal(seen[0][0], seen[2][0])


def test_the_rows_that_are_trained_are_those_that_follow_it_best(tmp_path):
    model, seen = watched(made(tmp_path, config(selector_options={"interaction": 0.0}), max_steps=4))
    run(model)
    for mean, features, selection, _ in seen:
        aligned = (features.double() @ mean[0].double()).argsort(descending=True, stable=True)
        assert selection.indices.tolist() == sorted(aligned[: len(selection.indices)].tolist())
    record = json.loads((tmp_path / "corebatch.json").read_text())
    assert record["follows"] == "a target, by the gradients of 6 of its rows at every 2 steps, and not the pool"
    assert record["scored"].endswith(record["follows"])
    assert record["coreset"]["target"] == {"every": 2, "rows": 6}


@pytest.mark.parametrize("scoring", ["full", {"way": "window", "tokens": 4}])
def test_it_is_scored_as_the_pool_is(tmp_path, scoring):
    """The whole pool for a target: then the means are the same."""
    rows = mixture(16)
    coreset = config({"every": 1, "rows": 16}, scoring=scoring)
    model, seen = watched(made(tmp_path, coreset, rows, train_dataset=rows, max_steps=3))
    run(model)
    for mean, features, _, _ in seen:
        torch.testing.assert_close(mean, features.mean(0, keepdim=True), rtol=1e-4, atol=1e-7)


def test_it_is_mapped_as_the_pool_is(tmp_path):
    """By the live optimizer's second moments, and to fewer numbers."""
    coreset = config(
        selector_options={"interaction": 0.0}, normalise="optimizer", sparsify="projection", target={"every": 1}
    )
    model, seen = watched(made(tmp_path, coreset, max_steps=3))
    run(model)
    step = model._run.method
    assert step.validation.shape == (1, seen[-1][1].shape[1])
    mapped = coreset.build()
    mapped.validation = seen[0][0]
    sources = torch.zeros(len(seen[0][1]), dtype=torch.long)
    expected = mapped.sparsify(seen[0][1], sources) @ mapped.sparsify(seen[0][0], sources[:1])[0]
    best = expected.argsort(descending=True, stable=True)[: len(seen[0][2].indices)]
    assert seen[0][2].indices.tolist() == sorted(best.tolist())  # before the first step there are no moments


@pytest.mark.parametrize("every", [1, 3])
def test_resumed_is_uninterrupted(tmp_path, every):
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    coreset = config({"every": every, "rows": 4})
    whole, seen = watched(made(tmp_path, coreset, **settings))
    run(whole)
    shutil.rmtree(tmp_path / "checkpoint-8")
    again, seen_again = watched(made(tmp_path, coreset, **settings))
    run(again, resume_from_checkpoint=True)
    assert same(weights(whole), weights(again))
    assert all(torch.equal(one[0], other[0]) for one, other in zip(seen[4:], seen_again, strict=True))
    shutil.rmtree(tmp_path / "checkpoint-8")
    with pytest.raises(CheckpointError, match="target_dataset was examples 24"):
        run(made(tmp_path, coreset, target=mixture(25, seed=7), **settings), resume_from_checkpoint=True)


def test_a_torch_data_set_may_be_the_target(tmp_path):
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"], "note": "text"} for row in TARGET]
    one, seen = watched(made(tmp_path / "one", max_steps=3))
    other, seen_too = watched(made(tmp_path / "other", target=rows, max_steps=3))
    run(one), run(other)
    assert same(weights(one), weights(other))
    assert all(torch.equal(a[0], b[0]) for a, b in zip(seen, seen_too, strict=True))


@pytest.mark.parametrize(
    ("target", "coreset", "said"),
    [
        (None, {}, r"coreset.target needs rows to follow.*Found none"),
        (TARGET.select([]), {}, "target_dataset should have examples. Found none"),
        ({"a": TARGET}, {}, "target_dataset should be one data set"),
        (TARGET, {"selector": "cube", "target": "none"}, r"Found selector 'cube', target None"),
        (TARGET, {"pool_factor": 1, "loss_by_source": True}, "pool_factor 1"),
    ],
)
def test_what_is_missing_is_said_when_the_trainer_is_made(tmp_path, target, coreset, said):
    with pytest.raises(ConfigError, match=said):
        made(tmp_path, config(**coreset), target)
    assert not (tmp_path / "corebatch.json").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target": "none"}, "needs validation gradients: in a Trainer give coreset.target"),
        ({"selector": "cube"}, "goes with a selector that follows it: greats. Found 'cube'"),
        ({"target": {"evry": 3}}, r"has the keys every, rows\. Found 'evry'\. Did you mean 'every'"),
        ({"target": {"every": 0}}, "coreset.target.every should be an integer of at least 1. Found 0"),
        ({"target": {"rows": 1.5}}, "coreset.target.rows should be an integer"),
        ({"target": 5}, "should be a block of every, rows. Found 5"),
        ({"normalise": "adam"}, "normalise should be optimizer or sgd, or none. Found 'adam'"),
        ({"sparsify": "topk"}, "sparsify should be projection, or none. Found 'topk'"),
        ({"scoring": "two_phase"}, "needs a weighted selector"),
    ],
)
def test_bad_settings_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        config(**settings)


def test_rows_that_cannot_be_followed_end_the_run_by_name(tmp_path):
    untrained = [{"input_ids": row["input_ids"], "labels": [-100] * len(row["labels"])} for row in TARGET]
    with pytest.raises(DataError, match=r"should have trained tokens. Found none in 6 rows"):
        run(made(tmp_path / "a", target=untrained))
    raw = [{"text": "a row that nobody has tokenised"}] * 8
    with pytest.raises(DataError, match=r"of the target should make a batch .* Found KeyError"):
        run(made(tmp_path / "c", target=raw))
    foreign = [{"input_ids": [3, 99999], "labels": [3, 99999]} for _ in range(6)]
    with pytest.raises(DataError, match="of the target set: is the tokenizer"):
        run(made(tmp_path / "b", target=foreign))

"""Excess losses against a slow twin: one row at a time, by the models' own losses, nothing remembered."""

import copy
import json
import shutil

import pytest
import torch

from corebatch.errors import CheckpointError, ConfigError, InputError
from corebatch.scoring import ExcessLoss, make_scorer
from corebatch.trainer import CoresetConfig
from models import tiny_batch, tiny_model
from training import mixture, run, same, trainer, weights
from training import tiny_model as small_model


def summed_losses(model, batch):
    """[N], from the model's own logits, token by token."""
    found = []
    for row in range(len(batch["labels"])):
        one = {key: value[row : row + 1] for key, value in batch.items() if key != "labels"}
        with torch.no_grad():
            logarithms = model.eval()(**one).logits[0].double().log_softmax(-1)
        targets = batch["labels"][row, 1:].tolist()
        found.append(-sum(float(logarithms[t, word]) for t, word in enumerate(targets) if word != -100))
    return torch.tensor(found, dtype=torch.float64)


def other_model(seed):
    """A small model with weights of its own."""
    model = small_model(lora=False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    other_model(9).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("per", ["token", "example"])
def test_it_is_the_models_loss_less_the_references(per):
    model, other, batch = tiny_model(), tiny_model("gpt2", seed=4), tiny_batch()
    plain = {key: value for key, value in batch.items() if key != "position_ids"}
    scores = ExcessLoss(reference=other, per=per).run(model, plain)
    expected = summed_losses(model, plain) - summed_losses(other, plain)
    tokens = (batch["labels"][:, 1:] != -100).sum(1)
    expected = expected / tokens.clamp(min=1) if per == "token" else expected
    torch.testing.assert_close(scores.features[:, 0], expected)
    torch.testing.assert_close(scores.losses, summed_losses(model, plain))


def test_base_is_the_model_without_its_adapters_and_leaves_them_as_they_were():
    model, batch = tiny_model(lora=True), tiny_batch()
    frozen = next(p for name, p in model.named_parameters() if "lora_A" in name).requires_grad_(False)
    asking = [p.requires_grad for p in model.parameters()]
    scores = ExcessLoss(reference="base").run(model, batch)
    with_adapters = summed_losses(model, batch)
    assert [p.requires_grad for p in model.parameters()] == asking
    assert not frozen.requires_grad
    tokens = scores.tokens.clamp(min=1)
    torch.testing.assert_close(scores.features[:, 0], (with_adapters - summed_losses(model.unload(), batch)) / tokens)


def test_a_model_without_adapters_has_no_base():
    with pytest.raises(ConfigError, match="without any: give the path"):
        ExcessLoss(reference="base").run(tiny_model(), tiny_batch())
    with pytest.raises(InputError, match="kept by a Trainer's run"):
        ExcessLoss(reference="average").run(tiny_model(), tiny_batch())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"reference": 3}, "should be a path, base, average or a model. Found 3"),
        ({"reference": ""}, "should be a path"),
        ({"reference": "base", "per": "row"}, "per should be token or example. Found 'row'"),
        ({"reference": "average", "decay": 1.0}, r"in \[0, 1\). Found 1.0"),
        ({"reference": "average", "refresh": 0}, "refresh should be an integer of at least 1"),
        ({"reference": "base", "refresh": 5}, "refresh goes with reference average. Found 'base'"),
        ({"decay": 0.5}, "decay goes with reference average"),
    ],
)
def test_bad_options_are_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        make_scorer("excess_loss", options)


# ---- in a run ----------------------------------------------------------------------------------------------------


def config(reference, **settings):
    options = reference if isinstance(reference, dict) else {"reference": reference}
    return CoresetConfig(scorer="excess_loss", scorer_options=options, selector="hard", pool_factor=2, **settings)


def watched(made):
    """The trainer, and of each step its pool, what was chosen by, the choice, and the model as it was."""
    seen, choose = [], made._choose

    def take(pool, plan, scores):
        choice = choose(pool, plan, scores)
        seen.append((pool, scores, choice.selection, copy.deepcopy(made._run.model())))
        return choice

    made._choose = take
    return made, seen


def counted(made):
    """The trainer, and of each step how many rows the reference scored."""
    fresh, choose = [], made._choose

    def take(pool, plan, scores):
        fresh.append(made._run.scoring.references.fresh)
        return choose(pool, plan, scores)

    made._choose = take
    return made, fresh


def twin(dataset, ids, model, other):
    """[N]: mean excess losses of examples of the data set."""
    found = []
    for row in (dataset[example] for example in ids):
        one = {key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}
        count = int((one["labels"][:, 1:] != -100).sum())
        found.append((summed_losses(model, one) - summed_losses(other, one)) / max(count, 1))
    return torch.cat(found).float()


def test_each_step_trains_the_rows_of_largest_excess(tmp_path, reference):
    made, seen = watched(trainer(tmp_path, coreset=config(reference), max_steps=4))
    run(made)
    assert len(seen) == 4
    for pool, scores, selection, model in seen:
        expected = twin(mixture(), pool.ids.tolist(), model, other_model(9))
        torch.testing.assert_close(scores.features[:, 0].float(), expected, rtol=1e-4, atol=1e-5)
        best = scores.features[:, 0].argsort(descending=True, stable=True)[: len(selection.indices)]
        assert selection.indices.tolist() == sorted(best.tolist())
    record = json.loads((tmp_path / "corebatch.json").read_text())
    assert record["follows"] == f"what {reference} was trained on, by excess loss, and not the pool"
    assert record["scored"].endswith(f"the choice follows {record['follows']}")


def test_the_average_is_that_of_earlier_weights(tmp_path):
    made, seen = watched(trainer(tmp_path, coreset=config({"reference": "average", "decay": 0.5}), max_steps=4))
    run(made)
    average = None
    for pool, scores, _, model in seen:  # 8 x 2 rows of each step are new to the run
        now = {name: value.clone() for name, value in model.state_dict().items()}
        average = now if average is None else {k: 0.5 * average[k] + 0.5 * now[k] for k in now}
        other = copy.deepcopy(model)
        other.load_state_dict(average)
        expected = twin(mixture(), pool.ids.tolist(), model, other)
        torch.testing.assert_close(scores.features[:, 0].float(), expected, rtol=1e-3, atol=2e-5)
    assert float(seen[-1][1].features.abs().max()) > 1e-3


def test_each_rows_reference_loss_is_computed_once(tmp_path, reference):
    made, fresh = counted(trainer(tmp_path, coreset=config(reference), train_dataset=mixture(32), max_steps=6))
    run(made)
    assert fresh == [16, 16, 0, 0, 0, 0]


def test_the_average_is_asked_again_after_so_many_steps(tmp_path):
    options = {"reference": "average", "decay": 0.9, "refresh": 2}
    made, fresh = counted(trainer(tmp_path, coreset=config(options), train_dataset=mixture(16), max_steps=4))
    run(made)
    assert fresh == [16, 0, 16, 0]


@pytest.mark.parametrize("case", ["path", "average"])
def test_resumed_is_uninterrupted(tmp_path, reference, case):
    options = {"reference": reference} if case == "path" else {"reference": "average", "decay": 0.9, "refresh": 3}
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4, "train_dataset": mixture(48)}
    whole, seen = watched(trainer(tmp_path, small_model(dropout=0.1), config(options), **settings))
    run(whole)
    shutil.rmtree(tmp_path / "checkpoint-8")
    again, seen_again = watched(trainer(tmp_path, small_model(dropout=0.1), config(options), **settings))
    run(again, resume_from_checkpoint=True)
    assert same(weights(whole), weights(again))
    for before, after in zip(seen[4:], seen_again, strict=True):
        assert torch.equal(before[1].features, after[1].features)


def test_another_reference_under_the_same_path_is_refused(tmp_path):
    other_model(9).save_pretrained(tmp_path / "other")
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    coreset = config(str(tmp_path / "other"))
    run(trainer(tmp_path / "run", coreset=coreset, **settings))
    other_model(10).save_pretrained(tmp_path / "other")
    shutil.rmtree(tmp_path / "run" / "checkpoint-4")
    with pytest.raises(CheckpointError, match="holds losses by a reference with weights"):
        run(trainer(tmp_path / "run", coreset=coreset, **settings), resume_from_checkpoint=True)


def test_what_a_run_lacks_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"needs a reference: give scorer_options.reference"):
        trainer(tmp_path / "a", coreset=config({}))
    with pytest.raises(ConfigError, match=r"model's folder or hub id\. Cannot load"):
        run(trainer(tmp_path / "b", coreset=config(str(tmp_path / "nothing"))))
    tiny_model(vocab_size=50).save_pretrained(tmp_path / "narrow")
    with pytest.raises(ConfigError, match=r"should score the tokens of the trained model, .* Found 50"):
        run(trainer(tmp_path / "c", coreset=config(str(tmp_path / "narrow"))))
    with pytest.raises(ConfigError, match="without any"):
        run(trainer(tmp_path / "d", small_model(lora=False), config("base")))
    assert not list(tmp_path.glob("?/*.json*"))


@pytest.mark.parametrize("way", ["window", "first_blocks", "two_phase", "remembered", "every"])
def test_what_stands_for_features_does_not_stand_for_excess(way):
    with pytest.raises(ConfigError, match="without a reference"):
        CoresetConfig(scorer="excess_loss", scorer_options={"reference": "base"}, selector="importance", scoring=way)

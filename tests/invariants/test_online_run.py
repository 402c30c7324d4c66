"""Objectives that change in a run, by a schedule or by an online method: what each step claims, and exact resume."""

import json
import shutil

import pytest
import torch

from corebatch.errors import ConfigError, LossMismatchError
from corebatch.sampling.online import make_online
from corebatch.trainer import CoresetConfig
from corebatch.trainer.online import held_out_losses
from training import SOURCES, held_out, mixture, run, same, tiny_model, trainer, weights

HELD_OUT = held_out(32)
SCORED = {"scorer": "last_layer", "scoring": "full"}
ONLINE = {
    "odm": ({"online": "odm"}, {}),
    "doremi": ({"online": "doremi", "reference_losses": dict.fromkeys(SOURCES, 3.0)}, {}),
    "skill_it": ({"online": "skill_it", "graph": {"rare": {"rare": 1}, "logic": {"rare": 1}}, "period": 2}, {}),
    "skill_it_trained": (
        {"online": "skill_it", "graph": "identity", "period": 3, "losses": "training", "targets": ["rare"]},
        {},
    ),
    "aioli": ({"online": "aioli", "period": 6, "sweeps": 1, "sweep_steps": 1}, {}),
    "doge": ({"online": "doge", "eta": 0.5}, SCORED),
}
SCHEDULE = [
    {"until": 0.25, "is": "tokens"},
    {"until": 0.75, "is": "sources", "ramp": True},
    {"is": {"rare": 0.5, "logic": 0.5}},
]


def untimed(folder):
    lines = [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("ms", "memory_mb", "mfu", "seconds")} for line in lines]


def made(folder, objective, coreset=(), **settings):
    config = CoresetConfig(objective=objective, **dict(coreset))
    return trainer(folder, tiny_model(dropout=0.1), config, extra={"eval_dataset": HELD_OUT}, **settings)


def watched(made_trainer):
    """The trainer, and of each step what its pool's rows count and their sources."""
    seen, choose = [], made_trainer._choose

    def take(pool, plan, scores):
        seen.append((pool.sources.clone(), None if pool.factors is None else pool.factors.clone()))
        return choose(pool, plan, scores)

    made_trainer._choose = take
    return made_trainer, seen


def trained_tokens(dataset):
    counts = {}
    for row in dataset:
        counts[row["source"]] = counts.get(row["source"], 0) + sum(label != -100 for label in row["labels"][1:])
    return counts


@pytest.mark.parametrize("pool_factor", [1, 2])
def test_each_step_claims_what_its_schedule_says(tmp_path, pool_factor):
    model, seen = watched(made(tmp_path, SCHEDULE, {"pool_factor": pool_factor}, max_steps=8))
    run(model)
    tokens = trained_tokens(mixture())
    names, total = model._run.method.source_names, sum(tokens.values())
    equal = {name: total / count / 4 for name, count in tokens.items()}
    halves = {name: total / count / 2 * (name in ("rare", "logic")) for name, count in tokens.items()}
    assert len(seen) == 8
    for step, (sources, factors) in enumerate(seen):
        share = min(max((step / 8 - 0.25) / 0.5, 0), 1)
        weight = halves if step >= 6 else {name: 1 - share + share * equal[name] for name in tokens}
        expected = torch.tensor([weight[names[source]] for source in sources.tolist()], dtype=torch.float64)
        found = torch.ones_like(expected) if factors is None else factors
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", ["schedule", *ONLINE])
def test_resumed_is_uninterrupted(tmp_path, case):
    objective, coreset = (SCHEDULE, {}) if case == "schedule" else ONLINE[case]
    settings = {"max_steps": 8, "save_strategy": "steps", "save_steps": 4}
    whole = run(made(tmp_path / "whole", objective, coreset, **settings))
    resumed = made(tmp_path / "whole", objective, coreset, **settings)
    shutil.rmtree(tmp_path / "whole" / "checkpoint-8")
    lines = untimed(tmp_path / "whole")
    run(resumed, resume_from_checkpoint=True)  # in the middle of a ramp, of a period, of a sweep
    assert same(weights(whole), weights(resumed))
    assert untimed(tmp_path / "whole") == lines
    if case != "schedule":
        assert all(sum(line["shares"].values()) == pytest.approx(1, abs=1e-5) for line in lines)
        assert lines[-1]["shares"] != lines[0]["shares"]


@pytest.mark.parametrize("case", ["odm", "doremi", "skill_it_trained"])
@pytest.mark.parametrize("pool_factor", [1, 2])
def test_shares_follow_the_losses_of_the_record(tmp_path, case, pool_factor):
    objective, _ = ONLINE[case]
    model = run(made(tmp_path, objective, {"pool_factor": pool_factor}, max_steps=9))
    lines, tokens = untimed(tmp_path), trained_tokens(mixture())
    method = make_online(objective["online"], {k: v for k, v in objective.items() if k != "online"})
    names = list(lines[0]["shares"])
    method.begin(names, torch.tensor([float(tokens[name]) for name in names]), model.coreset.seed)
    for step, line in enumerate(lines, start=1):
        assert list(line["shares"].values()) == pytest.approx(method.shares.tolist(), rel=1e-5)
        losses = [line["loss_by_source"].get(name, float("nan")) for name in names]
        counts = [line["loss_tokens"].get(name, 0.0) for name in names]
        method.observe(torch.tensor(losses, dtype=torch.float64), torch.tensor(counts), step)
    logged = [entry for entry in model.state.log_history if "share/rare" in entry]
    assert [entry["share/rare"] for entry in logged] == pytest.approx([line["shares"]["rare"] for line in lines])
    if case == "doremi":
        assert list(lines[-1]["average_shares"].values()) == pytest.approx(method.average.tolist(), rel=1e-2)


@pytest.mark.parametrize("case", ONLINE)
def test_a_step_claims_its_shares(tmp_path, case):
    objective, coreset = ONLINE[case]
    model, seen = watched(made(tmp_path, objective, coreset, max_steps=5))
    run(model)
    tokens = trained_tokens(mixture())
    names, total = model._run.method.source_names, sum(tokens.values())
    for (sources, factors), line in zip(seen, untimed(tmp_path), strict=True):
        weight = {name: line["shares"][name] * total / count for name, count in tokens.items()}
        expected = [weight[names[source]] for source in sources.tolist()]
        assert factors.tolist() == pytest.approx(expected, rel=1e-5)


def test_doge_follows_the_gradients_of_the_pool_as_they_are(tmp_path):
    """Not times what the objective has each row count."""
    objective, coreset = ONLINE["doge"]
    model, seen = made(tmp_path, objective, coreset, max_steps=4), []
    choose = model._choose

    def take(pool, plan, scores):
        seen.append((pool, scores.features.clone()))
        return choose(pool, plan, scores)

    model._choose = take
    run(model)
    lines, names = untimed(tmp_path), model._run.method.source_names
    method = make_online("doge", {"eta": 0.5})
    order = list(lines[0]["shares"])
    method.begin(order, torch.ones(len(order)))
    for (pool, features), line in zip(seen, lines, strict=True):
        assert list(line["shares"].values()) == pytest.approx(method.shares.tolist(), rel=1e-5)
        parts = [[i for i, s in enumerate(pool.sources.tolist()) if names[s] == name] for name in order]
        method.observe_gradients(
            torch.stack([features[rows].sum(0) for rows in parts]),
            torch.stack([features[rows].square().sum() for rows in parts]),
            torch.tensor([len(rows) for rows in parts]),
            torch.stack([pool.tokens[rows].sum() for rows in parts]),
        )
    assert lines[-1]["shares"] != lines[0]["shares"]
    assert list(lines[-1]["average_shares"]) == order


def test_measuring_held_out_losses_leaves_training_as_it_is(tmp_path):
    """With equal shares throughout it is the objective `sources`, dropout included; and nobody hears of it."""
    objective = {"online": "skill_it", "graph": "identity", "period": 1, "floor": 1.0}
    one = run(made(tmp_path / "one", objective, max_steps=5))
    other = run(made(tmp_path / "other", "sources", max_steps=5))
    first, second = weights(one), weights(other)
    assert max(float((first[key] - second[key]).abs().max()) for key in first) < 1e-6
    assert not any(key.startswith("eval") for entry in one.state.log_history for key in entry)


def test_held_out_losses_are_means_over_tokens(tmp_path):
    model = made(tmp_path, {"online": "skill_it", "graph": "identity", "period": 1}, max_steps=1)
    run(model)
    found = held_out_losses(model, model._run.step.claims.counts.names, model._run.online)
    names = model._run.method.source_names
    inner = model.model.eval()
    for source, (loss, tokens) in found.items():
        expected, count = 0.0, 0
        for row in HELD_OUT[names[source]]:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["labels"]])
            trained = int((labels[:, 1:] != -100).sum())
            with torch.no_grad():
                expected += float(inner(input_ids=ids, labels=labels).loss) * trained
            count += trained
        assert tokens == count
        assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "sets", "said"),
    [
        (ONLINE["aioli"][0], None, "follows held-out losses.*Found none for algebra, geometry, logic, rare"),
        (ONLINE["aioli"][0], {"rare": HELD_OUT["rare"]}, "Found none for algebra, geometry, logic"),
        (ONLINE["skill_it"][0], mixture(8), "Found none for algebra"),
        ({"online": "doremi", "reference_losses": {"rare": 1.0}}, None, "reference_losses should have every source"),
        ({"online": "skill_it", "graph": {"rar": {"rare": 1}}}, HELD_OUT, "graph should name sources"),
        ({"online": "aioli", "period": 10}, HELD_OUT, "should leave some of a round. Found period 10"),
    ],
)
def test_what_a_method_lacks_is_said_before_training(tmp_path, objective, sets, said):
    model = trainer(tmp_path, coreset=CoresetConfig(objective=objective), extra={"eval_dataset": sets})
    before = weights(model)
    with pytest.raises(ConfigError, match=said):
        run(model)
    assert same(before, weights(model))


@pytest.mark.parametrize(
    ("objective", "coreset", "said"),
    [
        (ONLINE["doge"][0], {}, "set pool_factor above 1, scorer to last_layer or zeroth_order"),
        (ONLINE["doge"][0], {**SCORED, "pool_factor": 1}, "Found pool_factor 1"),
        (ONLINE["doge"][0], {"scorer": "representation", "scoring": "full"}, "scorer representation"),
        (ONLINE["odm"][0], {"loss_by_source": False}, "follows the training loss .* loss_by_source false"),
        ("odm", {}, r"Found 'odm'\. Did you mean {online: odm}"),
        ({"online": "odn"}, {}, "Found 'odn'. Did you mean 'odm'"),
        ({"online": "odm", "alfa": 0.5}, {}, "Found 'alfa'. Did you mean 'alpha'"),
        ({"online": "doremi"}, {}, "needs reference_losses"),
        ({"online": ["odm"]}, {}, "should be one of"),
        ([{"until": 0.5, "is": "tokens"}, {"is": {"online": "odm"}}], {}, "part 2.*online"),
    ],
)
def test_bad_settings_are_refused_when_the_config_is_made(objective, coreset, said):
    with pytest.raises(ConfigError, match=said):
        CoresetConfig(objective=objective, **coreset)


def test_a_loss_that_is_not_known_by_source_ends_the_run(tmp_path, monkeypatch):
    model = made(tmp_path, {"online": "odm"}, max_steps=3)
    monkeypatch.setattr("corebatch.batch.trained_losses.TrainedLosses.settle", lambda self, numbers: None)
    with pytest.raises(LossMismatchError, match=r"online odm follows the training loss .* At step 1"):
        run(model)


def test_what_is_claimed_is_said_in_words_and_kept_in_the_record(tmp_path):
    run(made(tmp_path, {"online": "odm", "alpha": 0.5}, max_steps=2))
    record = json.loads((tmp_path / "corebatch.json").read_text())
    assert record["coreset"]["objective"] == {"online": "odm", "alpha": 0.5}
    assert record["claimed"] == "a mean over 4 sources with shares that odm changes"

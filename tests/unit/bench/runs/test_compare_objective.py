"""An objective in a comparison: which arms train for it, by which mean they are judged, what the tables say of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compare_runs import change, make_lines, make_order, make_plan, write_comparison

from corebatch.bench.runs import Comparison, markdown, read_comparison
from corebatch.bench.runs.arms import Arm, make_arms
from corebatch.bench.runs.comparison import MEANS
from corebatch.bench.runs.from_config import Parts, loss_values
from corebatch.bench.runs.held_out_means import kept_and_target, mean_of, shares_of
from corebatch.bench.runs.jobs import with_every_source
from corebatch.bench.runs.settings import CompareSettings
from corebatch.bench.runs.statistics import losses, metrics
from corebatch.bench.runs.tables import tests as sheets_of_tests
from corebatch.errors import ConfigError
from corebatch.evaluation import HeldoutLoss
from corebatch.evaluation.loss import LossMeans
from corebatch.objective import make_objective
from corebatch.trainer import CoresetConfig

CORESET, SMALL, LARGE = (f"{name}@wall_clock" for name in ("coreset", "plain_small", "plain_large"))
TRAINING = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}


def arms_of(block: dict[str, Any], *wanted: str, extra: Any = None, training: Any = None) -> dict[str, Arm]:
    config = CoresetConfig.from_dict(block)
    made = make_arms(wanted, extra or {}, config, block, TRAINING if training is None else training)
    return {arm.method.name: arm for arm in made}


# ---- arms ------------------------------------------------------------------------------------------------------------


def test_arms_get_the_objective_where_they_can_have_it() -> None:
    block = {"pool_factor": 4, "objective": "sources"}
    wanted = ("plain_small", "plain_large", "plain_weighted", "plain_sources", "random", "tokens_importance", "colm")
    arms = arms_of(block, *wanted)
    found = {name: (arm.coreset.objective, arm.coreset.pool_factor) for name, arm in arms.items()}
    assert found == {
        "coreset": ("sources", 4),
        "plain_small": ("tokens", 1),
        "plain_large": ("tokens", 1),
        "plain_weighted": ("sources", 1),
        "plain_sources": ("drawn", 1),
        "random": ("sources", 4),
        "tokens_importance": ("sources", 4),
        "colm": ("examples", 4),
    }
    assert all(arm.method.baseline for name, arm in arms.items() if name not in ("coreset", "colm"))
    assert arms["plain_weighted"].rows_drawn == arms["plain_small"].rows_drawn == 8
    assert not arms["plain_small"].coreset.takes_part
    assert arms["colm"].objective == "the mean over examples of each one's mean, small sources kept"
    assert arms["plain_small"].objective == "the mean over trained tokens"
    assert arms["plain_weighted"].objective == arms["coreset"].objective
    assert "sources" in arms["coreset"].objective


def test_rows_that_are_drawn_by_shares_are_so_for_all_but_the_plain_trainer_and_the_published_recipe() -> None:
    shares = {"shares": {"gsm8k": 0.5}}
    block = {"pool_factor": 2, "objective": {"gsm8k": 0.5}, "sampling": shares}
    arms = arms_of(block, "plain_small", "plain_weighted", "plain_sources", "random", "colm")
    drawn = {name: arm.coreset.to_dict()["sampling"] for name, arm in arms.items()}
    assert drawn == {
        "coreset": shares,
        "plain_small": None,
        "plain_weighted": shares,
        "plain_sources": {"temperature": 0.0},
        "random": shares,
        "colm": None,
    }


def test_an_extra_arm_may_have_an_objective_of_its_own() -> None:
    block = {"pool_factor": 2, "objective": "sources"}
    extra = {
        "mine": {"coreset": {"objective": "examples"}},
        "theirs": {"coreset": {"recipe": "colm"}},
        "same": {"coreset": {"recipe": "following"}},
        "both": {"coreset": {"pool_factor": 1, "sampling": {"temperature": 0.0}}},
    }
    arms = arms_of(block, extra=extra)
    assert [arms[name].coreset.objective for name in extra] == ["examples", "examples", "sources", "sources"]
    assert arms["both"].rows_drawn == arms["both"].rows_trained == 8


@pytest.mark.parametrize("shares", [None, {"logic": 0.2}, {"kept": 0.1}])
def test_an_arm_that_replays_otherwise_claims_and_draws_by_its_own_replay(shares: Any) -> None:
    block: dict[str, Any] = {"pool_factor": 4, "replay": {"kept": 0.1}, "weight_column": "weight"}
    block |= {} if shares is None else {"sampling": {"shares": {**shares, "kept": 0.1}}}
    arms = arms_of(
        block, extra={name: {"coreset": {"replay": of}} for name, of in (("more", {"kept": 0.5}), ("no", None))}
    )
    left = {name: share for name, share in (shares or {}).items() if name != "kept"}
    assert (arms["more"].coreset.objective, arms["no"].coreset.objective) == ({"kept": 0.5}, "tokens")
    assert arms["more"].coreset.sampling.plain() == {"shares": {"kept": 0.5, **left}}
    assert (arms["no"].coreset.sampling is None) == (not left)
    assert all(arm.coreset.weight_column == "weight" for arm in arms.values())
    alone = arms_of({**block, "objective": "sources"}, extra={"more": {"coreset": {"replay": {"kept": 0.5}}}})
    assert alone["more"].coreset.objective == "sources"  # what the config says of itself stands


def test_the_loss_of_older_configs_is_an_objective() -> None:
    arms = arms_of({"pool_factor": 2, "loss": "example_mean"}, "random", "plain_small", "plain_weighted")
    assert [arms[name].coreset.objective for name in ("coreset", "random", "plain_small", "plain_weighted")] == [
        "examples",
        "examples",
        "tokens",
        "examples",
    ]


@pytest.mark.parametrize("name", ["plain_weighted", "plain_sources"])
def test_each_plain_arm_has_a_twin_that_sorts_unless_there_is_nothing_to_sort(name: str) -> None:
    block = {"pool_factor": 4, "objective": "sources"}
    twin = arms_of(block, f"{name}_sorted")[f"{name}_sorted"]
    plain = arms_of(block, name)[name]
    assert (twin.coreset.cut.by, plain.coreset.cut.by) == ("positions", "plain")
    assert twin.objective == plain.objective
    alone = arms_of(block, f"{name}_sorted", training={"per_device_train_batch_size": 8})
    assert f"{name}_sorted" not in alone
    assert "sorted it is the same" in alone[name].method.title


# ---- means -----------------------------------------------------------------------------------------------------------

TRAINED = {"a": 600, "b": 300, "c": 100}


@pytest.mark.parametrize(
    ("objective", "mean", "shares"),
    [
        ("tokens", "token", None),
        ("drawn", "token", None),
        ("examples", "example", None),
        ("sources", "source", None),
        ({"a": 1, "b": 3, "c": 0}, "claimed", {"a": 0.25, "b": 0.75}),
        ({"c": 0.1}, "claimed", {"a": 0.6, "b": 0.3, "c": 0.1}),
        ({"temperature": 0.5}, "claimed", None),
        ([{"until": 0.5, "is": {"a": 0.9}}, {"is": "sources"}], "source", None),
        ([{"until": 0.5, "is": "tokens"}, {"is": {"b": 1.0}}], "claimed", {"b": 1.0}),
    ],
)
def test_the_mean_that_an_objective_is_about(objective: Any, mean: str, shares: Any) -> None:
    made = make_objective(objective)
    assert mean_of(made) == mean
    found = shares_of(made, TRAINED, ["a", "b", "c"])
    assert set(found) == ({"claimed"} if mean == "claimed" else set())
    if shares is not None:
        assert found["claimed"] == pytest.approx(shares)
    if objective == {"temperature": 0.5}:
        roots = [count**0.5 for count in TRAINED.values()]
        assert list(found["claimed"].values()) == pytest.approx([root / sum(roots) for root in roots])


def test_shares_are_of_the_sources_that_are_held_out() -> None:
    made = make_objective({"a": 0.5, "b": 0.3, "c": 0.2})
    assert shares_of(made, TRAINED, ["b", "c", "d"])["claimed"] == pytest.approx({"b": 0.6, "c": 0.4})
    with pytest.raises(ConfigError, match=r"eval_datasets.*a, b, c.*Found d"):
        shares_of(made, TRAINED, ["d"])
    with pytest.raises(ConfigError, match="'e'"):
        shares_of(make_objective({"e": 0.5}), TRAINED, ["a"])


def test_what_is_to_be_kept_has_a_mean_of_its_own_beside_the_rest() -> None:
    assert kept_and_target((), ["a", "b"]) == {}
    found = kept_and_target(("b", "b"), ["a", "c", "b", "a"])
    assert found == {"kept": {"b": 1.0}, "target": {"a": 0.5, "c": 0.5}}
    with pytest.raises(ConfigError, match=r"compare.kept should name sources.*Found 'alpha'"):
        kept_and_target(("alpha",), ["a", "b"])
    with pytest.raises(ConfigError, match="leave a source to train for"):
        kept_and_target(("a", "b"), ["a", "b"])


@pytest.mark.parametrize("kept, expected", [((), "old"), (("b",), "b")], ids=["replayed", "named"])
def test_what_is_replayed_is_to_be_kept_unless_it_is_said_otherwise(kept: tuple[str, ...], expected: str) -> None:
    block = {"pool_factor": 2, "replay": {"old": 0.1}}
    settings: Any = SimpleNamespace(coreset=CoresetConfig.from_dict(block))
    parts = Parts(settings=settings, own=CompareSettings(kept=kept), arms=(), metric="claimed")
    train: Any = SimpleNamespace(counts={name: SimpleNamespace(trained_tokens=10) for name in ("a", "b", "old")})
    shares = parts.shares(train, {"source": ["a", "b", "old"]})
    assert shares["claimed"] == pytest.approx({"a": 0.45, "b": 0.45, "old": 0.1})
    assert list(shares["kept"]) == [expected]
    assert len(shares["target"]) == 2
    arms = arms_of(block, "random", "plain_small", "plain_weighted", "colm")
    replays = {name: arm.coreset.replay for name, arm in arms.items()}
    having = {name for name, replay in replays.items() if replay == {"old": 0.1}}
    assert having == {"coreset", "random", "plain_weighted"}
    assert replays["plain_small"] is replays["colm"] is None


def test_a_mean_with_shares_is_one_of_the_sources_that_have_rows() -> None:
    means = {
        name: LossMeans(token_mean=loss, example_mean=loss, tokens=1, examples=1)
        for name, loss in (("a", 1.0), ("b", 3.0))
    }
    found = HeldoutLoss(overall=means["a"], sources=means, skipped=0)
    shares = {"claimed": {"a": 0.1, "b": 0.3, "c": 0.6}, "kept": {"c": 1.0}}
    line = loss_values(found, shares)
    assert line["claimed"] == pytest.approx(0.25 * 1 + 0.75 * 3)
    assert "kept" not in line
    assert list(line["sources"]) == ["a", "b"]


def test_rehearsals_have_rows_of_every_source_if_they_are_enough() -> None:
    sources = ["a"] * 50 + ["b", "c"]
    order = [*range(50), 51, 50]
    assert with_every_source(range(50), ["a"] * 50, 8) == list(range(8))
    assert with_every_source(order, sources, 8) == [0, 1, 2, 3, 4, 5, 51, 50]
    assert with_every_source(order, sources, 2) == [0, 1]


# ---- what is told ----------------------------------------------------------------------------------------------------


def told(folder: Path, **plan: Any) -> Comparison:
    made = {**make_plan(), **plan}
    lines = make_lines(made)
    for arm in made["arms"]:
        arm["objective"] = "the mean over 3 sources" if arm["method"] == "coreset" else "the mean over trained tokens"
    for line in lines if plan.get("shares") else ():
        for found in (line["final"], *line["curve"]):
            found |= {mean: found["token"] - 0.5 for mean in plan["shares"]}
    return read_comparison(write_comparison(folder, made, lines))


def test_the_reference_is_judged_by_the_mean_of_its_objective_first(tmp_path: Path) -> None:
    comparison = told(tmp_path, metric="source")
    assert [metric.name for metric in metrics(comparison)] == ["source", "token", "example", "sums"]
    first, *others = sheets_of_tests(comparison)
    assert "source mean, which its objective is about" in first.title
    assert not any("objective" in sheet.title for sheet in others)
    text = markdown(comparison)
    assert "trains for the mean over 3 sources, and is judged by the source mean; the other means" in text
    assert "the mean over trained tokens" in text
    assert "last loss (source mean" in text


def test_a_mean_with_shares_of_its_own_is_told_with_them(tmp_path: Path) -> None:
    shares = {"claimed": {"algebra": 0.9, "gsm": 0.1}, "kept": {"tiny": 1.0}, "target": {"algebra": 0.5, "gsm": 0.5}}
    comparison = told(tmp_path, metric="claimed", shares=shares)
    assert [metric.name for metric in losses(comparison)] == ["claimed", *MEANS, "kept", "target"]
    final = comparison.of(CORESET)[1].final
    assert final is not None
    assert final.losses["claimed"] == final.losses["kept"] == pytest.approx(final.losses["token"] - 0.5)
    text = markdown(comparison)
    for said in ("claimed mean", "kept mean", "target mean", "the objective: algebra 90 % and gsm 10 %."):
        assert said in text, said


def test_comparisons_of_before_say_nothing_of_objectives(tmp_path: Path) -> None:
    comparison = read_comparison(write_comparison(tmp_path))
    assert comparison.plan.means == MEANS
    assert "objective" not in markdown(comparison)


def test_arms_that_draw_sources_otherwise_may_draw_other_rows(tmp_path: Path) -> None:
    plan = make_plan(arms=[CORESET, SMALL, LARGE])
    arms = {arm["arm"]: arm for arm in plan["arms"]}
    arms[SMALL]["coreset"]["sampling"] = {"temperature": 0.0}
    lines = make_lines(plan)
    for seed in (1, 2, 3, 4, 5):
        lines = change(lines, SMALL, seed, lambda line: line.update(order=make_order(77, line["rows_drawn"])))
    assert read_comparison(write_comparison(tmp_path / "other", plan, lines)).marks == ()
    arms[SMALL]["coreset"] = {}
    marks = read_comparison(write_comparison(tmp_path / "same", plan, lines)).marks
    assert {(mark.arm, mark.kind) for mark in marks} == {(SMALL, "order")}

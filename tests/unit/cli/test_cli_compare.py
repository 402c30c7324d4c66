"""`corebatch compare` on a tiny model: it runs, its table is honest, and a killed one goes on."""

from __future__ import annotations

import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from corebatch.bench.advise.advice import Advice, advice_folder, write_advice
from corebatch.bench.advise.finding import Finding
from corebatch.bench.runs import jobs, read_comparison
from corebatch.bench.runs.arms import DEFAULT_ARMS, SUBSET_WEIGHT
from corebatch.bench.runs.folder import alone
from corebatch.bench.runs.from_config import Parts
from corebatch.bench.runs.jobs import Workplace
from corebatch.bench.runs.subsets import KEPT, choose_rows
from corebatch.bench.runs.training_run import CountingTrainer
from corebatch.cli import compare as command
from corebatch.errors import ConfigError
from in_process import InProcess

ARMS = list(DEFAULT_ARMS)


@pytest.fixture
def values(settings: dict[str, Any], data_file: Path, tmp_path: Path) -> dict[str, Any]:
    for key in ("save_steps", "logging_steps", "seed"):
        del settings[key]
    settings["coreset"] = {**settings["coreset"], "scoring": "full"}
    own = {
        "arms": ARMS,
        "extra_arms": {"pivotal": {"coreset": {"selector": "pivotal"}, "title": "pivotal"}},
        "seeds": 2,
        "tune": {"factors": [1.0, 2.0], "adam_beta2": [0.999], "shortest": 0.5},
        "evaluations": 2,
        "curve_rows": 8,
        "timing_pools": 2,
        "timing_rounds": 1,
        "threads": 1,
        "tasks": [f"exact:{held_out(tmp_path)},max_new_tokens=1"],
    }
    return {
        **settings,
        "gradient_accumulation_steps": 1,
        "max_steps": 6,
        "eval_datasets": [{"path": str(data_file)}],
        "compare": own,
        "output_dir": str(tmp_path / "comparison"),
    }


def held_out(folder: Path) -> Path:
    path = folder / "items.jsonl"
    items = [{"prompt": f"{source} 1?", "answer": "7", "source": source} for source in ("sums", "products")]
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


class Here(InProcess):
    """Runs the jobs in this process."""

    def __init__(self, parts: Any) -> None:
        torch.set_num_threads(1)
        super().__init__(parts)

    @contextmanager
    def one(self) -> Iterator[Callable[[Any], Any]]:
        yield self.place.run


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, one_thread: None) -> Callable[[dict[str, Any]], Any]:
    monkeypatch.setattr(command, "Processes", Here)
    monkeypatch.setattr(jobs, "FLOPS_POOLS", 1)
    # A tiny model's steps take what the machine makes of them; budgets should not depend on that in a test.
    price = {"plain_large_sorted": 2.0, "colm": 1.6, "coreset": 1.25}
    monkeypatch.setattr(jobs, "time_arm", lambda arm, *_: {"seconds": [price.get(arm.method.name, 1.0)] * 2})

    def run(values: dict[str, Any]) -> Any:
        return read_comparison(command.compare(values, "config.yaml", Console(quiet=True)))

    return run


def test_what_advice_expected_stands_beside_what_was_measured(compare: Any, values: dict[str, Any]) -> None:
    own = {**values["compare"], "arms": ["plain_small"], "seeds": 1, "tune": {"enabled": False}, "tasks": []}
    values = {**values, "compare": {**own, "extra_arms": {"mada": {"training": {"optim": "mada"}}}}}

    def advise(factor: float) -> None:
        arms = {"all rows": {"coreset.pool_factor": 1}, "another optimizer": {"optim": "mada"}}
        found = [Finding(lever=lever, arm=arm, factor=factor) for lever, arm in arms.items()]
        write_advice(Advice(config=values, findings=found, about={}), advice_folder(values["output_dir"]))

    advise(0.9)
    found = compare(values)
    promise, other = found.plan.promises
    assert other.arm == "mada@wall_clock"
    assert (promise.arm, promise.against, promise.factor) == ("plain_small@wall_clock", "coreset@wall_clock", 0.9)
    text = (found.folder / "comparison.md").read_text().replace("\\", "")
    row = "| all rows | plain_small@wall_clock | coreset@wall_clock | seconds a step | 0.90 | 0.80 | 0.89 |"
    assert row in text  # 1.0 / 1.25 seconds
    advise(0.8)
    assert compare(values).plan.promises == (promise, other)  # it is not changed once there are runs


@pytest.mark.parametrize("enabled", [True, False])
def test_a_beta_is_tuned_for_no_optimizer_that_has_none(values: dict[str, Any], enabled: bool) -> None:
    own = {"extra_arms": {"lars": {"training": {"optim": "lars"}}}, "tune": {"adam_beta2": [0.9], "enabled": enabled}}
    if not enabled:
        assert Parts.of({**values, "compare": own}, "config.yaml")
        return
    with pytest.raises(ConfigError, match=r"'lars' has none\. Found it in the arm lars@wall_clock"):
        Parts.of({**values, "compare": own}, "config.yaml")


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


@pytest.mark.slow
def test_the_table_is_honest(compare: Any, values: dict[str, Any]) -> None:
    found = compare(values)
    folder = Path(values["output_dir"])
    assert found.marks == ()
    plan = json.loads((folder / "plan.json").read_text())
    arms = {arm["arm"]: arm for arm in plan["arms"]}
    runs = lines(folder, "runs.jsonl")
    assert {(run["arm"], run["seed"]) for run in runs} == {(arm, seed) for arm in arms for seed in (1, 2)}
    assert len(arms) == len(ARMS) + 2
    for run in runs:
        arm = arms[run["arm"]]
        assert run["status"] == "ok"
        assert run["steps"] == arm["steps"]
        assert run["rows_drawn"] <= arm["steps"] * arm["rows_drawn_per_step"]
        assert run["rows_trained"] <= arm["steps"] * arm["rows_trained_per_step"]
        assert run["tokens_trained"] <= run["tokens_drawn"]
        spent, allowed = {
            "wall_clock": (run["seconds"], plan["seconds"]),
            "flops": (run["flops"], plan["flops"]),
            "steps": (run["steps"], plan["steps"]),
        }[run["budget"]]
        assert spent <= allowed * (1 + 1e-9)
        # one step more would not have been paid for
        each = {"wall_clock": arm["seconds_per_step"][1], "flops": arm["flops_per_step"][1], "steps": 1}[run["budget"]]
        assert spent + each * (1 + 1e-6) > allowed or run["method"] == "coreset"
        assert run["curve"][-1]["step"] == run["steps"]
        assert 0 <= run["final"]["tasks"]["items"] <= 1
        by_source = run["final"]["task_sources"]["items"]
        assert run["final"]["tasks"]["items, mean of sources"] == pytest.approx(statistics.mean(by_source.values()))
    assert arms["plain_large_sorted@wall_clock"]["steps"] == 3  # 6 x 1.25 / 2
    assert arms["plain_small@wall_clock"]["steps"] == 7
    assert arms["plain_small@steps"]["steps"] == 6
    plain = [run for run in runs if run["method"] in ("plain_small", "plain_large_sorted")]
    assert all(run["tokens_trained"] == run["tokens_drawn"] and run["tokens_scored"] == 0 for run in plain)
    assert all(run["tokens_scored"] > 0 for run in runs if run["method"] in ("coreset", "colm"))
    # the same large batches for all that draw as many, in one order for all arms of a seed
    by_seed = {seed: [run for run in runs if run["seed"] == seed] for seed in (1, 2)}
    for several in by_seed.values():
        longest = max((run["order"] for run in several), key=len)
        assert all(run["order"] == longest[: len(run["order"])] for run in several)
    text = (folder / "comparison.md").read_text()
    assert all(arm["title"] in text for arm in plan["arms"])
    assert (folder / "comparison.html").stat().st_size < 5 * 2**20


@pytest.mark.slow
def test_a_sorted_plain_arm_has_the_plain_ones_losses_for_fewer_flops(compare: Any, values: dict[str, Any]) -> None:
    sets = {"extra_arms": {}, "tune": {"enabled": False}, "tasks": [], "seeds": 1}
    values["compare"] |= sets | {"arms": ["plain_small@steps", "plain_sorted@steps", "plain_large_sorted@steps"]}
    values |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    found = compare(values)
    assert found.marks == ()
    by_arm = {run.arm: run for run in found.runs}
    plain, by_length, large = (
        by_arm[f"{name}@steps"] for name in ("plain_small", "plain_sorted", "plain_large_sorted")
    )
    assert (by_length.rows_drawn, by_length.order) == (plain.rows_drawn, plain.order)
    assert by_length.rows_trained == by_length.rows_drawn
    assert by_length.tokens_trained == by_length.tokens_drawn == plain.tokens_trained
    assert by_length.tokens_scored == 0
    assert by_length.final.losses == pytest.approx(plain.final.losses, rel=1e-5)
    assert by_length.flops < plain.flops
    assert large.rows_trained == large.rows_drawn == by_arm["coreset@wall_clock"].rows_drawn


@pytest.mark.slow
def test_arms_train_for_the_objective_and_are_judged_by_its_mean(compare: Any, values: dict[str, Any]) -> None:
    sets = {
        "extra_arms": {},
        "tune": {"factors": [1.0, 2.0], "shortest": 1.0},
        "tasks": [],
        "seeds": 1,
        "evaluations": 1,
    }
    values["compare"] |= sets | {"arms": ["plain_small", "plain_weighted", "plain_sources", "colm"], "kept": ["names"]}
    values["coreset"] = {"pool_factor": 2, "objective": {"sums": 0.75}}
    found = compare(values)
    folder = Path(values["output_dir"])
    assert found.marks == ()
    plan = json.loads((folder / "plan.json").read_text())
    told = {arm["method"]: arm["objective"] for arm in plan["arms"]}
    assert told["coreset"] == told["plain_weighted"] == "a mean over sources with the shares sums 0.75"
    assert told["plain_small"] == "the mean over trained tokens"
    assert told["plain_sources"] == "the mean over trained tokens of what is drawn"
    assert told["colm"] == "the mean over examples of each one's mean, small sources kept"
    assert json.loads((folder / "comparison.json").read_text())["objectives"]["coreset@wall_clock"] == told["coreset"]
    assert plan["metric"] == plan["tuning"]["metric"] == "claimed"
    shares = plan["shares"]["claimed"]
    assert shares["sums"] == pytest.approx(0.75)
    assert sum(shares.values()) == pytest.approx(1.0)
    tuned = {line["method"]: line for line in lines(folder, "tuning.jsonl")}
    assert all(line["claimed"] > 0 for line in tuned.values())
    for run in lines(folder, "runs.jsonl"):
        for losses in (run["final"], *run["curve"]):
            there = {name: share for name, share in shares.items() if name in losses["sources"]}
            by_hand = sum(share * losses["sources"][name] for name, share in there.items()) / sum(there.values())
            assert losses["claimed"] == pytest.approx(by_hand)
        assert run["final"]["kept"] == run["final"]["sources"]["names"]
        others = [loss for name, loss in run["final"]["sources"].items() if name != "names"]
        assert run["final"]["target"] == pytest.approx(sum(others) / len(others))
    drawn = {run.arm.partition("@")[0]: run for run in found.runs}
    assert drawn["plain_weighted"].order == drawn["plain_small"].order
    assert drawn["plain_weighted"].tokens_drawn == drawn["plain_small"].tokens_drawn  # rows that are counted are not
    assert drawn["plain_sources"].tokens_drawn != drawn["plain_small"].tokens_drawn
    assert drawn["plain_weighted"].final.losses != drawn["plain_small"].final.losses
    assert "is judged by the claimed mean" in (folder / "comparison.md").read_text()


@pytest.mark.slow
def test_an_arm_that_takes_more_than_its_budget_is_marked(
    compare: Any, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer that takes more rows than its arm may is seen by what is counted, not by what it says."""
    values["compare"] |= {"arms": ["plain_small"], "extra_arms": {}, "tune": {"enabled": False}, "tasks": []}
    honest = CountingTrainer.get_batch_samples

    def greedy(self: Any, iterator: Any, count: int, *args: Any) -> Any:
        batches, items = honest(self, iterator, count, *args)
        if self.coreset.pool_factor == 1 and self.args.seed == 2:
            more, _ = honest(self, iterator, count, *args)
            batches = [
                {key: torch_cat(one[key], other[key]) for key in one} for one, other in zip(batches, more, strict=False)
            ]
        return batches, items

    monkeypatch.setattr(CountingTrainer, "get_batch_samples", greedy)
    found = compare(values)
    marked = {(mark.arm, mark.seed) for mark in found.marks if mark.excludes}
    assert marked == {("plain_small@wall_clock", 2)}
    assert "allowed are" in (Path(values["output_dir"]) / "comparison.md").read_text()


def torch_cat(one: Any, other: Any) -> Any:
    width = max(one.shape[1], other.shape[1])
    return torch.cat([torch.nn.functional.pad(each, (0, width - each.shape[1])) for each in (one, other)])


@pytest.mark.slow
def test_a_run_that_fails_is_a_line_and_is_tried_again(
    compare: Any, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    values["compare"] |= {"arms": ["random"], "extra_arms": {}, "tune": {"enabled": False}, "tasks": []}
    honest = jobs.run_arm

    def broken(arm: Any, data: Any, schedule: Any, **kwargs: Any) -> Any:
        if arm.method.name == "random" and schedule.seed == 2:
            raise MemoryError("no memory left")
        return honest(arm, data, schedule, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(jobs, "run_arm", broken)
        found = compare(values)
    assert any("no memory left" in mark.text for mark in found.marks)
    assert "no memory left" in (Path(values["output_dir"]) / "comparison.md").read_text()
    before = lines(Path(values["output_dir"]), "runs.jsonl")
    found = compare(values)
    after = lines(Path(values["output_dir"]), "runs.jsonl")
    assert after[: len(before)] == before
    assert [(line["arm"], line["seed"], line["status"]) for line in after[len(before) :]] == [
        ("random@wall_clock", 2, "ok")
    ]
    assert not any(mark.excludes for mark in found.marks)
    values["compare"]["seeds"] = 3  # more seeds go on; anything else is another comparison
    assert len(compare(values).runs) == 6
    with pytest.raises(ConfigError, match=r"learning_rate: .5e-3. then, 0\.1 now"):
        compare({**values, "learning_rate": 0.1})


def test_a_batch_that_grows_has_the_rows_of_the_others(compare: Any, values: dict[str, Any]) -> None:
    ramp = {"ramp": {"most": 3, "until": 0.4}}
    values["compare"] |= {
        "arms": ["plain_sorted@steps", "random@steps", "steady@steps"], "seeds": 1, "tune": {"enabled": False},
        "extra_arms": {"steady": {"coreset": {"budget": "constant"}}}, "tasks": [],
    }  # fmt: skip
    values["coreset"] |= {"budget": ramp}
    found = compare(values)
    folder = Path(values["output_dir"])
    plan = {arm["method"]: arm["coreset"]["budget"] for arm in json.loads((folder / "plan.json").read_text())["arms"]}
    assert plan == {"coreset": ramp, "random": ramp, "plain_small": "constant", "steady": "constant"}
    runs = {run["method"]: run for run in lines(folder, "runs.jsonl")}
    grown, steady = runs["coreset"], runs["steady"]
    assert grown["updates"] == runs["random"]["updates"] < 6
    assert steady["updates"] == 6
    for key in ("steps", "rows_drawn", "tokens_drawn", "order"):
        assert grown[key] == steady[key]
    assert steady["rows_trained"] <= grown["rows_trained"]
    assert grown["flops"] == pytest.approx(steady["flops"], rel=0.05)
    assert grown["curve"][-1]["step"] == 6
    assert len(grown["curve"]) == 2
    assert [(mark.kind, mark.text, mark.excludes) for mark in found.marks if mark.arm.startswith("coreset")] == [
        ("updates", f"its batch grew: the rows of 6 steps in {grown['updates']} updates", False)
    ]


def test_a_config_that_trains_every_row_is_compared_with_arms_of_ones_own(compare: Any, values: dict[str, Any]) -> None:
    shares = {
        "sums": 0.2,
        "names": 0.2,
        "colours": 0.2,
        "rare": 0.4,
    }  # every source is named: each is among the rows that are timed
    values["compare"] |= {
        "arms": [], "seeds": 1, "tune": {"enabled": False}, "tasks": [],
        "extra_arms": {
            "drawn": {"coreset": {"sampling": {"shares": shares}}, "baseline": True},
            "chosen": {"coreset": {"pool_factor": 2, "scorer": "tokens", "selector": "importance"}},
        },
    }  # fmt: skip
    values["coreset"] = {"pool_factor": 1}
    found = compare(values)
    assert [run.arm for run in found.comparable] == ["coreset@wall_clock", "drawn@wall_clock", "chosen@wall_clock"]
    runs = {run["method"]: run for run in lines(Path(values["output_dir"]), "runs.jsonl")}
    assert runs["coreset"]["steps"] == 6
    assert runs["coreset"]["rows_drawn"] == runs["coreset"]["rows_trained"]
    assert runs["chosen"]["rows_drawn"] > 1.5 * runs["chosen"]["rows_trained"]


def test_bad_settings_are_errors_before_anything_runs(values: dict[str, Any], tmp_path: Path) -> None:
    console = Console(quiet=True)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"arms": ["plain_smal"]}, "Did you mean"),
        ({"arms": ["random@tokens"]}, "wall_clock, flops, steps"),
        ({"seeds": [0, 1]}, "tune.seed"),
        ({"seeds": []}, "seeds"),
        ({"tune": {"metric": "accuracy"}}, "token, example, source"),
        ({"tune": {"rate": 1}}, "Found 'rate'"),
        ({"extra_arms": {"random": {}}}, "names of their own"),
        ({"extra_arms": {"mine": {"coreset": {"selector": "best"}}}}, "mine"),
        ({"extra_arms": {"mine": {"coreset": {"objective": {"online": "aioli"}}}}}, "which no arm may follow.*mine"),
        ({"extra_arms": {"mine": {"training": {"learning_rate": 1e-3}}}}, "Found 'learning_rate'"),
        ({"evaluations": 0}, "evaluations"),
        ({"kept": ["name"]}, "Did you mean 'names'"),
        ({"tasks": ["exact:missing.jsonl"]}, "missing.jsonl"),
    ]
    for change, message in cases:
        with pytest.raises((ConfigError, ValueError), match=message):
            command.compare({**values, "compare": {**values["compare"], **change}}, "config.yaml", console)
    with pytest.raises(ConfigError, match="eval_datasets"):
        command.compare({k: v for k, v in values.items() if k != "eval_datasets"}, "config.yaml", console)
    for arms, extra in ((["plain_sorted"], True), (None, True), ([], False)):  # nothing that is chosen, or no other arm
        own = {"arms": arms, "extra_arms": values["compare"]["extra_arms"] if extra else {}}
        every_row = {**values, "coreset": {"pool_factor": 1}, "compare": {**values["compare"], **own}}
        with pytest.raises(ConfigError, match="pool_factor should be at least 2, or nothing is chosen"):
            command.compare(every_row, "config.yaml", console)
    name = next(iter(values["compare"]["extra_arms"]))
    own = {**values["compare"], "arms": [f"{name}@steps"]}
    parts = Parts.of({**values, "coreset": {"pool_factor": 1}, "compare": own}, "config.yaml")
    assert [arm.name for arm in parts.arms] == ["coreset@wall_clock", f"{name}@steps"]
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        command.compare({**values, "output_dir": str(full)}, "config.yaml", console)
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]


@pytest.mark.slow
def test_arms_may_follow_a_reference_and_a_target(
    compare: Any, values: dict[str, Any], data_file: Path, model_folder: Path
) -> None:
    excess = {"scorer": "excess_loss", "scorer_options": {"reference": str(model_folder)}, "selector": "hard"}
    greats = {"scorer": "last_layer", "selector": "greats", "target": {"every": 2, "rows": 4}}
    values["compare"] |= {"arms": ["plain_small"], "tune": {"enabled": False}, "tasks": [], "seeds": 1}
    values["compare"]["extra_arms"] = {"excess": {"coreset": excess}, "greats": {"coreset": greats}}
    compare(values | {"target_datasets": [str(data_file)]})
    runs = {run["arm"].partition("@")[0]: run for run in lines(Path(values["output_dir"]), "runs.jsonl")}
    assert {run["status"] for run in runs.values()} == {"ok"}
    for name in ("excess", "greats"):
        assert runs[name]["tokens_drawn"] == runs[name]["tokens_scored"] > runs[name]["tokens_trained"] > 0
    assert runs["plain_small"]["tokens_scored"] == 0


@pytest.mark.slow
def test_arms_of_subsets_pay_for_choosing_them(
    compare: Any, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subset is chosen once, in seconds that its arm then lacks; what was chosen is not chosen again."""
    chosen: list[str] = []

    def choose(arm: Any, *rest: Any) -> dict[str, Any]:
        chosen.append(arm.method.name)
        return {**choose_rows(arm, *rest), "seconds": {"scoring": 1.5, "choosing": 0.5}}

    monkeypatch.setattr(jobs, "choose_rows", choose)
    every_row = {"pool_factor": 1}
    filtered = {"subset": {"method": "difficulty", "keep": 0.5}, "coreset": every_row, "title": "the easy half"}
    weighed = {"subset": {"method": "balanced", "keep": 0.3}, "coreset": every_row}
    values["compare"] |= {"arms": ["plain_small", "filtered", "filtered@steps"], "tune": {"enabled": False}}
    values["compare"] |= {"extra_arms": {"filtered": filtered, "weighed": weighed}, "tasks": [], "seeds": 1}
    found = compare(values)
    folder = Path(values["output_dir"])
    assert found.marks == ()
    assert sorted(chosen) == ["filtered", "weighed"]
    assert {arm.name: (arm.steps, arm.preparation_seconds) for arm in found.plan.arms} == {
        "coreset@wall_clock": (6, 0.0),  # of 1.25 s
        "plain_small@wall_clock": (7, 0.0),  # of 1 s
        "filtered@wall_clock": (5, 2.0),
        "filtered@steps": (6, 2.0),
        "weighed@wall_clock": (5, 2.0),
    }
    runs = {run.arm: run for run in found.runs}
    assert runs["filtered@wall_clock"].seconds == 7.0
    assert [point.seconds for point in runs["filtered@wall_clock"].curve] == [4.0, 7.0]
    assert runs["filtered@steps"].seconds == 8.0
    drawing = {arm.name: arm.drawing for arm in found.plan.arms}
    assert drawing["coreset@wall_clock"] == drawing["plain_small@wall_clock"] == ""
    assert drawing["filtered@wall_clock"] == drawing["filtered@steps"]
    assert len(set(drawing.values())) == 3
    text = (folder / "comparison.md").read_text()
    assert "preparation" in text
    assert "once for all seeds" in text
    # what was trained is what was kept, each row with its weight
    place = Workplace(Parts.of(values, "config.yaml"), "cpu")
    whole = place.data.train
    for method, share in (("filtered", 0.5), ("weighed", 0.3)):
        with np.load(folder / "subsets" / method / KEPT) as kept:
            rows, weights = kept["rows"], kept["weights"]
        train = place.data_of(method).train
        assert len(train) == len(rows) == round(share * len(whole))
        assert train["input_ids"] == whole.select(rows)["input_ids"]
        if method == "weighed":
            assert train[SUBSET_WEIGHT] == pytest.approx(weights.tolist())
            assert weights.mean() == pytest.approx(1.0)
        else:
            assert SUBSET_WEIGHT not in train.column_names
            assert set(weights) == {1.0}
    report = json.loads((folder / "subsets" / "weighed" / "subset.json").read_text())
    assert sum(source["kept"] for source in report["sources"].values()) == len(rows)
    assert compare({**values, "compare": {**values["compare"], "seeds": 2}}).marks == ()
    assert sorted(chosen) == ["filtered", "weighed"]


def test_subsets_that_no_arm_can_have_are_refused(values: dict[str, Any], compare: Any) -> None:
    good = {"method": "random", "keep": 0.5}
    cases: list[tuple[Any, list[str], str]] = [
        ({**good, "keep": 1.5}, [], r"extra_arms.mine: .*\(0, 1\]. Found 1.5"),
        ({"keep": 0.5}, [], "extra_arms.mine: subset.method"),
        ({**good, "output": "here"}, [], "Found subset.output 'here'"),
        ({**good, "scores": "missing.npy"}, [], "subset.scores"),
        (good, ["mine@flops"], "equal wall_clock or steps. Found 'mine@flops'"),
        ({**good, "keep": 0.05}, [], "should keep the .* rows that its step draws, at least. Found 4"),
    ]
    for block, arms, message in cases:
        own = {**values["compare"], "extra_arms": {"mine": {"subset": block}}, "arms": arms}
        with pytest.raises(ConfigError, match=message):
            compare({**values, "compare": own})
    assert not (Path(values["output_dir"]) / "runs.jsonl").exists()


@pytest.mark.slow
def test_a_killed_comparison_goes_on(values: dict[str, Any], tmp_path: Path, forks: Any) -> None:
    """Killed with its worker processes in the middle of the runs; what had a line is not done again."""
    values["compare"] |= {
        **{"arms": ["random"], "extra_arms": {}, "tune": {"enabled": False}, "tasks": [], "seeds": 4},
        "processes": 2,
    }
    config = tmp_path / "compare.yaml"
    config.write_text(yaml.safe_dump(values))
    folder = Path(values["output_dir"])
    (process,) = forks.commands("compare", config, world=1, folder=tmp_path)
    deadline = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if (folder / "runs.jsonl").exists() and "\n" in (folder / "runs.jsonl").read_text():
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = (folder / "runs.jsonl").read_text()
    whole = before[: before.rfind("\n") + 1]
    timing = (folder / "timing.jsonl").read_text()
    assert whole
    (done,) = forks.commands("compare", config, world=1, folder=tmp_path)
    assert done.wait() == 0, done.said()
    after = (folder / "runs.jsonl").read_text()
    assert after.startswith(whole)
    found = [(line["arm"], line["seed"]) for line in lines(folder, "runs.jsonl")]
    assert len(found) == len(set(found)) == 8
    assert (folder / "timing.jsonl").read_text() == timing
    assert read_comparison(folder).marks == ()
    assert "coreset" in done.said()


def test_one_process_holds_a_comparison(tmp_path: Path) -> None:
    with alone(tmp_path), pytest.raises(ConfigError, match="another process"), alone(tmp_path):
        pass
    with alone(tmp_path):
        pass

"""Advice on choosing rows, on sources, on learnt and repeated rows; and what it says of what it cannot measure."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from corebatch.bench.advise import learnt, row_gradients, sources, spread
from corebatch.bench.advise.advice import Advice, advice_folder, write_advice
from corebatch.bench.advise.engine import PARTS as ALL
from corebatch.bench.advise.engine import AdvicePart, measure_all
from corebatch.bench.advise.finding import Finding
from corebatch.bench.advise.probe import Probe
from corebatch.bench.gradients.estimate import per_example_gradients
from corebatch.bench.runs.from_config import Parts
from corebatch.bench.runs.promises import promises_of
from corebatch.config.settings import settings_from
from corebatch.config.values import with_keys
from corebatch.errors import CorebatchError
from probes import advised_config, tiny_probe
from training import tiny_model

PARTS = {part.__name__: AdvicePart(part.measure) for part in (sources, spread, learnt)}


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_gradients, "MOST_ROWS", 64)
    monkeypatch.setattr(row_gradients, "MOST_STEPS", 3)
    monkeypatch.setattr(spread, "DRAWS", 40)


def unmeasured(found: Sequence[Finding]) -> dict[str, str]:
    return {one.lever: one.unmeasured for one in found if one.unmeasured is not None}


def test_each_lever_is_measured_and_nothing_of_the_model_changes(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path, max_steps=60)
    before = {name: value.clone() for name, value in probe.model.state_dict().items()}
    found, _ = measure_all(probe, PARTS)
    assert not unmeasured(found)
    assert all(torch.equal(value, probe.model.state_dict()[name]) for name, value in before.items())
    timed = [one for one in found if one.factor is not None]
    assert {one.lever for one in timed} == {
        *(f"{sources.LEVER}: {name}" for name in sources.WAYS),
        *(f"{spread.LEVER}: {name}" for name in spread.ARMS),
        f"{learnt.LEARNT}: left out",
    }
    assert sum(one.recommended for one in timed) <= 1
    values = advised_config(tmp_path)
    for one in timed:
        assert one.of == "seconds to the same loss"
        assert 0 < one.low < one.factor < one.high  # type: ignore[operator]
        made = settings_from(with_keys(values, one.arm), one.lever)
        assert made.coreset.pool_factor == (4 if spread.LEVER in one.lever else 1)
    remembered = next(one for one in timed if one.lever.endswith("remembered gradient norms and cost"))
    assert remembered.arm == {
        "coreset.pool_factor": 4, "coreset.scorer": "gradient_norm", "coreset.scoring": "remembered",
        "coreset.selector": "importance", "coreset.selector_options": {"cost_power": 0.5},
    }  # fmt: skip
    scored = next(one for one in timed if one.lever.endswith("by gradient norms"))
    assert scored.numbers["cost"] > remembered.numbers["cost"] + 0.3, "a forward of four rows for one that is trained"


def test_gradients_are_those_of_the_claim(tmp_path: Path) -> None:
    """The Gram matrix against gradients that are made one by one, in Adam's metric, with weights of sources."""
    probe = tiny_probe(tmp_path, coreset={"pool_factor": 1, "objective": "sources"})
    rows = row_gradients.row_gradients(probe)
    assert row_gradients.row_gradients(probe) is rows
    with row_gradients.weights_kept(probe.model, rows.state):
        gradients = per_example_gradients(rows.snapshot) / (rows.snapshot.second_moments.sqrt() + 1e-8)  # type: ignore[union-attr]
    population = rows.population
    shares = torch.zeros(3, dtype=torch.float64).index_add_(0, population.sources, population.tokens.double())
    counts = {name: one.trained_tokens for name, one in probe.mixture.counts.items()}
    names = [population.table.names[number] for number in range(3)]
    weights = torch.tensor([sum(counts.values()) / 3 / counts[name] for name in names], dtype=torch.float64)
    assert shares.min() > 0
    weighted = gradients.double() * weights[population.sources][:, None] / population.tokens.double().mean()
    torch.testing.assert_close(rows.gram_PP, weighted @ weighted.T, rtol=1e-4, atol=1e-4 * float(rows.gram_PP.max()))
    assert rows.sizes.mean() == pytest.approx(1)
    assert rows.steps == 3


def test_wide_gradients_are_sketched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = row_gradients.row_gradients(tiny_probe(tmp_path)).gram_PP
    monkeypatch.setattr(row_gradients, "COLUMNS", 997)
    found = row_gradients.row_gradients(tiny_probe(tmp_path)).gram_PP
    lengths = exact.diagonal().sqrt()
    off = (found - exact) / (lengths * lengths[:, None])
    assert not torch.equal(found, exact)
    assert off.square().mean().sqrt() < 2 * (2 / 997) ** 0.5


def test_the_table_of_sources_tells_what_the_run_is_judged_by(tmp_path: Path) -> None:
    found = sources.measure(tiny_probe(tmp_path))[0]
    table = found.numbers["sources"]
    assert set(table) == {"sums", "names", "stories"}
    assert sum(one["rows"] for one in table.values()) == pytest.approx(1)
    assert sum(one["tokens"] for one in table.values()) == pytest.approx(1)
    assert sum(one["noise"] for one in table.values()) == pytest.approx(1)
    assert table["sums"]["rows"] == pytest.approx(0.5)
    assert found.numbers["judged_by"] == "token"
    assert found.why.startswith("the run minimises the mean over trained tokens; sums has 50 % of the rows")
    by_source = sources.measure(tiny_probe(tmp_path, coreset={"pool_factor": 1, "objective": "sources"}))[0]
    assert by_source.numbers["judged_by"] == "source"


def test_a_config_that_chooses_is_told_what_not_choosing_is_worth(tmp_path: Path) -> None:
    recipe = {"pool_factor": 2, "selector": "importance", "scorer": "last_layer", "scoring": "full"}
    probe = tiny_probe(tmp_path, coreset=recipe)
    found = spread.measure(probe)
    assert not unmeasured(found)
    none, default, tokens = found[:3]
    assert none.lever == "choice of rows: none"
    assert none.arm == {"coreset.pool_factor": 1, "coreset.micro_batches": "positions"}, "auto would be plain there"
    assert none.numbers["cost"] < 0.9, "no forward is spent on scoring"
    assert tokens.arm == {"coreset.pool_factor": 2, "coreset.scorer": "tokens", "coreset.scoring": "auto"}
    auto = {f"coreset.{key}": "auto" for key in ("scorer", "selector", "scoring")}
    assert default.arm == {"coreset.pool_factor": 2, **auto}
    assert settings_from(with_keys(advised_config(tmp_path, coreset=recipe), default.arm), "x").coreset.feedback == 0.99
    assert "with coreset.pool_factor above 1" in unmeasured(sources.measure(probe))[sources.LEVER]


def test_the_default_choice_is_a_lever_of_one_key_that_a_comparison_knows(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path)
    found = {one.lever: one for one in spread.measure(probe)}
    lever = f"{spread.LEVER}: {spread.DEFAULT}"
    one = found[lever]
    assert one.arm == {"coreset.pool_factor": 4}
    assert 0 < one.numbers["choosing"] < one.numbers["cost"]
    assert "for choosing itself" in one.why
    values = advised_config(tmp_path)
    write_advice(Advice(config=values, findings=[one], about={}), advice_folder(values["output_dir"]))
    compare = {"arms": ["plain_small"]}
    promises, without = promises_of(Parts.of({**values, "coreset": {"pool_factor": 4}, "compare": compare}, "x"))
    assert without == ()
    assert [(each.lever, each.arm, each.against) for each in promises] == [
        (lever, "coreset@wall_clock", "plain_small@wall_clock")
    ]
    chooses = spread.measure(tiny_probe(tmp_path, coreset={"pool_factor": 4}))
    assert lever not in {each.lever for each in chooses}, "it is the config that came in"
    assert chooses[0].lever == f"{spread.LEVER}: none"


@pytest.mark.parametrize(("signal", "pays"), [(0.5, True), (50.0, False)])
def test_the_default_choice_pays_where_noise_binds_and_not_above_the_scale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal: float, pays: bool
) -> None:
    """Gradients that are the rows' counts of labels, without and with a large common part."""
    monkeypatch.setattr(row_gradients, "MOST_ROWS", 120)
    probe = tiny_probe(tmp_path)
    rows = row_gradients.row_gradients(probe)
    population = rows.population
    counts = torch.zeros(len(rows.sizes), probe.model.config.vocab_size, dtype=torch.float64)
    start = 0
    for batch in population.batches:
        for row in batch["labels"][:, 1:]:
            counts[start].index_add_(0, row[row >= 0], torch.ones(int((row >= 0).sum()), dtype=torch.float64))
            start += 1
    away = counts - rows.sizes[:, None] * counts.sum(dim=0) / rows.sizes.sum()
    gradients = torch.cat([away, signal * rows.sizes[:, None]], dim=1)
    gram_PP = gradients @ gradients.T
    probe.known["row gradients"] = replace(rows, gram_PP=gram_PP, raw_PP=gram_PP)
    cheap = replace(spread.measure_costs(probe.model, population, [], rows=8, rounds=1), forward_ms=1e6)
    monkeypatch.setattr(spread, "measure_costs", lambda *args, **keys: cheap)  # choosing costs next to nothing
    monkeypatch.setattr(spread, "ARMS", {spread.DEFAULT: spread.ARMS[spread.DEFAULT]})
    monkeypatch.setattr(spread, "DRAWS", 200)
    (one,) = spread.measure(probe)
    assert one.unmeasured is None
    assert one.recommended is pays, one
    assert one.why.endswith("it does not pay: the batch is above the noise scale") is not pays


def test_within_a_window_no_row_comes_twice_for_a_choice_that_carries_its_errors(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path, per_device_train_batch_size=1, max_steps=1000)
    bench = spread._Choosing.of(probe)
    default = spread._method(probe.settings.coreset.changed(pool_factor=4))
    pools = bench.carrying(default)
    ids, count = pools.series.ids_TN, len(pools.population)
    assert ids is not None
    assert (count, pools.budget, ids.shape[1]) == (80, 2, 8), "ten steps of 8 rows, more than have gradients"
    assert torch.equal(ids % count, pools.series.pools_TN)
    assert all(len(ids[start : start + 10].unique()) == 80 for start in range(0, len(ids), 10))
    steps = len(probe.mixture.dataset) / 8
    assert len(ids[:20].unique()) == 80 + 80 * (round(steps / 10) > 1)


def test_repeated_rows_are_counted_with_and_without_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe = tiny_probe(tmp_path)
    probe.mixture = replace(probe.mixture, dataset=probe.mixture.dataset.select([0, 0, 0, 5, *range(70, 90)]))
    found = learnt.measure(probe)[-1]
    assert found.numbers["exact"] == 2
    assert found.numbers["whole"]
    assert "of 24 rows repeat another, 2 of them exactly" in found.why
    assert "corebatch subset CONFIG --method near_duplicates" in found.why
    monkeypatch.setitem(sys.modules, "datasketch", None)
    found = learnt.measure(probe)[-1]
    assert found.unmeasured is not None
    assert found.unmeasured.startswith("2 of 24 rows repeat another exactly; Near-duplicates of texts need datasketch")


# ---- what cannot be measured -----------------------------------------------------------------------------------------


def few_rows(probe: Probe) -> None:
    probe.sample = probe.sample.select(range(12))


def no_time(probe: Probe) -> None:
    probe.deadline = 0.0


def broken_weights(probe: Probe) -> None:
    with torch.no_grad():
        next(p for p in probe.model.parameters() if p.requires_grad).fill_(float("nan"))


@pytest.mark.parametrize(
    ("keys", "spoil", "words"),
    [
        ({}, few_rows, "an interval needs the gradients of 32 rows at least. Found 12 rows"),
        ({}, no_time, "give more --minutes"),
        ({}, broken_weights, "the loss of a row is nan"),
        ({"coreset": {"objective": {"online": "odm"}}}, None, "the shares of the objective change in the run"),
        ({"coreset": {"pool_factor": 64}}, None, "pools of 64 rows for one need the gradients of 128. Found 64"),
        ({"coreset": {"pool_factor": 1, "sampling": {"temperature": 0.5}}}, None, "coreset.sampling decides"),
    ],
    ids=["few rows", "no time", "nan", "online", "large pool", "sampling"],
)
def test_what_cannot_be_measured_is_said_and_the_rest_goes_on(
    tmp_path: Path, keys: dict[str, Any], spoil: Any, words: str
) -> None:
    probe = tiny_probe(tmp_path, **keys)
    if spoil is not None:
        spoil(probe)
    found = [one for part in PARTS.values() for one in part.measure(probe)]
    assert any(words in told for told in unmeasured(found).values()), unmeasured(found)
    assert spread.LEVER in unmeasured(found)
    levers = [one.lever for one in found if one.unmeasured is None]
    assert "sources" in levers
    assert learnt.REPEATED in levers
    assert not any(one.recommended for one in found)


def test_attention_without_known_projections_costs_the_levers_by_norms_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> Any:
        raise CorebatchError("no projection of values is known")

    monkeypatch.setattr(row_gradients, "remembered", refuses)
    found = spread.measure(tiny_probe(tmp_path))
    assert set(unmeasured(found).values()) == {"no projection of values is known"}
    assert set(unmeasured(found)) == {f"{spread.LEVER}: {name}" for name in spread.ARMS if "norms" in name}


def test_a_run_that_reads_its_data_once_has_no_learnt_rows(tmp_path: Path) -> None:
    found = learnt.measure(tiny_probe(tmp_path))
    assert unmeasured(found)[f"{learnt.LEARNT}: left out"].startswith("no row has been seen before")


def test_all_measurements_of_a_run_that_little_can_be_said_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve rows, another model's checkpoint, no datasketch: each is told in our own words, and the rest goes on."""
    probe = tiny_probe(tmp_path)
    few_rows(probe)
    tiny_model("gpt2").save_pretrained(tmp_path / "checkpoint-7")
    probe.checkpoints = [tmp_path / "checkpoint-7"]
    monkeypatch.setitem(sys.modules, "datasketch", None)
    found, seconds = measure_all(probe, ALL)
    assert set(seconds) == set(ALL)
    told = unmeasured(found)
    assert {spread.LEVER, sources.LEVER, learnt.LEARNT, learnt.REPEATED} <= set(told)
    assert not any("Error:" in words for words in told.values()), told
    assert {"sources", "padding", "memory"} <= {one.lever for one in found if one.unmeasured is None}

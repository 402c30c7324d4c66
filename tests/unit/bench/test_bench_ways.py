"""The measurement of the ways of scoring: what is parsed, chosen, priced, timed and drawn."""

import dataclasses
import math

import pytest
import torch
from rich.console import Console

from corebatch.bench.gradients import DEFAULT_METHODS, Snapshot, measure, parse_method
from corebatch.bench.gradients.costs import Costs, measure_costs
from corebatch.bench.gradients.estimate import Past
from corebatch.bench.gradients.lines import table_rows
from corebatch.bench.gradients.plots import envelope, plot, plot_frontier
from corebatch.bench.gradients.population import Population, PopulationScoring, in_few_columns, remembered
from corebatch.bench.gradients.run import bench_gradients
from corebatch.bench.timing import Spread
from corebatch.errors import ConfigError, InputError
from corebatch.rendering.sheet import table
from corebatch.scoring import SCORERS, Scores
from training import Collator, mixture, tiny_model

POPULATION, LARGE, BUDGET, DRAWS = 48, 24, 8, 60
METHOD = "last_layer(num_blocks=2) x balanced"
WAYS = (
    "full",
    "window(tokens=8)",
    "first_blocks(blocks=1)",
    "every(steps=4, age=0)",
    "remembered(age=0, known=0.5)",
    "remembered(age=0, visits=4)",
    "remembered(age=0, cost=0.3)",
    "two_phase(share=0.5)",
    "two_phase(share=0.5, proxy=norm, age=0)",
    "none",
)


@pytest.fixture(scope="module")
def population():
    rows, collate = [mixture(POPULATION)[i] for i in range(POPULATION)], Collator()
    return Population.of([collate(rows[i : i + 12]) for i in range(0, POPULATION, 12)])


@pytest.fixture(scope="module")
def moment(population):
    return Snapshot(model=tiny_model().eval(), batches=population.batches)


def prices(**changes):
    """Costs as if they had been measured: c = 3, with checkpointing 4, s = 1.5."""
    ratio = Spread(1.5, 1.4, 1.7)
    known = {
        f"last_layer(num_blocks=2) @ {way}": ratio for way in ("full", "window(tokens=8)", "first_blocks(blocks=1)")
    }
    fields = {"rows": 8, "rounds": 3, "forward_ms": 2.0, "all_logits": Spread(1.25, 1.2, 1.3)}
    fields |= {"training": Spread(3.0, 2.9, 3.2), "training_checkpointing": Spread(4.0, 3.9, 4.2)}
    fields |= {"scoring": known, "scoring_all_logits": {name: ratio.times(0.8) for name in known}}
    return Costs(**{**fields, **changes})


def measured(moment, *texts, **settings):
    settings = {"large": LARGE, "budgets": (BUDGET,), "draws": DRAWS, "warm_up": 0, "costs": prices(), **settings}
    return measure(moment, [parse_method(text) for text in texts], **settings)


# ---- as text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [*DEFAULT_METHODS, *(f"{METHOD} @ {way}" for way in WAYS[1:])])
def test_pairs_are_written_as_they_are_read(text):
    assert parse_method(text).name == text
    assert parse_method(parse_method(text).name) == parse_method(text)


def test_full_is_the_way_without_a_word():
    assert parse_method("last_layer x balanced @ full") == parse_method("last_layer x balanced")
    assert parse_method("last_layer x balanced @ full").name == "last_layer x balanced"


@pytest.mark.parametrize(
    "text, message",
    [
        ("@ windo", "Did you mean 'window'"),
        ("@", "name with options"),
        ("@ full @ none", "name with options"),
        ("@ window(tokens=1)", "at least 2"),
        ("@ window(age=3)", "takes tokens"),
        ("@ full(reuse=False)", "takes no options"),
        ("@ every(steps=many)", "steps should be an integer"),
        ("@ remembered(max_age=4)", "Found 'max_age'"),
        ("@ remembered(age=-1)", "age should be an integer"),
        ("@ remembered(age=1.5)", "age should be an integer"),
        ("@ remembered(known=0)", "@ none"),
        ("@ remembered(known=1.5)", "known should be a number of at least 0 and at most 1"),
        ("@ remembered(visits=0)", "visits should be a number of at least 1"),
        ("@ remembered(visits=2, cost=1)", "Found both"),
        ("@ remembered(cost=.inf)", "cost should be a number"),
        ("@ two_phase(share=2)", "share"),
        ("@ two_phase(age=2)", "proxy"),
    ],
)
def test_bad_ways(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_method(f"last_layer x balanced {text}")


@pytest.mark.parametrize(
    "text, message",
    [
        ("tokens x importance @ window", "a scorer with a forward"),
        ("last_layer x random @ every", "a selector that looks at it"),
        ("last_layer x herding @ none", "a weighted selector"),
        ("zeroth_order x balanced @ remembered", "features training gives"),
        ("last_layer x greats", "validation"),
    ],
)
def test_what_a_trainer_refuses_is_refused(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_method(text)


# ---- choosing --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_every_way_is_unbiased_with_a_sampler(moment, way):
    (line,) = measured(moment, f"last_layer(num_blocks=2) x pivotal @ {way}", draws=400)
    assert abs(line.bias_given_pool) < 0.08
    assert line.windows["50"]["length"] == pytest.approx(1, abs=0.05)
    assert line.windows["10"]["error"] == pytest.approx(line.windows["1"]["error"], rel=0.3)
    assert line.weights["spread"] < 3 * line.weights["noise"]


def test_swaps_lose_in_windows_what_they_gain_in_a_step(moment):
    sampler, swaps = measured(moment, "last_layer(num_blocks=2) x pivotal", METHOD, draws=800, budgets=(4,))
    assert swaps.windows["1"]["error"] < sampler.windows["1"]["error"]
    assert swaps.windows["200"]["error"] > 1.5 * sampler.windows["200"]["error"]
    assert swaps.bias_given_pool > 0.02 > abs(sampler.bias_given_pool)
    assert swaps.weights["spread"] > 2 * sampler.weights["spread"]
    assert swaps.weights["least"] < sampler.weights["least"]


@pytest.mark.parametrize("way", ["remembered(age=0)", "every(steps=3, age=0)", "every(steps=1)", "two_phase(share=1)"])
def test_features_of_now_choose_as_full(moment, way):
    full, other = measured(moment, METHOD, f"{METHOD} @ {way}")
    if "every(steps=3" in way:  # other steps, so other random numbers
        assert other.windows["1"]["error"] == pytest.approx(full.windows["1"]["error"], rel=0.3)
    else:  # but for the memory's half precision, which may turn a draw
        assert other.windows["1"]["error"] == pytest.approx(full.windows["1"]["error"], rel=0.1)
    assert other.feature_age == (None if "two_phase" in way else 0)


def test_the_population_is_scored_as_the_scorer_does(moment, population):
    scores = PopulationScoring(parse_method(METHOD).coreset(), population).score(moment.model)
    expected = [SCORERS["last_layer"](num_blocks=2).score(moment.model, batch) for batch in population.batches]
    torch.testing.assert_close(scores.features, torch.cat(expected))
    assert torch.equal(scores.tokens, population.tokens)


def test_features_in_few_columns_have_the_same_inner_products():
    wide = torch.randn(12, 500, generator=torch.Generator().manual_seed(0))
    scores = Scores(features=wide, losses=None, tokens=torch.ones(12).long())
    few = in_few_columns(scores).features
    assert few.shape == (12, 12)
    torch.testing.assert_close(few @ few.T, wide @ wide.T, rtol=1e-5, atol=1e-3)
    narrow = dataclasses.replace(scores, features=wide[:, :5])
    assert in_few_columns(narrow) is narrow


@pytest.mark.parametrize(
    "block, alone",
    [
        ({}, True),
        ({"selector": "facility_location", "selector_options": {"metric": "l2"}}, True),
        ({"selector": "facility_location", "selector_options": {"metric": "l1"}}, False),
        ({"normalise": "optimizer"}, False),
        ({"sparsify": "projection"}, False),
    ],
)
def test_who_chooses_by_inner_products_alone(population, block, alone):
    coreset = parse_method({"name": "a", "coreset": block}).coreset()
    assert PopulationScoring(coreset, population).by_inner_products is alone


def test_a_part_of_the_population_is_known(moment, population):
    known = {}
    for share in (0.25, 0.5, 1.0):
        pair = parse_method(f"{METHOD} @ remembered(age=0, known={share})")
        (memory,) = remembered([pair, pair], moment.model, population, 0).values()
        recalled = memory.recall(torch.arange(POPULATION), population.tokens, 0, None)
        known[share] = set(recalled.known.nonzero().flatten().tolist())
        assert len(known[share]) == share * POPULATION
    assert known[0.25] < known[0.5]


def test_features_of_an_earlier_moment_must_be_given(moment, population):
    pair = parse_method(f"{METHOD} @ remembered(age=7)")
    with pytest.raises(InputError, match="features of 7 steps before"):
        measured(moment, pair.name)
    memories = remembered([pair], tiny_model().eval(), population, 0)
    (line,) = measured(moment, pair.name, past={pair.remembered: Past(memories[pair.remembered], 5)})
    assert line.feature_age == 5


# ---- prices ----------------------------------------------------------------------------------------------------------


def test_prices_are_those_of_the_formula(moment):
    ways = {line.scoring: line for line in measured(moment, *(f"{METHOD} @ {way}" for way in WAYS), cost_ratios=(2.0,))}
    s = {way: line.s for way, line in ways.items()}
    assert s["full"] == s["window(tokens=8)"] == s["first_blocks(blocks=1)"] == 1.5
    assert s["every(steps=4, age=0)"] == s["remembered(age=0, visits=4)"] == pytest.approx(1.5 / 4)
    assert s["remembered(age=0, known=0.5)"] == s["none"] == 0
    assert s["remembered(age=0, cost=0.3)"] == 0.3
    assert ways["remembered(age=0, cost=0.3)"].s_all_logits == pytest.approx(0.3 / 1.25)
    assert 0.75 < s["two_phase(share=0.5)"] < 1.5  # half of the rows, and the longer ones
    for line in ways.values():
        trained = BUDGET * line.tokens_cost
        assert line.tokens_cost > 1  # long rows are likelier
        assert line.cost_examples == pytest.approx(BUDGET + LARGE * line.s / 3)
        assert line.cost_tokens == pytest.approx(trained + LARGE * line.s / 3)
        assert line.cost_tokens_checkpointing == pytest.approx(trained + LARGE * line.s / 4)
        assert line.cost_positions == pytest.approx(BUDGET * line.positions_cost + LARGE * line.s / 3)
        assert line.cost_ratios["2"]["cost_tokens"] == pytest.approx(trained + LARGE * line.s / 2)
        for window in line.windows.values():
            effective = window["effective"] * LARGE
            assert window["per_cost_tokens"] == pytest.approx(effective / line.cost_tokens)
            assert window["per_cost_positions"] == pytest.approx(effective / line.cost_positions)
        assert line.score_ms == pytest.approx(line.s * 2.0 * LARGE)
        if line.scoring == "full":
            assert line.cost_tokens_reuse == pytest.approx((LARGE * 1.5 + trained * (4 - 1)) / 4)
        else:
            assert line.cost_tokens_reuse is line.cost_ratios["2"]["cost_tokens_reuse"] is None


def test_a_random_batch_is_worth_what_it_costs(moment):
    (line,) = measured(moment, "tokens x random", draws=300)
    assert line.s == line.score_ms == 0
    assert line.tokens_cost == pytest.approx(1, abs=0.05)
    assert line.cost_examples == BUDGET
    assert line.windows["1"]["per_cost_tokens"] == pytest.approx(1, abs=0.15)
    assert line.cost_tokens_reuse is None


def test_a_model_without_checkpointing_has_no_such_price(moment):
    (line,) = measured(moment, METHOD, costs=prices(training_checkpointing=None), draws=4)
    again = {name: value for name, value in dataclasses.asdict(line).items() if "checkpointing" in name}
    assert len(again) == 2
    assert set(again.values()) == {None}
    assert line.cost_tokens_reuse is None


@pytest.mark.parametrize("ratio", [1.0, 0.0, -2.0, math.inf, math.nan])
def test_bad_cost_ratios(moment, ratio):
    with pytest.raises(InputError, match="above 1"):
        measured(moment, METHOD, cost_ratios=(3.0, ratio))


# ---- timing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointed", [False, True])
def test_timing_is_positive_and_leaves_no_trace(population, checkpointed):
    model = tiny_model(dropout=0.1).eval()
    inner = model.get_base_model()
    if checkpointed:
        getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)()
    model.lm_head.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    flags = [getattr(module, "gradient_checkpointing", None) for module in model.modules()]
    random = torch.get_rng_state()
    texts = [f"{METHOD} @ {way}" for way in WAYS] + ["tokens x importance", "loss x random", "loss x hard"]
    costs = measure_costs(model, population, [parse_method(text) for text in texts], rows=16, rounds=3)
    assert set(costs.scoring) == {
        *(f"last_layer(num_blocks=2) @ {way}" for way in ("full", "window(tokens=8)", "first_blocks(blocks=1)")),
        "loss @ full",
    }
    ratios = [costs.training, costs.training_checkpointing, costs.all_logits]
    for ratio in [*ratios, *costs.scoring.values(), *costs.scoring_all_logits.values()]:
        assert 0 < ratio.low <= ratio.value <= ratio.high
    assert costs.training.value > 1
    assert costs.forward_ms > 0
    assert (costs.rows, costs.rounds) == (16, 3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert [getattr(module, "gradient_checkpointing", None) for module in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), random)


def test_nothing_to_time_is_an_error(moment, population):
    with pytest.raises(InputError, match="at least one row"):
        measure_costs(moment.model, population, [], rows=0)


# ---- runs ------------------------------------------------------------------------------------------------------------


class Tokenizer:
    pad_token_id, eos_token_id = 0, 2


@pytest.fixture(scope="module")
def run():
    texts = ["tokens x random", METHOD, f"{METHOD} @ none", f"{METHOD} @ remembered(age=2)", f"{METHOD} @ every"]
    texts += [f"{METHOD} @ first_blocks(blocks=1)", f"{METHOD} @ first_blocks(blocks=2)"]
    console = Console(record=True, width=300)
    lines = bench_gradients(
        tiny_model(), Tokenizer(), mixture(80), [parse_method(text) for text in texts], moments=(1, 3), population=40,
        large=16, budgets=(8, 4), draws=5, cost_ratios=(2.85, 3.6), skip_unfit=True, console=console,
    )  # fmt: skip
    return lines, console.export_text()


def test_a_run_remembers_and_says_what_it_left_out(run):
    lines, said = run
    assert "Left out: last_layer(num_blocks=2) x balanced @ first_blocks(blocks=2)" in said
    assert f"after 1 steps: features of {METHOD} @ remembered(age=2) are 1 steps old" in said
    assert "c = " in said
    ages = {(line["after_steps"], line["scoring"]): line["feature_age"] for line in lines}
    assert ages[1, "remembered(age=2)"] == ages[1, "every"] == 1
    assert ages[3, "remembered(age=2)"] == ages[3, "every"] == 2
    assert ages[3, "none"] is None
    assert len(lines) == 6 * 2 * 2 * 2  # pairs, budgets, metrics, moments
    assert all(line["cost_rounds"] and line["cost_rows"] == 40 for line in lines)


def test_an_early_exit_behind_the_last_block_is_an_error():
    pairs = [parse_method(f"{METHOD} @ first_blocks(blocks=2)")]
    with pytest.raises(ConfigError, match=r"below the number of blocks of the model, 2\. Found 2"):
        bench_gradients(tiny_model(), Tokenizer(), mixture(20), pairs, population=12, large=6, budgets=(3,))


def test_the_table_is_sorted_and_fits(run):
    lines, _ = run
    for given in (True, False):
        windows = [{**line["windows"], **dict.fromkeys(("10", "50", "200"), line["windows"]["1"])} for line in lines]
        shown = [{**line, "windows": those} for line, those in zip(lines, windows, strict=True)]
        shown = shown if given else [{**line, "cost_ratios": {}} for line in shown]
        rows = table_rows([line for line in shown if line["metric"] == "adam" and line["after_steps"] == 3])
        first = "per cost\nc = 2.85" if given else "per cost\nof tokens"
        for budget in {row["M"] for row in rows}:
            worths = [float(row[first]) for row in rows if row["M"] == budget]
            assert worths == sorted(worths, reverse=True)
        long = "last_layer(num_blocks=1) x facility_location @ first_blocks(blocks=2)"
        console = Console(record=True, width=180)
        console.print(table("t", [{**row, "method": long} for row in rows]))
        text = console.export_text().splitlines()
        assert len(text) == 3 + len(rows)  # title and header of two lines; no row is folded
        assert long in text[-1]


def test_envelope():
    points = [(1.0, 0.5), (0.5, 0.4), (0.6, 0.3), (2.0, 0.5), (1.0, 0.6), (0.2, 0.1)]
    assert envelope(points) == [(0.2, 0.1), (0.5, 0.4), (1.0, 0.6)]


def test_plots_are_written(run, tmp_path):
    lines, _ = run
    plot(lines, tmp_path / "lines.png")
    plot_frontier(lines, tmp_path / "lines-frontier.png")
    assert {path.name for path in tmp_path.iterdir()} == {"lines.png", "lines-frontier.png"}
    assert all(path.stat().st_size > 1000 for path in tmp_path.iterdir())

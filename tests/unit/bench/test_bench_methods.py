"""Methods with sources, small sources, normalisers, sparsifiers, a unit of the loss: parsed, chosen, measured."""

import dataclasses
import json
from collections import Counter

import pytest
import torch

from corebatch.bench.gradients import Snapshot, measure, parse_method, parse_methods
from corebatch.bench.gradients.costs import Costs
from corebatch.bench.gradients.population import Population, PopulationScoring
from corebatch.bench.gradients.run import bench_gradients, second_moments_of
from corebatch.bench.gradients.series import Chooses, Series
from corebatch.bench.timing import Spread
from corebatch.errors import ConfigError, InputError
from corebatch.scoring import Scores
from corebatch.seeds import seeded
from training import SOURCES, Collator, mixture, tiny_model

POPULATION, LARGE, BUDGET = 48, 24, 8
FL = {"selector": "facility_location", "scorer_options": {"num_blocks": 2}}
RARE = SOURCES.index("rare")


@pytest.fixture(scope="module")
def moment():
    """After one AdamW step; four sources, of which one is rare."""
    rows, collate = [mixture(POPULATION)[i] for i in range(POPULATION)], Collator()
    batches = [collate(rows[i : i + 12]) for i in range(0, POPULATION, 12)]
    sources = torch.tensor([SOURCES.index(row["source"]) for row in rows])
    model = tiny_model().eval()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4)
    model(**batches[0]).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return Snapshot(
        model=model,
        batches=batches,
        second_moments=second_moments_of(optimizer, trained),
        sources=sources,
        optimizer=optimizer,
    )


@pytest.fixture(scope="module")
def population(moment):
    return Population.of(moment.batches, moment.sources)


@pytest.fixture(scope="module")
def pools():
    return [torch.randperm(POPULATION, generator=seeded(5, n))[:LARGE].sort().values for n in range(6)]


def prices(pairs):
    """Costs as if they had been measured."""
    one = Spread(1.0, 1.0, 1.0)
    names = dict.fromkeys((pair.forward for pair in pairs), one)
    return Costs(
        rows=1, rounds=1, forward_ms=1.0, all_logits=one, training=Spread(3.0, 3.0, 3.0), training_checkpointing=None,
        scoring=names, scoring_all_logits=names,
    )  # fmt: skip


def measured(moment, *methods, **settings):
    pairs = parse_methods(methods)
    settings = {"large": LARGE, "budgets": (BUDGET,), "draws": 40, "warm_up": 0, "costs": prices(pairs), **settings}
    return [line for line in measure(moment, pairs, **settings) if line.metric == "raw"]


# ---- as text ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "block",
    [
        {},
        {"recipe": "colm"},
        {"recipe": "colm", "normalise": None, "small_sources": "none"},
        {**FL, "normalise": "adam", "sparsify": 2560, "small_sources": ["rare"]},
        {"normalise": "optimizer", "sparsify": "projection", "loss": "example_mean"},
        {"scoring": {"way": "window", "tokens": 8}, "small_sources": "auto"},
        {"scoring": "auto", "pool_factor": 4, "seed": 3, "padding_free": False},
    ],
)
def test_a_block_stands_for_what_a_trainer_would_do(block):
    pair = parse_method({"name": "mine", "coreset": block})
    assert pair.name == "mine"
    assert parse_method({"name": "mine", "coreset": pair.block}) == pair
    assert parse_method(f"mine={json.dumps(block)}") == pair
    json.dumps(pair.block)
    wanted = dataclasses.replace(parse_method({"name": "mine", "coreset": block}).coreset(), pool_factor=2, seed=0)
    plain = {key: value for key, value in block.items() if key not in ("pool_factor", "seed", "padding_free")}
    from_config = type(wanted).from_dict(plain).to_dict()
    from_config["scoring"] = "full" if block.get("scoring", "auto") == "auto" else block["scoring"]
    assert wanted.to_dict() == from_config


def test_a_mapping_without_a_block_is_a_text():
    text = "last_layer(num_blocks=1) x balanced @ window(tokens=8)"
    assert parse_method({"name": text}) == parse_method(text)
    assert parse_method(text).block["scoring"] == {"way": "window", "tokens": 8}
    assert (
        parse_method({"name": parse_method(text).name, "coreset": parse_method(text).block}).block
        == parse_method(text).block
    )


def test_units_of_the_loss_do_not_share_features():
    block = {"selector": "cube"}
    one, other = (
        parse_method({"name": "a", "coreset": {**block, "loss": loss}}) for loss in ("token_mean", "example_mean")
    )
    assert one.forward != other.forward
    assert parse_method("last_layer x balanced").forward == one.forward


@pytest.mark.parametrize(
    "method, message",
    [
        ({"coreset": {}}, "should have a name"),
        ({"name": "a", "coresets": {}}, "Did you mean 'coreset'"),
        ({"name": "a", "coreset": "colm"}, "block of keys and values"),
        ({"name": "a", "coreset": {"recipe": "colmn"}}, "coreset.recipe"),
        ({"name": "a", "coreset": {"small_source": "auto"}}, "Did you mean 'small_sources'"),
        ({"name": "a", "coreset": {"source_column": "topic"}}, "sources that all methods see"),
        ({"name": "a", "coreset": {"normalise": "adam"}}, "goes with uniform selectors"),
        ({"name": "a", "coreset": {"sparsify": "topk"}}, "chooses once over all sources"),
        ({"name": "a", "coreset": {"scoring": {"way": "full", "reuse": False}}}, "takes no options here"),
        ({"name": "a", "coreset": {"scoring": 3}}, "scoring should be a way"),
        ({"name": "a", "coreset": {"scoring": "none", "small_sources": "auto"}}, "small_sources none"),
        (3, "text or a mapping"),
        ("a={recipe: [colm}", "YAML after the ="),
        ("a", "a name with a coreset block"),
    ],
)
def test_bad_methods(method, message):
    with pytest.raises(ConfigError, match=message):
        parse_method(method)


def test_two_methods_of_one_name():
    assert len(parse_methods(["tokens x random", "tokens x random"])) == 1
    with pytest.raises(ConfigError, match="'a' twice"):
        parse_methods(["a={recipe: colm}", "a={}"])


# ---- sources ---------------------------------------------------------------------------------------------------------


def test_small_sources_are_kept_whole(moment, population, pools):
    pair = parse_method({"name": "kept", "coreset": {**FL, "small_sources": "auto"}})
    arm = PopulationScoring(pair.coreset(), population)
    scores = arm.score(moment.model)
    for draw, pool in enumerate(pools):
        rare = set(pool[moment.sources[pool] == RARE].tolist())
        chosen = arm.choose(pool, scores, BUDGET, draw)
        assert rare <= set(chosen.rows.tolist())
        assert chosen.kept == len(rare)
    kept, free = measured(moment, {"name": "kept", "coreset": pair.block}, {"name": "free", "coreset": FL})
    assert kept.kept > 0.5
    assert free.kept == 0


def test_sources_share_the_budget_and_small_is_by_the_data_set(moment, population, pools):
    arm = PopulationScoring(parse_method({"name": "a", "coreset": FL}).coreset(), population)
    rows = arm.choose(pools[0], arm.score(moment.model), BUDGET, 0).rows
    there, taken = (Counter(moment.sources[r].tolist()) for r in (pools[0], rows))
    assert all(abs(taken[source] - count * BUDGET / LARGE) < 1 for source, count in there.items())
    # The three large sources would not be small in any count; with other counts they are.
    named = dataclasses.replace(population.table, counts={0: 1, 1: 2, 2: 3, 3: 1000})
    table = Population.of(moment.batches, moment.sources, named)
    coreset = parse_method({"name": "a", "coreset": {**FL, "small_sources": "auto"}}).coreset()
    assert PopulationScoring(coreset, table).step.small_sources == {0, 1, 2}
    assert PopulationScoring(coreset, population).step.small_sources == {RARE}


def test_what_is_kept_on_purpose_counts_as_bias(moment):
    kept, free = measured(
        moment,
        {"name": "kept", "coreset": {"selector": "random", "small_sources": "auto"}},
        "tokens x random",
        draws=400,
    )
    assert abs(free.bias_given_pool) < 0.06
    assert kept.bias_given_pool > 0.08 > abs(free.bias_given_pool)
    assert kept.weights["sources"]["source 3"] > 1.5


def test_a_source_for_each_row():
    batch = Collator()([mixture(4)[i] for i in range(4)])
    with pytest.raises(InputError, match=r"each of 4 rows\. Found 3"):
        Population.of([batch], torch.zeros(3, dtype=torch.long))


# ---- what is carried from step to step -------------------------------------------------------------------------------


def test_a_series_is_that_of_the_step_itself(moment, population):
    """Driven by hand as a trainer drives it: the normaliser's history goes from one choice into the next."""
    pair = parse_method({"name": "a", "coreset": {"recipe": "colm", "loss": "token_mean"}})
    step = pair.coreset().build()
    step.small_sources = frozenset({RARE})
    scores = PopulationScoring(pair.coreset(), population).score(moment.model)
    series = Series.of(POPULATION, LARGE, 4, 0, warm_up=2)
    chosen = Chooses(make=lambda: PopulationScoring(pair.coreset(), population), scores=scores, loss="token_mean")
    found = chosen.of(series, BUDGET).coefficients_TP > 0
    for number, pool in enumerate(series.pools_TN):
        choice = step.choose(
            scores.take(pool), moment.sources[pool], BUDGET, step=number, second_moments=None
        ).selection  # fmt: skip
        if number >= 2:
            assert pool[choice.indices].tolist() == found[number - 2].nonzero().flatten().tolist()
    forgetful = chosen.again(series.pools_TN[5:], BUDGET, 2)
    assert torch.equal(forgetful[0, 0], forgetful[0, 1])


@pytest.mark.parametrize("scoring", ["full", {"way": "remembered", "age": 0}])
def test_error_feedback_is_carried_through_a_series(moment, scoring):
    block = {"selector": "balanced", "scorer_options": {"num_blocks": 2}, "scoring": scoring}
    methods = [{"name": str(rho), "coreset": {**block, "feedback": rho}} for rho in (None, 0.99)]
    plain, follows = measured(moment, *methods, draws=400)
    assert follows.coreset["feedback"] == 0.99
    assert follows.windows["50"]["error"] < 0.5 * plain.windows["50"]["error"]
    assert follows.windows["200"]["effective"] > plain.windows["200"]["effective"] > 0
    (sources,) = measured(moment, methods[1], draws=400, objectives=("sources",))
    assert sources.windows["50"]["error"] < 0.5 * sources.windows["1"]["error"]


def test_warm_up_steps_come_before_those_that_are_measured(moment):
    method = {"name": "a", "coreset": {**FL, "normalise": "adam"}}
    none, some = (measured(moment, method, draws=6, warm_up=steps)[0] for steps in (0, 3))
    assert (none.warm_up, some.warm_up) == (0, 3)
    assert none.errors[3:] == some.errors[:3]  # the same series
    assert len(some.errors) == 6


def test_the_optimizers_scale_is_that_of_the_features_weights(moment, population):
    """The features are gradients by both blocks' lora_B, block after block."""
    block = {"selector": "importance", "scorer_options": {"num_blocks": 2}}
    pair = parse_method({"name": "a", "coreset": {**block, "normalise": "optimizer"}})
    scores = PopulationScoring(pair.coreset(), population).score(moment.model)
    named = [(name, p) for name, p in moment.model.named_parameters() if p.requires_grad]
    parts = moment.second_moments.split([p.numel() for _, p in named])
    scale = torch.cat([part for (name, _), part in zip(named, parts, strict=True) if "lora_B" in name]).sqrt() + 1e-8
    scaled = Scores(features=scores.features / scale, losses=scores.losses, tokens=scores.tokens)
    plain = PopulationScoring(parse_method({"name": "a", "coreset": block}).coreset(), population)
    series = Series.of(POPULATION, LARGE, 6, 5)

    def drawn(arm, scores, moments=None):
        return Chooses(make=lambda: arm, scores=scores, loss="token_mean", moments=moments).of(series, BUDGET)

    arm = PopulationScoring(pair.coreset(), population)
    arm.look(moment.model)
    torch.testing.assert_close(
        drawn(arm, scores, scale.sub(1e-8).square()).coefficients_TP, drawn(plain, scaled).coefficients_TP
    )
    with pytest.raises(InputError, match=r"Snapshot\.optimizer"):
        measured(dataclasses.replace(moment, optimizer=None), {"name": "a", "coreset": pair.block})
    before = dataclasses.replace(moment, optimizer=None, second_moments=None)
    scaled, raw = measured(before, {"name": "a", "coreset": pair.block}, {"name": "b", "coreset": block}, draws=4)
    assert scaled.errors == raw.errors


@pytest.mark.parametrize(
    "block",
    [{**FL, "sparsify": 4}, {**FL, "sparsify": "projection"}, {"normalise": "muon"}, {"sparsify": "projection"}],
)
def test_every_transform_is_measured(moment, block):
    (line,) = measured(moment, {"name": "a", "coreset": block}, draws=6)
    assert line.windows["1"]["error"] > 0
    assert line.coreset == parse_method({"name": "a", "coreset": block}).block


# ---- objectives ------------------------------------------------------------------------------------------------------


def test_sources_weigh_the_same_under_their_objective(population):
    assert torch.equal(population.under("tokens").weights, torch.ones(POPULATION, dtype=torch.float64))
    weighed = population.under("sources").weights * population.tokens
    trained = [float(weighed[population.sources == number].sum()) for number in range(4)]
    assert trained == pytest.approx([float(population.tokens.sum()) / 4] * 4)


WAYS = ["full", "none", {"way": "remembered", "age": 0}, {"way": "remembered", "age": 0, "known": 0.5}]


@pytest.mark.parametrize("way", WAYS)
def test_inclusion_follows_the_objective(moment, population, way):
    """Weights are in inverse proportion to the size of u_i g_i, in each part that is chosen by itself."""
    block = {"selector": "importance", "selector_options": {"floor": 0.001}, "scoring": way}
    method = parse_method({"name": "a", "coreset": block})
    plain, everything = PopulationScoring(method.coreset(), population), torch.arange(POPULATION)
    known, memory, scores = torch.full((POPULATION,), way == "full"), None, None
    norms = PopulationScoring(parse_method("last_layer x importance").coreset(), population).score(moment.model)
    if way == "full":
        scores = norms
    elif method.remembered is not None:
        memory = plain.remember(moment.model, method.way.known)
        known = memory.recall(everything, population.tokens, 0, None).known
    weighed = population.under("sources")
    chosen = PopulationScoring(method.coreset(), weighed, memory).choose(everything, scores, BUDGET, 0)
    sizes = weighed.weights * torch.where(known, norms.features.norm(dim=1), population.tokens.sqrt())
    products = chosen.selection.weights * sizes[chosen.rows]
    for part in (known[chosen.rows], ~known[chosen.rows]):
        assert not bool(part.any()) or float(products[part].std(correction=0) / products[part].mean()) < 0.02


def test_objectives_are_measured_by_their_own_gradients(moment):
    tokens, sources = measured(moment, "last_layer x pivotal", objectives=("tokens", "sources"), draws=400)
    assert (tokens.objective, sources.objective) == ("tokens", "sources")
    for line in (tokens, sources):
        assert abs(line.bias_given_pool) < 0.05
        assert line.windows["50"]["length"] == pytest.approx(1, abs=0.05)
        assert all(
            value == pytest.approx(1, abs=4 * line.weights["sources_noise"])
            for value in line.weights["sources"].values()
        )
    (alone,) = measured(moment, "last_layer x pivotal", objectives=("sources",), draws=400)
    assert alone.errors == sources.errors
    # u_i of a random choice's rows differ; sizes know of that.
    assert sources.windows["1"]["error"] < tokens.windows["1"]["error"]


@pytest.mark.parametrize(
    "objective, method, message",
    [
        ("words", "tokens x random", "one of tokens, sources. Found 'words'"),
        ("sources", "a={loss: example_mean}", "goes with loss token_mean. Found example_mean in a"),
    ],
)
def test_bad_objectives(moment, objective, method, message):
    with pytest.raises(InputError, match=message):
        measured(moment, method, objectives=(objective,))
    with pytest.raises(InputError, match=message):
        bench_gradients(
            tiny_model(), Tokenizer(), mixture(20), parse_methods([method]), population=12, large=6, budgets=(3,),
            objectives=(objective,),
        )  # fmt: skip


# ---- units and spreads -----------------------------------------------------------------------------------------------


def test_a_mean_over_examples_is_measured_by_its_own_gradient(moment, population):
    methods = [
        {"name": loss, "coreset": {"selector": "random", "loss": loss}} for loss in ("token_mean", "example_mean")
    ]
    for line in measured(moment, *methods, budgets=(LARGE,)):
        assert line.windows["1"]["effective"] == pytest.approx(1, abs=1e-6)
    tokens, examples = measured(moment, *methods, draws=300)
    assert (tokens.loss, examples.loss) == ("token_mean", "example_mean")
    # The plain mean of a random M is the yardstick itself: unbiased, error 1, M / N as good (finite population apart).
    for length in ("1", "10", "adam"):
        assert examples.windows[length]["error"] == pytest.approx(1, rel=0.15)
        assert examples.windows[length]["effective"] == pytest.approx(BUDGET / LARGE, rel=0.15)


# ---- runs ------------------------------------------------------------------------------------------------------------


class Tokenizer:
    pad_token_id, eos_token_id = 0, 2


@pytest.mark.parametrize("warm_up, steps", [(2, {0: 0, 1: 1, 3: 2}), (0, {0: 0, 1: 0, 3: 0})])
def test_no_more_steps_come_before_than_were_trained(warm_up, steps):
    methods = ["colm={recipe: colm}", {"name": "raw", "coreset": {"recipe": "colm", "normalise": None}}]
    lines = bench_gradients(
        tiny_model(), Tokenizer(), mixture(80), parse_methods(methods), moments=(0, 1, 3), population=40, large=16,
        budgets=(8, 4), draws=4, warm_up=warm_up, cost_rows=4, cost_rounds=1,
    )  # fmt: skip
    json.dumps(lines)
    assert {line["sources"] for line in lines} == {4}
    assert all(line["loss"] == "example_mean" and line["kept"] > 0 for line in lines if line["budget"] == 8)
    for line in lines:
        assert line["warm_up"] == steps[line["after_steps"]]
    first = {line["method"]: line["errors"] for line in lines if line["after_steps"] == 0 and line["budget"] == 8}
    assert first["colm"][0] == first["raw"][0]  # with an empty history the features are raw
    assert first["colm"] != first["raw"]


def test_a_source_column_that_is_not_there():
    with pytest.raises(ConfigError, match="topic"):
        bench_gradients(
            tiny_model(), Tokenizer(), mixture(20), parse_methods(["tokens x random"]), population=12, large=6,
            budgets=(3,), source_column="topic",
        )  # fmt: skip

"""The measurement of selection: exact gradients, and statistics that are known for simple methods."""

import dataclasses

import pytest
import torch

from corebatch.bench.gradients import Snapshot, measure, parse_method
from corebatch.bench.gradients.estimate import per_example_gradients
from corebatch.errors import ConfigError, InputError
from training import Collator, mixture, tiny_model

POPULATION, LARGE = 48, 24
LAST_LAYER = "last_layer(num_blocks=2)"


@pytest.fixture(scope="module")
def moment():
    rows, collate = [mixture(POPULATION)[i] for i in range(POPULATION)], Collator()
    batches = [collate(rows[i : i + 12]) for i in range(0, POPULATION, 12)]
    model = tiny_model(dtype=torch.float64).eval()
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    moments = torch.rand(trained, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return Snapshot(model=model, batches=batches, second_moments=moments)


def test_gradients_are_those_of_single_rows(moment):
    gradients = per_example_gradients(moment)
    parameters = [p for p in moment.model.parameters() if p.requires_grad]
    for number in (0, 13, 47):
        batch = Collator()([mixture(POPULATION)[number]])
        logits = moment.model(input_ids=batch["input_ids"]).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits[0], batch["labels"][0, 1:], reduction="sum")
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        torch.testing.assert_close(gradients[number], expected, rtol=1e-9, atol=1e-12)


def test_statistics_of_methods_that_are_known(moment):
    pairs = [
        parse_method(text)
        for text in ("tokens x random", f"{LAST_LAYER} x importance", f"{LAST_LAYER} x facility_location")
    ]
    lines = measure(moment, pairs, large=LARGE, budgets=(LARGE, 8), draws=400)
    assert len(lines) == 2 * 2 * 3
    for line in lines:
        if line.budget == LARGE:
            assert all(window["effective"] == pytest.approx(1, abs=1e-6) for window in line.windows.values())
            assert line.bias_given_pool == 0
    raw = {line.method: line for line in lines if line.metric == "raw" and line.budget == 8}
    importance, medoids = raw[f"{LAST_LAYER} x importance"], raw[f"{LAST_LAYER} x facility_location"]
    assert set(importance.windows) == {"1", "10", "50", "200", "adam"}
    assert all(window["error"] < 0.95 for window in importance.windows.values())
    assert abs(importance.bias_given_pool) < 0.1
    assert importance.windows["200"]["length"] == pytest.approx(1, abs=0.05)
    assert importance.weights["sources"] == {"source 0": pytest.approx(1, abs=0.05)}
    assert medoids.bias_given_pool == pytest.approx(1)
    assert medoids.windows["200"]["effective"] < 0.5 * medoids.windows["1"]["effective"]
    assert medoids.windows["1"]["length"] > 1.0


def test_what_a_method_carries_is_of_its_own_series(moment):
    """Each budget begins without a past, and the scorer of one series does not know of another."""
    method = parse_method({"name": "a", "coreset": {"recipe": "colm", "loss": "token_mean"}})
    both = measure(moment, [method], large=LARGE, budgets=(12, 8), draws=12, warm_up=3)
    alone, _ = measure(moment, [method], large=LARGE, budgets=(8,), draws=12, warm_up=3)
    (other,) = (line for line in both if line.budget == 8 and line.metric == "raw")
    assert dataclasses.replace(other, **paid(alone)) == alone


def paid(line):
    """What is timed anew in each measurement."""
    names = [field.name for field in dataclasses.fields(line) if field.name[:1] == "c"]
    names += ["select_ms", "score_ms", "windows", "s", "s_low", "s_high", "s_all_logits"]
    return {name: getattr(line, name) for name in names}


@pytest.mark.parametrize(
    "large, budgets, draws, message",
    [
        (48, (8,), 2, "population"), (24, (25,), 2, "Budgets"), (24, (0,), 2, "Budgets"), (24, (), 2, "Found none"),
        (24, (8,), 1, "draws should be at least 2"),
    ],
)  # fmt: skip
def test_bad_sizes(moment, large, budgets, draws, message):
    with pytest.raises(InputError, match=message):
        measure(moment, [parse_method("tokens x random")], large=large, budgets=budgets, draws=draws)


@pytest.mark.parametrize(
    "text, message",
    [
        ("last_layer", "a pair|A pair"),
        ("last_layr x pivotal", "Did you mean 'last_layer'"),
        ("last_layer x pivotl", "pivotal"),
        ("last_layer(num_block=1) x pivotal", "num_blocks"),
        ("last_layer(1) x pivotal", "option=value"),
    ],
)
def test_bad_pairs(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_method(text)


def test_pairs_are_written_as_they_are_read():
    text = "last_layer(num_blocks=1) x facility_location(metric=l2)"
    assert parse_method(text).name == text
    assert parse_method(parse_method(text).name) == parse_method(text)

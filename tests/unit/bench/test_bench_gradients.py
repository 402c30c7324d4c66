"""The measurement of selection: exact gradients, and statistics that are known for simple methods."""

import math

import pytest
import torch

from corebatch.bench.gradients import Snapshot, measure, parse_method
from corebatch.bench.gradients.errors import Errors
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
    lines = measure(moment, pairs, large=LARGE, budgets=(LARGE, 8), draws=40)
    assert len(lines) == 2 * 2 * 3
    for line in lines:
        assert all(math.isfinite(value) for value in (line.error_spread, line.length, line.cosine, line.bias_share))
        if line.budget == LARGE:
            assert line.effective_batch == pytest.approx(1, abs=1e-6)
    raw = {line.method: line for line in lines if line.metric == "raw" and line.budget == 8}
    assert raw[f"{LAST_LAYER} x importance"].error_to_large < 0.95
    assert abs(raw[f"{LAST_LAYER} x importance"].bias_share) < 0.1
    assert raw[f"{LAST_LAYER} x importance"].length == pytest.approx(1, abs=0.15)
    assert raw[f"{LAST_LAYER} x facility_location"].length > 1.0


def test_errors_agree_with_plain_vectors():
    generator = torch.Generator().manual_seed(1)
    gradients = torch.randn(12, 30, generator=generator, dtype=torch.float64)
    pools = [torch.randperm(12, generator=generator)[:6].sort().values for _ in range(5)]
    choices = torch.zeros(5, 12, dtype=torch.float64)
    for draw, pool in enumerate(pools):
        choices[draw, pool[:3]] = 1 / 3
    found = Errors(gradients, pools).of(choices, choices, 0)
    true = gradients.mean(dim=0)
    estimates = choices @ gradients
    large = torch.stack([gradients[pool].mean(dim=0) for pool in pools])
    error = (estimates - true).square().sum(dim=1).mean()
    error_large = (large - true).square().sum(dim=1).mean()
    ratio = float(error / error_large)
    assert found["error_to_large"] == pytest.approx(1)
    assert found["effective_batch_uncorrected"] == pytest.approx(1 / ratio)
    assert found["effective_batch"] == pytest.approx(1 / (ratio * (1 / 6 - 1 / 12) + 1 / 12) / 6)
    assert found["length"] == pytest.approx(float((estimates @ true).mean() / true.square().sum()))
    deviations = estimates - true
    cross = sum(deviations[i] @ deviations[j] for i in range(5) for j in range(5) if i != j) / 20
    assert found["bias_share"] == pytest.approx(float(cross / error))


@pytest.mark.parametrize(
    "large, budgets, draws, message",
    [
        (48, (8,), 2, "population"), (24, (25,), 2, "Budgets"), (24, (0,), 2, "Budgets"), (24, (), 2, "Found none"),
        (24, (8,), 0, "draws should be at least 1"),
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

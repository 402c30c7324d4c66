"""Stages 3 and 4: as the optimizer will, and fewer columns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from corebatch.errors import CheckpointError, CorebatchError, UnsupportedModelError
from corebatch.model.moments import second_moments
from corebatch.scoring import LastLayer, ZerothOrder
from corebatch.transforms import (
    NORMALISERS,
    SPARSIFIERS,
    AdamHistory,
    OptimizerScale,
    Projection,
    TopK,
    make_normaliser,
    make_sparsifier,
)
from models import tiny_batch, tiny_model, value_modules, value_weights


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Adam's map of each example


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.75), (0.0, 0.0)])
def test_adams_map_is_the_step_that_adam_would_take(steps: int, betas: tuple[float, float]) -> None:
    """With one row a step in the history and in the optimizer, the next step by row g is -lr u(g)."""
    history, rows = AdamHistory(beta1=betas[0], beta2=betas[1], eps=1e-6), random(3, 5, seed=9)
    means = random(steps, 5)
    for mean in means:
        history.update(mean.unsqueeze(0))
    mapped = history(rows)
    for row, u in zip(rows, mapped, strict=True):
        weight = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
        adam = torch.optim.Adam([weight], lr=0.5, betas=betas, eps=1e-6)
        for gradient in [*means, row]:
            before = weight.detach().clone()
            weight.grad = gradient.clone()
            adam.step()
        torch.testing.assert_close((before - weight.detach()) / 0.5, u, rtol=1e-10, atol=1e-12)


def test_the_history_is_the_mean_of_each_chosen_rows_own() -> None:
    """Of squares too: two rows that cancel leave a large second moment behind, and not none."""
    history, rows = AdamHistory(beta1=0.5, beta2=0.75), torch.tensor([[3.0, 1.0], [-3.0, 1.0]])
    m, v = torch.zeros(2), torch.zeros(2)
    for _ in range(3):
        each = [(0.5 * m + 0.5 * row, 0.75 * v + 0.25 * row**2) for row in rows]
        m, v = (torch.stack(part).mean(dim=0) for part in zip(*each, strict=True))
        history.update(rows)
        state = history.state_dict()
        torch.testing.assert_close((state["m"], state["mean_square"]), (m, v))
    assert float(v[0]) > 5.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_history_moves_on_whatever_the_rows_are_kept_in(dtype: torch.dtype) -> None:
    history, exact = AdamHistory(), AdamHistory()
    for step in range(600):
        rows = random(8, 5, seed=step)
        history.update(rows.to(dtype))
        exact.update(rows.to(dtype).double())
    last = random(3, 5, seed=9999).to(dtype)
    torch.testing.assert_close(history(last).double(), exact(last.double()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_columns_without_moments_are_finite_in_half_precision(dtype: torch.dtype) -> None:
    rows = torch.tensor([[0.0, 1.0], [0.0, 2.0]], dtype=dtype)
    history = AdamHistory()
    history.update(rows)
    for mapped in (history(rows), OptimizerScale()(rows, torch.tensor([1e-20, 1.0]))):
        assert mapped[:, 0].tolist() == [0.0, 0.0]
        assert bool(torch.isfinite(mapped).all())


def test_a_step_without_rows_counts_and_leaves_the_history() -> None:
    """Small sources may take the whole budget; the correction for the start goes by the run's step, as theirs does."""
    one, other = AdamHistory(), AdamHistory()
    for history in (one, other):
        history.update(torch.ones(2, 3))
    one.update(torch.ones(0, 3))
    assert (one.steps, other.steps) == (2, 1)
    assert torch.equal(one.state_dict()["mean_square"], other.state_dict()["mean_square"])
    assert not torch.equal(one(torch.ones(1, 3)), other(torch.ones(1, 3)))
    empty = AdamHistory()
    empty.update(torch.ones(0, 3))
    other.load_state_dict(empty.state_dict())
    assert other.steps == 1
    assert torch.equal(other(torch.ones(1, 3)), torch.ones(1, 3))


def test_a_history_of_squares_of_means_is_refused_by_name() -> None:
    state = {"m": torch.ones(3), "v": torch.ones(3), "steps": torch.tensor(4)}
    with pytest.raises(CheckpointError, match=r"means of squares, `mean_square`\. Found `v`, squares of means"):
        AdamHistory().load_state_dict(state)


def test_an_empty_history_passes_features_as_they_are() -> None:
    features = random(4, 3)
    assert AdamHistory()(features) is features


def test_the_history_survives_a_checkpoint() -> None:
    one, other = AdamHistory(), AdamHistory()
    assert one.state_dict() == {}
    other.load_state_dict({})
    for seed in range(3):
        one.update(random(3, 4, seed=seed))
    other.load_state_dict({key: value.clone() for key, value in one.state_dict().items()})
    for history in (one, other):
        history.update(random(3, 4, seed=8))
    assert one.steps == other.steps == 4
    assert torch.equal(one(random(6, 4, seed=3)), other(random(6, 4, seed=3)))


def test_a_history_from_a_checkpoint_goes_where_the_features_are() -> None:
    """Here to another type, since there may be one device only."""
    history = AdamHistory()
    history.update(torch.ones(1, 2, dtype=torch.float32))
    history.update(torch.ones(1, 2, dtype=torch.float64))
    assert history(torch.ones(3, 2, dtype=torch.float64)).dtype == torch.float64
    assert history.state_dict()["m"].dtype == torch.float64


def test_a_history_of_another_width_is_an_error() -> None:
    history = AdamHistory()
    history.update(torch.ones(1, 3))
    for call in (lambda: history(torch.ones(2, 4)), lambda: history.update(torch.ones(1, 4))):
        with pytest.raises(CorebatchError, match=r"history is of 3 features. Found 4"):
            call()


# The live optimizer's scale


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptneox"])
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_the_optimizers_scale_is_adamws_own(kind: str, lora: bool) -> None:
    """In the order of the features: values only, GPT-2's weight is kept as [inputs, outputs]."""
    model, batch, scorer = tiny_model(kind, lora=lora), tiny_batch(), LastLayer(num_blocks=2)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, betas=(0.9, 0.95))
    features = scorer.score(model, batch)
    assert second_moments(optimizer, scorer.coordinates()) is None  # no step yet
    assert OptimizerScale()(features, None) is features
    gradients: list[list[Tensor]] = []
    for _ in range(3):
        model.zero_grad()
        model(**batch).loss.backward()
        gradients.append([weight.grad.clone() for weight in value_weights(model, kind)[-2:]])  # type: ignore[union-attr]
        optimizer.step()
    expected = []
    for number, projection in enumerate(scorer.projections(model, batch)):
        moment = torch.zeros_like(gradients[0][number])
        for step in gradients:
            moment = 0.95 * moment + 0.05 * step[number] ** 2
        moment = moment / (1 - 0.95**3)
        moment = moment.T if kind == "gpt2" and not lora else moment
        expected.append((moment if projection.columns is None else moment[projection.columns]).flatten())

    class Wrapped:  # as Accelerate's
        def __init__(self, inner: Any) -> None:
            self.optimizer = inner

    found = second_moments(Wrapped(optimizer), scorer.coordinates())
    assert found is not None
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-10, atol=0.0)
    scaled = OptimizerScale(eps=1e-4)(features, found)
    torch.testing.assert_close(scaled, features / (torch.cat(expected).sqrt() + 1e-4), rtol=1e-10, atol=0.0)
    assert [shape[0] * shape[1] for shape in scorer.shapes() or []] == [len(part) for part in expected]


def test_moments_that_are_not_there_are_errors() -> None:
    model, batch = tiny_model("llama", lora=True), tiny_batch()
    adam = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(UnsupportedModelError, match="features that are derivatives by single weights"):
        second_moments(adam, ZerothOrder().coordinates())
    sketch = LastLayer(max_dim=10, projection_dim=2)
    sketch.score(model, batch)
    with pytest.raises(UnsupportedModelError, match="last_layer"):
        second_moments(adam, sketch.coordinates())
    scorer = LastLayer()
    assert scorer.coordinates() is None
    scorer.score(model, batch)
    frozen = torch.optim.AdamW([module.base_layer.weight for module in value_modules(model, "llama")])
    with pytest.raises(UnsupportedModelError, match="AdamW, which does not hold the value projections"):
        second_moments(frozen, scorer.coordinates())
    momentum = torch.optim.SGD(adam.param_groups[0]["params"], lr=0.1, momentum=0.9)
    model(**batch).loss.backward()
    momentum.step()
    with pytest.raises(UnsupportedModelError, match=r"Found SGD, whose settings are .*momentum"):
        second_moments(momentum, scorer.coordinates())


def test_moments_of_another_width_are_an_error() -> None:
    with pytest.raises(CorebatchError, match=r"should be \[3\].* Found \(4,\)"):
        OptimizerScale()(torch.ones(2, 3), torch.ones(4))


# Fewer columns


@pytest.mark.parametrize("h", [1, 3, 5])
def test_topk_keeps_each_sources_largest_means(h: int) -> None:
    features, sources = random(12, 6), torch.tensor([0, 1, 2] * 4)
    found = TopK(h=h)(features, sources)
    assert found.shape == (12, h)
    for source in range(3):
        rows = [row for row in range(12) if sources[row] == source]
        mean = features[rows].mean(dim=0).abs().tolist()
        columns = sorted(sorted(range(6), key=lambda c: -mean[c])[:h])
        assert torch.equal(found[rows], features[rows][:, columns])


def test_topk_ties_go_to_the_first_and_narrow_features_pass() -> None:
    features = torch.tensor([[1.0, -1.0, 1.0, 0.0], [1.0, -1.0, 1.0, 0.0]])
    sources = torch.zeros(2, dtype=torch.long)
    assert TopK(h=2)(features, sources).tolist() == [[1.0, -1.0]] * 2
    assert TopK(h=4)(features, sources) is features


def test_a_projection_keeps_inner_products_in_expectation() -> None:
    features, sources = random(4, 50), torch.zeros(4, dtype=torch.long)
    draws = torch.stack([p @ p.T for p in (Projection(dim=10, seed=s)(features, sources) for s in range(400))])
    error = draws.mean(dim=0) - features @ features.T
    assert bool((error.abs() <= 4 * draws.std(dim=0) / 20).all())


def test_a_projection_is_the_same_for_every_call_and_batch() -> None:
    features, sources = random(4, 50), torch.zeros(4, dtype=torch.long)
    before = torch.get_rng_state()
    one = Projection(dim=10, seed=3)
    first = one(features, sources)
    assert torch.equal(one(features, sources), first)
    torch.testing.assert_close(Projection(dim=10, seed=3)(features[:2], sources[:2]), first[:2])
    assert not torch.allclose(Projection(dim=10, seed=4)(features, sources), first)
    assert torch.equal(torch.get_rng_state(), before)
    assert Projection(dim=50)(features, sources) is features
    assert one(features[:, :20], sources).shape == (4, 10)  # another width, another matrix


# By name


@pytest.mark.parametrize("name", NORMALISERS)
def test_normalisers_by_name(name: str) -> None:
    made = make_normaliser(name)
    assert isinstance(made, NORMALISERS[name])
    assert make_normaliser(made) is made


@pytest.mark.parametrize("name", SPARSIFIERS)
def test_sparsifiers_by_name(name: str) -> None:
    made = make_sparsifier(name)
    assert isinstance(made, SPARSIFIERS[name])
    assert make_sparsifier(made) is made


def test_none_and_numbers() -> None:
    assert make_normaliser(None) is make_normaliser("none") is make_sparsifier(None) is make_sparsifier("none") is None
    made = make_sparsifier(7)
    assert isinstance(made, TopK)
    assert made.h == 7


@pytest.mark.parametrize(
    "make, value, message",
    [
        (make_normaliser, "adm", "normalise should be one of .* Found 'adm'. Did you mean 'adam'"),
        (make_normaliser, 3, "normalise should be one of .* Found 3"),
        (make_normaliser, TopK(), "normalise should be one of"),
        (make_sparsifier, "top", "sparsify should be one of .* Found 'top'. Did you mean 'topk'"),
        (make_sparsifier, True, "sparsify should be one of .* Found True"),
        (make_sparsifier, 0, "sparsify should be .* at least 1. Found 0"),
        (make_sparsifier, 2.5, "sparsify should be one of .* Found 2.5"),
        (lambda value: AdamHistory(beta1=value), 1.0, r"beta1 should be in \[0, 1\). Found 1.0"),
        (lambda value: AdamHistory(beta2=value), -0.1, r"beta2 should be in \[0, 1\). Found -0.1"),
        (lambda value: AdamHistory(eps=value), 0, "eps should be above 0. Found 0"),
        (lambda value: OptimizerScale(eps=value), -1, "eps should be above 0. Found -1"),
        (lambda value: TopK(h=value), 0, "h should be an integer of at least 1. Found 0"),
        (lambda value: Projection(dim=value), 1.5, "dim should be an integer of at least 1. Found 1.5"),
    ],
)
def test_what_is_none_is_an_error(make: Any, value: Any, message: str) -> None:
    with pytest.raises(CorebatchError, match=message) as caught:
        make(value)
    assert isinstance(caught.value, ValueError)

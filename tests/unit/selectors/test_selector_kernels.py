"""Compiled loops, plain loops and numpy fallbacks are one function; a broken cache is survived."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from corebatch.selectors import make_selector
from corebatch.selectors.kernels.compile import Kernel
from corebatch.selectors.kernels.distances import distances, gram
from corebatch.selectors.kernels.exchange import exchange, exchange_loop, exchange_numpy
from corebatch.selectors.kernels.flight import null_vector, null_vector_loop, null_vector_numpy
from corebatch.selectors.kernels.greedy import symmetric, symmetric_loop, symmetric_numpy
from corebatch.selectors.kernels.inclusion import inclusion_probabilities, systematic_sample, uniforms
from corebatch.selectors.kernels.settle import settle, settle_loop, settle_numpy
from corebatch.selectors.kernels.swaps import swap, swap_loop, swap_numpy
from corebatch.selectors.pivotal import expanded_distances


def _features(seed: int, rows: int = 30) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(rows, 5, generator=generator, dtype=torch.float64)
    features[rows // 2 :] = features[: rows - rows // 2]  # duplicates: ties in distance
    return features * torch.rand(rows, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [1, 11, 29])
def test_meetings_agree(seed: int, budget: int) -> None:
    features = _features(seed)
    inclusion = inclusion_probabilities(features, budget, 0.1)
    apart = expanded_distances(gram(features), inclusion).numpy()
    numbers = uniforms(torch.Generator().manual_seed(seed), len(features), 2).numpy()
    before = inclusion.clone()
    found = [body(apart, inclusion.numpy(), numbers) for body in (settle, settle_loop, settle_numpy)]
    assert found[0].sum() == pytest.approx(budget)
    assert ((found[0] > 1e-9) & (found[0] < 1 - 1e-9)).sum() <= 1
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()
    assert torch.equal(inclusion, before)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [1, 11, 29])
def test_swaps_agree(seed: int, budget: int) -> None:
    features = _features(seed)
    inclusion = inclusion_probabilities(features, budget, 0.1)
    expanded = features / inclusion[:, None]
    chosen = torch.zeros(len(features), dtype=torch.bool)
    chosen[systematic_sample(inclusion, budget, torch.Generator().manual_seed(seed))] = True
    gram = (expanded @ expanded.T).numpy()
    slope = gram @ (chosen.double() - inclusion).numpy()
    fixed = (inclusion == 1.0).numpy()
    found = [body(gram, slope, chosen.numpy(), fixed, 20, 1e-9) for body in (swap, swap_loop, swap_numpy)]
    assert found[0].sum() == budget
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()


@pytest.mark.parametrize("count", [1, 31, 32, 33, 150])
def test_symmetry_is_found(count: int) -> None:
    matrix = np.random.default_rng(0).normal(size=(count, count))
    even = matrix + matrix.T
    bodies = (symmetric, symmetric_loop, symmetric_numpy)
    assert all(body(even) for body in bodies)
    for row, column in ((count - 1, 0), (count // 2, count - 1)):
        if row != column:
            odd = even.copy()
            odd[row, column] += 1e-9
            assert not any(body(odd) for body in bodies)


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_null_vectors_agree_and_are_null(rank: int) -> None:
    generator = np.random.default_rng(rank)
    matrix = generator.normal(size=(6, rank)) @ generator.normal(size=(rank, 7))
    found = [body(matrix) for body in (null_vector, null_vector_loop, null_vector_numpy)]
    for each in found:
        np.testing.assert_allclose(each, found[0], rtol=1e-9)
        np.testing.assert_allclose(matrix @ each, 0.0, atol=1e-9)
    assert found[0][rank] == 1.0


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("budget", [1, 2, 11, 29])
def test_exchanges_agree_and_end_where_no_exchange_helps(seed: int, budget: int) -> None:
    apart = distances(_features(seed), "l1").numpy()
    start = np.arange(budget)
    found = [body(apart, start, 200, 1e-12) for body in (exchange, exchange_loop, exchange_numpy)]
    assert found[0].tolist() == found[1].tolist() == found[2].tolist()
    assert start.tolist() == list(range(budget))
    medoids = found[0].tolist()
    reached = apart[:, medoids].min(axis=1).sum()
    assert reached <= apart[:, start].min(axis=1).sum()
    for place in range(budget):
        for row in set(range(len(apart))) - set(medoids):
            other = [*medoids[:place], row, *medoids[place + 1 :]]
            assert apart[:, other].min(axis=1).sum() >= reached - 1e-9


@pytest.mark.parametrize("name", ["facility_location", "pivotal", "balanced", "k_medoids", "cube"])
def test_selectors_choose_the_same_without_numba(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    features = _features(0, rows=40)
    compiled = make_selector(name).select(features, 12)
    monkeypatch.setitem(sys.modules, "numba", None)  # importing it raises ImportError
    for module in ("greedy", "settle", "swaps", "exchange", "flight"):
        loaded = sys.modules[f"corebatch.selectors.kernels.{module}"]
        for kernel in vars(loaded).values():
            if isinstance(kernel, Kernel):
                monkeypatch.setattr(kernel, "_run", None)
    plain = make_selector(name).select(features, 12)
    assert plain.indices.tolist() == compiled.indices.tolist()
    assert torch.equal(plain.weights, compiled.weights)


def _sum_loop(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += value
    return total


def _kernel_in(folder: Path) -> Kernel[[np.ndarray], float]:
    """A kernel whose source file, and so its cache, is in `folder`."""
    source = "def loop(values):\n    total = 0.0\n    for v in values:\n        total += v\n    return total\n"
    file = folder / "loop_module.py"
    file.write_text(source)
    space: dict[str, object] = {"__name__": "loop_module"}
    exec(compile(source, str(file), "exec"), space)
    return Kernel(space["loop"], _sum_loop)  # type: ignore[arg-type]


def test_a_cache_that_cannot_be_read_is_survived(tmp_path: Path) -> None:
    pytest.importorskip("numba")
    assert _kernel_in(tmp_path)(np.ones(3)) == 3.0
    written = [*tmp_path.rglob("*.nbi"), *tmp_path.rglob("*.nbc")]
    assert written, "numba wrote no cache: this test tests nothing"
    for file in written:
        file.write_bytes(b"not a cache")
    again = _kernel_in(tmp_path)
    assert again(np.ones(4)) == 4.0
    assert again(np.ones(5, dtype=np.float32)) == 5.0


def test_no_place_for_a_cache_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    numba = pytest.importorskip("numba")
    plain, asked = numba.njit, []

    def njit(*args: object, **options: object) -> object:
        asked.append(options)
        if options.get("cache"):
            raise RuntimeError("cannot cache function 'loop': no locator available")
        return plain(*args, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert Kernel(_sum_loop, _sum_loop)(np.ones(3)) == 3.0
    assert asked == [{"cache": True}, {}]


def test_an_error_of_the_loop_itself_is_not_hidden() -> None:
    def broken(values: np.ndarray) -> float:
        raise IndexError("of the loop")

    kernel = Kernel(broken, broken)
    kernel._run = broken
    with pytest.raises(IndexError, match="of the loop"):
        kernel(np.ones(1))


def test_numba_is_not_imported_with_the_selectors() -> None:
    """It takes most of a second, and `import corebatch` should not."""
    code = "import sys, corebatch.selectors; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

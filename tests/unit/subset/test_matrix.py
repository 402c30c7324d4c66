"""Rows in memory and in files read alike."""

import numpy as np
import pytest
import torch

from corebatch.subset import Matrix


@pytest.fixture(params=["tensor", "array", "file", "half"])
def made(request, tmp_path):
    values = torch.randn(10, 3, generator=torch.Generator().manual_seed(0)).half().float()
    if request.param == "tensor":
        return values, Matrix(values)
    if request.param in ("array", "half"):
        array = values.numpy()
        return values, Matrix(array.astype(np.float16) if request.param == "half" else array)
    np.save(tmp_path / "rows.npy", values.numpy())
    return values, Matrix(np.load(tmp_path / "rows.npy", mmap_mode="r"))


def test_reads_what_it_was_given(made):
    values, matrix = made
    assert (len(matrix), matrix.width) == (10, 3)
    for size in (1, 4, 10, 99, None):
        blocks = list(matrix.blocks(size))
        assert [start for start, _ in blocks] == list(range(0, 10, size or 10))
        assert torch.equal(torch.cat([block for _, block in blocks]), values)
    rows = torch.tensor([7, 0, 7])
    assert torch.equal(matrix.take(rows), values[rows])
    assert matrix.take(rows).dtype == torch.float32


def test_what_is_read_is_a_copy(made):
    values, matrix = made
    next(matrix.blocks())[1].zero_()
    matrix.take(torch.arange(10)).zero_()
    assert torch.equal(matrix.take(torch.arange(10)), values)

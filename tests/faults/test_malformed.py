"""Malformed inputs end in one message and exit code 2, or are read: no traceback, no hang."""

import pytest
from malformed import FAMILIES, try_one

from folders import save_tiny_model

OF_EACH_FAMILY = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return folder


@pytest.mark.parametrize("seed", range(OF_EACH_FAMILY))
@pytest.mark.parametrize("family", FAMILIES)
def test_a_malformed_input_ends_in_words(family, seed, model):
    done = try_one(family, seed, model)
    assert not done.wrong, f"{done.words}\n{done.said[-2000:]}\n{done.wrong}"

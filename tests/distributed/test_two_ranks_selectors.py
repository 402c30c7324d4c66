"""Two ranks over gloo make the choices of one process, in float64, by every selector."""

import pytest
from same_steps import assert_same_steps, both
from worker import LONG, SELECTED

from training import largest_difference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", SELECTED)
def test_every_selector_chooses_the_same_for_fifty_steps(trained, method):
    (one, two), states = both(trained, "ddp", tuple(SELECTED), method)
    assert len(one) == LONG
    assert_same_steps(one, two)
    assert largest_difference(*states) < 1e-9

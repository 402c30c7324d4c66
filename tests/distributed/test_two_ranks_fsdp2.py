"""Two ranks over gloo choose and train what one process does, in float64, by FSDP2."""

import pytest
from same_steps import assert_same_steps, both
from worker import FSDP2

from training import largest_difference

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("method", FSDP2)
def test_two_ranks_that_share_the_weights_train_what_one_does(trained, method):
    """FSDP2 through Accelerate: features, weighted losses and moments of sharded weights."""
    (one, two), states = both(trained, "fsdp2", FSDP2, method)
    assert_same_steps(one, two)
    assert largest_difference(*states) < (2e-5 if method == "random" else 1e-9)

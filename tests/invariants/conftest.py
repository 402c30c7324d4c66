import pytest


@pytest.fixture(autouse=True, scope="module")
def always_one_thread(one_thread):
    """For every invariant."""

import gc
import os

import pytest

from quicker import quicken

SECONDS = {
    "test_two_ranks_selectors.py": 65,
    "test_two_ranks.py": 55,
    "test_killed_ranks.py": 55,
    "test_cli_compare.py": 50,
    "test_cli_ranks.py": 45,
    "test_two_ranks_every_row.py": 45,
    "test_pool_scoring.py": 45,
    "test_scoring_ways.py": 45,
    "test_compile.py": 40,
    "test_selector_blocks.py": 40,
    "test_regrouped.py": 35,
    "test_failures.py": 35,
    "test_step_memory.py": 35,
    "test_two_ranks_fsdp2.py": 30,
    "test_selectors.py": 30,
    "test_learnt.py": 25,
    "test_bench_step.py": 25,
    "test_bench_methods.py": 25,
    "test_cli_folders.py": 25,
    "test_cuts.py": 25,
    "test_data_sets.py": 25,
    "test_mixture_search.py": 20,
    "test_search.py": 20,
    "test_bayes.py": 20,
    "test_cli_validate.py": 20,
    "test_hosts.py": 20,
    "test_swapped_weights.py": 20,
}
"""About how long a file takes on a quiet core. Processes that share the files take the long ones first, so that none
is left for the end; the others follow in their order."""


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # of pytest-xdist
        items.sort(key=lambda item: -SECONDS.get(item.path.name, 0))


@pytest.fixture(autouse=True)
def variables_of_its_own():
    """TrainingArguments tells Accelerate by variables to compile, or (transformers 4) to train in bf16: not the tests
    that follow."""
    before = dict(os.environ)
    yield
    for name in set(os.environ) - set(before):
        if name.startswith("ACCELERATE_"):
            del os.environ[name]
    os.environ.update({name: value for name, value in before.items() if name.startswith("ACCELERATE_")})


@pytest.fixture(scope="module", autouse=True)
def imports_apart_from_garbage():
    """A full collection of garbage walks through half a million objects of imported packages. What is there before a
    file's first test is set apart."""
    gc.collect()
    gc.freeze()
    quicken()


@pytest.fixture(scope="session", autouse=True)
def files_in_memory():
    """No test cuts the power, so none waits until a file has reached the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def rows_kept_apart(tmp_path_factory):
    """Tokenised rows of tests are not kept where a user's are."""
    os.environ["COREBATCH_CACHE"] = str(tmp_path_factory.mktemp("kept"))


@pytest.fixture(scope="session")
def forks(rows_kept_apart):
    """A server that starts ranks and commands at once."""
    from forks import Server

    made = Server()
    yield made
    made.close()


@pytest.fixture(scope="module")
def one_thread():
    """Sums in the order of one thread: bit for bit the same, and quick for tiny models."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def trained(forks, tmp_path_factory):
    """Trains methods on so many ranks by an engine, once; gives their folder."""
    done = {}

    def train(ranks, engine, names):
        key = (ranks, engine, names)
        if key not in done:
            done[key] = tmp_path_factory.mktemp(f"{engine}{ranks}")
            codes = forks.run(WORKER, done[key], world=ranks, engine=engine, names=names)
            assert not any(codes), "".join(path.read_text()[-6000:] for path in sorted(done[key].glob("*.log")))
        return done[key]

    return train

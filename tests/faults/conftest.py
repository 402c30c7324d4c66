import json
import signal

import pytest
from lives import Lives


@pytest.fixture(scope="session")
def lives():
    """Under `nohup` a hang-up is ignored, by runs as well: what the tests send is not."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    made = Lives()
    yield made
    made.close()
    signal.signal(signal.SIGHUP, before)


@pytest.fixture(scope="session")
def uninterrupted(lives, tmp_path_factory):
    """The folder of a case's run that nothing has disturbed."""
    done = {}

    def get(case, **run):
        key = json.dumps([case, run], sort_keys=True)
        if key not in done:
            done[key] = tmp_path_factory.mktemp("whole") / case
            lives.whole(case, done[key], **run)
        return done[key]

    return get

"""A run that is killed at any moment and goes on from its last complete checkpoint ends as if nothing had happened."""

import random

import pytest
from lives import assert_same, final

from corebatch.errors import CheckpointError
from corebatch.record.checkpoint import last_complete

STEPS, EVERY = 14, 3
KILLS = 5
EVENTS = {"limit": (12, 32)}
"""Which of a save's openings, moves and deletions of files: with a limit, from selection's state on to the rotation."""
CHAINS = ("recommended", "limit", "remembered", "best")
"""Four runs, each killed five times."""


def complete(folder):
    try:
        return int(last_complete(folder).name.rpartition("-")[2])
    except CheckpointError:
        return 0


def resume(folder):
    """From the last complete checkpoint; anew where there is none."""
    return True if complete(folder) else None


def save_after(step):
    return min((step // EVERY + 1) * EVERY, STEPS)


@pytest.mark.parametrize("case", CHAINS)
def test_killed_at_random_moments_it_ends_the_same(lives, uninterrupted, tmp_path, case):
    folder, draw, reached = tmp_path / "run", random.Random(f"{case} 1"), 0
    for number in range(KILLS):
        before, go_on = complete(folder), resume(folder)
        if number % 2:  # while a checkpoint is written, moved into its place, or older ones are deleted
            event = draw.randint(*EVENTS.get(case, (1, 26)))
            (killed,) = lives.live(case, folder, resume=go_on, moment=save_after(before), event=event)
        else:
            kill = {"run": 0, "delay": draw.uniform(0.0, 0.1)}
            soonest = before + (EVERY + 1 if number == 0 else 1)
            step = draw.randint(min(soonest, STEPS - 1), min(before + 2 * EVERY, STEPS - 1))
            (killed,) = lives.live(case, folder, resume=go_on, moment=step, kill=kill)
        assert killed["code"] == -9, killed
        assert complete(folder) >= before  # nothing is lost
        reached = max(reached, complete(folder))
    assert reached > 0
    assert lives.whole(case, folder, resume=resume(folder))["steps"] == STEPS
    assert_same(final(folder), final(uninterrupted(case)))

"""Schedules: which value a share of the run has, what is refused, and how they are written down."""

import json

import pytest

from corebatch.errors import ConfigError
from corebatch.sampling.schedule import Schedule, parse_schedule

PARTS = [{"until": 0.5, "is": 1}, {"until": 0.75, "is": 3, "ramp": True}, {"is": 10}]


def number(value):
    if not isinstance(value, int):
        raise ConfigError(f"should be a number. Found {value!r}.")
    return value


def mixed(schedule, progress):
    before, after, share = schedule.at(progress)
    return (1 - share) * before + share * after


def test_parts_and_a_ramp():
    schedule = parse_schedule(PARTS, number)
    found = [mixed(schedule, progress) for progress in (0, 0.49, 0.5, 0.625, 0.7499, 0.75, 0.99, 1, 1.2)]
    assert found == pytest.approx([1, 1, 1, 2, 3, 10, 10, 10, 10], abs=1e-2)


def test_no_ramp_has_one_value():
    assert parse_schedule(PARTS, number).at(0.2) == (1, 1, 1.0)


@pytest.mark.parametrize("steps", [3, 7, 10, 250])
def test_of_ten_steps_eight_are_before_eighty_percent(steps):
    schedule = parse_schedule([{"until": 0.8, "is": 0}, {"is": 1}], number)
    assert [mixed(schedule, step / steps) for step in range(steps)] == [int(10 * s >= 8 * steps) for s in range(steps)]


def test_a_last_ramp_ends_with_the_run():
    schedule = parse_schedule([{"until": 0.5, "is": 0}, {"is": 4, "ramp": True}], number)
    assert [mixed(schedule, progress) for progress in (0.25, 0.75, 1)] == [0, 2, 4]
    assert parse_schedule([{"until": 0.5, "is": 0}, {"until": 1, "is": 4, "ramp": True}], number) == schedule


def test_one_part_is_constant():
    assert parse_schedule([{"is": 7}], number).at(0.3) == (7, 7, 1.0)


def test_it_is_written_as_it_was_given_and_read_again():
    schedule = parse_schedule(PARTS, number)
    assert json.loads(json.dumps(schedule.plain())) == PARTS
    assert parse_schedule(schedule.plain(), number) == schedule


def test_words():
    schedule = parse_schedule(PARTS, number)
    assert schedule.words(lambda v: f"v{v}") == (
        "v1 until 50 % of the steps, then linearly to v3 until 75 % of the steps, then v10"
    )
    last = parse_schedule([{"until": 0.875, "is": 1}, {"is": 2, "ramp": True}], number)
    assert last.words() == "1 until 87.5 % of the steps, then linearly to 2 until the end"


def test_it_is_frozen():
    schedule = parse_schedule(PARTS, number)
    with pytest.raises(AttributeError):
        schedule.parts = ()
    assert isinstance(schedule, Schedule)


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "should be a list of parts"),
        ("tokens", "should be a list of parts"),
        ({"until": 0.5, "is": 1}, "should be a list of parts"),
        ([1], "part 1 should be a mapping of until, is, ramp. Found 1"),
        ([{"until": 0.5, "is": 1}, {"until": 0.3, "is": 2}, {"is": 3}], "part 2: until .* above 0.5.*overlap"),
        ([{"until": 0.5, "is": 1}, {"until": 0.5, "is": 2}, {"is": 3}], "part 2: until .* empty"),
        ([{"until": 0.5, "is": 1}], "part 1 is the last .* Found 0.5: what the rest of the run has is missing"),
        ([{"until": 0.5, "is": 1}, {"until": 0.8, "is": 2}], "part 2 is the last"),
        ([{"until": 1, "is": 1}, {"is": 2}], "part 1: until should be below 1"),
        ([{"is": 1}, {"is": 2}], "part 1 needs `until`"),
        *(
            ([{"until": bad, "is": 1}, {"is": 2}], "part 1: until should be a share of the run's steps")
            for bad in (0, -0.1, 1.5, float("nan"), float("inf"), True, "0.5", [0.5])
        ),
        ([{"untl": 0.5, "is": 1}, {"is": 2}], "Found 'untl'. Did you mean 'until'"),
        ([{"until": 0.5, "is": 1, 3: 4}, {"is": 2}], "Found 3"),
        ([{"until": 0.5}, {"is": 2}], "part 1 needs `is`.* Found until"),
        ([{}], "part 1 needs `is`.* Found no key"),
        ([{"is": 1, "ramp": True}], "part 1: ramp .* first part"),
        ([{"until": 0.5, "is": 1}, {"is": 2, "ramp": "yes"}], "part 2: ramp should be true or false"),
        ([{"until": 0.5, "is": 1}, {"is": [{"is": 3}]}], "part 2: .* schedule within"),
        ([{"until": 0.5, "is": 1}, {"is": "x"}], "objective, part 2: should be a number. Found 'x'"),
    ],
)
def test_bad_schedules_are_refused(parts, said):
    with pytest.raises(ConfigError, match=said):
        parse_schedule(parts, number, "objective")

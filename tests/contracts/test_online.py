"""What every online method of sampling/online keeps to."""

import math

import pytest
import torch

from corebatch.errors import ConfigError, InputError, NonFiniteError
from corebatch.sampling.online import ONLINE, OnlineShares, make_online, skill_graph
from corebatch.seeds import seeded

NAMES = ("algebra", "code", "law")
PRIOR = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
NEEDED = {
    "skill_it": {"graph": {"algebra": {"algebra": 1, "code": 0.5}, "law": {"law": 1}}, "period": 4},
    "doremi": {"reference_losses": {"algebra": 1.0, "code": 2.0, "law": 0.5}},
    "aioli": {"period": 20, "sweeps": 1},
}
WITH_HELD_OUT = {"skill_it", "aioli"}
methods = pytest.mark.parametrize("name", sorted(ONLINE))


def begun(name, **options):
    method = make_online(name, {**NEEDED.get(name, {}), **options})
    method.begin(NAMES, PRIOR, seed=3)
    return method


def feed(method, steps, first=1):
    """Steps with losses that fall, some of them of untrained sources, and gradients; the shares after each."""
    found = []
    for step in range(first, first + steps):
        draws = seeded(7, step)
        losses = torch.rand(3, generator=draws, dtype=torch.float64) + torch.tensor([3.0, 2.0, 1.0]) / step
        if not method.needs_held_out and step % 3 == 0:
            losses[step % 2] = math.nan
        rows = torch.randint(0, 5, (3,), generator=draws)
        features = [torch.randn(int(count), 6, generator=draws) for count in rows]
        if method.needs_gradients:
            method.observe_gradients(
                torch.stack([part.sum(0) for part in features]),
                torch.stack([part.square().sum() for part in features]),
                rows,
                rows * 10,
            )
        method.observe(losses, torch.tensor([10, 20, 30]), step)
        found.append(method.shares)
    return torch.stack(found)


@methods
def test_shares_sum_to_one_and_stay_above_the_floor(name):
    shares = feed(begun(name, floor=0.1), 60)
    assert shares.dtype == torch.float64
    torch.testing.assert_close(shares.sum(1), torch.ones(60, dtype=torch.float64))
    assert bool((shares >= 0.1 / 3 - 1e-12).all())


@methods
def test_shares_begin_equal_and_move(name):
    method = begun(name, floor=0.0)
    before = method.shares
    if name != "skill_it":  # which begins by its graph
        torch.testing.assert_close(before, torch.full((3,), 1 / 3, dtype=torch.float64))
    assert float((feed(method, 60)[-1] - before).abs().max()) > 1e-3


@methods
def test_a_floor_of_one_keeps_them_equal(name):
    method = begun(name, floor=1.0)
    shares = feed(method, 30)
    if name != "aioli":  # whose sweeps move away from it on purpose
        torch.testing.assert_close(shares, torch.full((30, 3), 1 / 3, dtype=torch.float64))


@methods
@pytest.mark.parametrize("cut", [1, 7, 23])
def test_a_state_that_is_loaded_goes_on_as_it_would_have(name, cut):
    whole, first, second = begun(name), begun(name), begun(name)
    expected = feed(whole, 50)
    feed(first, cut)
    second.load_state_dict({key: value.clone() for key, value in first.state_dict().items()})
    assert torch.equal(second.shares, first.shares)
    assert torch.equal(feed(second, 50 - cut, first=cut + 1), expected[cut:])
    if whole.average is not None:
        assert torch.equal(second.average, whole.average)


@methods
def test_the_same_losses_give_the_same_shares(name):
    assert torch.equal(feed(begun(name), 40), feed(begun(name), 40))


@methods
def test_a_state_is_of_tensors_that_a_file_can_hold(name, tmp_path):
    from safetensors.torch import load_file, save_file

    method = begun(name)
    feed(method, 9)
    save_file({key: value.contiguous() for key, value in method.state_dict().items()}, tmp_path / "state")
    other = begun(name)
    other.load_state_dict(load_file(tmp_path / "state"))
    assert torch.equal(other.shares, method.shares)


@pytest.mark.parametrize("name", sorted(set(ONLINE) - {"odm"}))
def test_it_can_begin_with_the_shares_of_the_data(name):
    method = begun(name, start="data", floor=0.0)
    if name == "skill_it":
        expected = PRIOR * torch.exp(0.2 * torch.tensor([1.5, 0, 1], dtype=torch.float64))
        torch.testing.assert_close(method.shares, expected / expected.sum())
    else:
        torch.testing.assert_close(method.shares, PRIOR)


@methods
def test_a_step_without_any_loss_changes_nothing(name):
    method = begun(name)
    if method.needs_held_out:
        with pytest.raises(NonFiniteError, match="algebra"):
            method.observe(torch.full((3,), math.nan), torch.zeros(3), 4)
        return
    before = method.shares
    method.observe(torch.full((3,), math.nan), torch.zeros(3), 1)
    assert torch.equal(method.shares, before)


@methods
def test_bad_losses_are_refused(name):
    method = begun(name)
    with pytest.raises(NonFiniteError, match=r"At step 4.*law"):
        method.observe(torch.tensor([1.0, 2.0, math.inf]), torch.ones(3), 4)
    with pytest.raises(InputError, match=r"shape \[3\]"):
        method.observe(torch.ones(2), torch.ones(3), 4)


@methods
def test_bad_options_are_refused(name):
    for option in ({"floor": -0.1}, {"floor": 1.1}, {"floor": math.nan}, {"floor": "much"}, {"florr": 0.1}):
        with pytest.raises(ConfigError, match=next(iter(option))):
            begun(name, **option)
    if name != "odm":
        with pytest.raises(ConfigError, match="start should be equal or data"):
            begun(name, start="mine")


@methods
def test_one_source_is_refused(name):
    with pytest.raises(ConfigError, match=r"two sources or more. Found only"):
        make_online(name, NEEDED.get(name)).begin(["only"], torch.ones(1))


@methods
def test_it_says_what_it_needs(name):
    method = begun(name)
    assert method.needs_held_out == (name in WITH_HELD_OUT)
    assert (method.due is not None) == method.needs_held_out
    assert method.needs_gradients == (name == "doge")


def test_names():
    assert all(ONLINE[name].name == name for name in ONLINE)
    with pytest.raises(ConfigError, match=r"Found 'od'. Did you mean 'odm'"):
        make_online("od")
    method = ONLINE["odm"]()
    assert make_online(method) is method
    assert isinstance(method, OnlineShares)
    with pytest.raises(ConfigError, match="go with a name"):
        make_online(method, {"alpha": 0.5})


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("odm", {"alpha": 1.0}, "alpha should be"),
        ("odm", {"start": "data"}, "takes alpha, floor. Found 'start'"),
        ("doremi", {"reference_losses": None}, "needs reference_losses"),
        ("doremi", {"reference_losses": {"algebra": 1, "code": 1}}, "Found none for law"),
        ("doremi", {"reference_losses": {"algebra": 1, "code": 1, "law": 1, "lwa": 1}}, "'lwa' .did you mean 'law'"),
        ("doremi", {"reference_losses": {"algebra": "low"}}, "reference_losses: algebra should be a number"),
        ("doremi", {"reference_losses": "nowhere.json"}, "nowhere.json"),
        ("doremi", {"reference_losses": [1, 2, 3]}, "numbers by source"),
        ("doremi", {"eta": 0}, "eta should be a number of above 0"),
        ("doremi", {"smoothing": 2}, "smoothing should be"),
        ("doge", {"targets": ["lore"]}, "targets should name sources: algebra, code, law. Found 'lore'"),
        ("doge", {"targets": "law"}, "targets should be a list"),
        ("doge", {"most": 0}, "most should be"),
        ("skill_it", {"graph": None}, "needs graph"),
        ("skill_it", {"graph": {"algebra": 1}}, "graph: algebra should be numbers by source"),
        ("skill_it", {"graph": {"algebra": {"code": None}}}, "graph: algebra: code should be a number"),
        ("skill_it", {"graph": {"algebra": {"coda": 1}}}, "graph: algebra should name sources.*'coda'"),
        ("skill_it", {"graph": {"geometry": {"code": 1}}}, "graph should name sources.*'geometry'"),
        ("skill_it", {"losses": "test"}, "losses should be held_out or training"),
        ("skill_it", {"period": 0}, "period should be an integer"),
        ("skill_it", {"window": 1.5}, "window should be an integer"),
        ("skill_it", {"targets": []}, "targets should be a list"),
        ("aioli", {"period": 13}, "4 x 3 x 1 = 12|1 x 3 x 4 = 12 steps.*Found period 13"),
        ("aioli", {"focus": 0.3}, "focus should be above 1/3"),
        ("aioli", {"focus": 1.2}, "focus should be a number"),
        ("aioli", {"ema": 1.0}, "ema should be"),
        ("aioli", {"sweeps": True}, "sweeps should be an integer"),
    ],
)
def test_options_of_a_method_are_checked(name, options, said):
    with pytest.raises(ConfigError, match=said):
        begun(name, **options)


def test_numbers_may_come_from_a_file(tmp_path):
    path = tmp_path / "losses.json"
    path.write_text('{"algebra": 1.0, "code": 2.0, "law": 0.5}')
    assert torch.equal(feed(begun("doremi", reference_losses=str(path)), 9), feed(begun("doremi"), 9))
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"losses\.json"):
        begun("doremi", reference_losses=str(path))


def test_a_graph_of_short_runs():
    graph = skill_graph({"a": 2.0, "b": 4.0}, {"a": {"a": 1.0, "b": 3.0}, "b": {"a": 2.5, "b": 1.0}})
    assert graph == {"a": {"a": 0.5, "b": 0.25}, "b": {"a": 0.0, "b": 0.75}}
    with pytest.raises(ConfigError, match="Found a difference in b"):
        skill_graph({"a": 2.0, "b": 4.0}, {"a": {"a": 1.0}})
    with pytest.raises(ConfigError, match="before: a should be"):
        skill_graph({"a": 0.0}, {})

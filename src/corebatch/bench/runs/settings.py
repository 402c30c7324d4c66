"""The `compare:` block of a config file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from corebatch.bench.runs.comparison import MEANS
from corebatch.config.coerce import block_of
from corebatch.errors import ConfigError
from corebatch.options import check_count


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How each method's learning rate and Adam's beta2 are found: by successive halving (arXiv 1502.07943).

    All candidates are trained for a share `shortest` of the method's own steps; the better half goes on with twice as
    many, from the start again, until one is left or the length is the whole run's.

    Attributes:
        seed: of data order, weights and selection; should not be one of the comparison's.
        learning_rates: absolute; None: `factors` times the config's own.
        factors: of the config's learning rate, where `learning_rates` is none.
        adam_beta2: values; None leaves the config's.
        metric: which held-out mean decides, on rows that the final evaluation does not see; empty: the one that the
            config's objective is about.
        shortest: the first candidates' share of the steps, in (0, 1].
        held_out: share of the held-out rows that is for tuning alone.
        rows: of these, used at most.
        enabled: False: every method takes the config's own values, and the outputs say so.
    """

    enabled: bool = True
    seed: int = 0
    learning_rates: tuple[float, ...] | None = None
    factors: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    adam_beta2: tuple[float, ...] | None = None
    shortest: float = 0.25
    metric: str = ""
    held_out: float = 1 / 3
    rows: int = 256


MINUTES = 10
QUICK: Mapping[str, Any] = {
    "arms": ["plain_sorted", "plain_large_sorted", "tokens_importance"],
    "seeds": 3,
    "tune": {"enabled": False},
    "evaluations": 4,
    "curve_rows": 64,
    "final_rows": 256,
    "timing_pools": 3,
    "timing_rounds": 3,
}
"""Keys of the `compare:` block as `compare --quick` has them where the config has none."""


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """The keys of the `compare:` block.

    Attributes:
        arms: names in `METHODS`, with "@steps" or "@flops" for another budget than equal wall-clock. The config's own
            `coreset:` block is always the first arm. None: DEFAULT_ARMS, and OBJECTIVE_ARMS where the objective is
            another than the plain Trainer's.
        extra_arms: name -> {title, coreset, training, baseline, large, subset}.
        seeds: a number n (1 to n), or a list.
        tune: how each arm's rates are found (`TuneSettings`).
        evaluations: points of each curve of held-out loss.
        curve_rows: held-out rows of a point.
        final_rows: of the final evaluation; None: all that are not for tuning. The rows of the curve are among them.
        eval_rows: rows of an evaluation's forward.
        timing_pools: of a round, on which each arm is timed, pool_factor times over; each round has others.
        timing_rounds: in each of which all arms are timed in turn; up to four times as many where needed.
        kept: sources whose held-out loss is to be kept while others are trained for: the mean over them ("kept") and
            that over all others ("target") stand beside the other means. Empty: those that are replayed.
        tasks: evaluated at the end of each run; written as for `corebatch evaluate`.
        advice: an advice.json, or its folder: the report has what it expected beside what was measured. None: the one
            that `corebatch advise` wrote for this config, if there is one of this model and these data.
        smallest_effect: in nats a token: for which `--plan` tells the number of seeds.
        processes: side by side; None: one a GPU; without one, one a core where the model has up to 200 M parameters
            and memory holds them, else one.
        devices: indices of GPUs; None: all.
        threads: of each process on CPU; None: the cores over the processes.
    """

    arms: tuple[str, ...] | None = None
    extra_arms: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)
    tune: TuneSettings = TuneSettings()
    evaluations: int = 8
    curve_rows: int = 128
    final_rows: int | None = None
    eval_rows: int = 32
    timing_pools: int = 6
    timing_rounds: int = 3
    kept: tuple[str, ...] = ()
    tasks: tuple[Any, ...] = ()
    advice: str | None = None
    smallest_effect: float = 0.01
    processes: int | None = None
    devices: tuple[int, ...] | None = None
    threads: int | None = None

    @classmethod
    def from_dict(cls, block: Any) -> CompareSettings:
        """Raises ConfigError for an unknown key, or a value out of range."""
        values = block_of(block, cls, "compare")
        tune = block_of(values.pop("tune", None), TuneSettings, "compare.tune")
        for key in ("learning_rates", "factors", "adam_beta2"):
            if tune.get(key) is not None:
                tune[key] = tuple(_number(x, f"compare.tune.{key}") for x in _list(tune[key], f"compare.tune.{key}"))
        for key in ("arms", "kept", "tasks", "devices"):
            if values.get(key) is not None:
                values[key] = tuple(_list(values[key], f"compare.{key}"))
        seeds = values.get("seeds")
        if isinstance(seeds, int) and not isinstance(seeds, bool):
            values["seeds"] = tuple(range(1, seeds + 1))
        elif seeds is not None:
            values["seeds"] = tuple(_list(seeds, "compare.seeds"))
        made = cls(**values, tune=TuneSettings(**tune))
        made._check()
        return made

    def _check(self) -> None:
        tune = self.tune
        if not self.seeds or len(set(self.seeds)) < len(self.seeds) or not all(_whole(s, 0) for s in self.seeds):
            raise ConfigError(f"compare.seeds should be different integers of at least 0. Found {list(self.seeds)}.")
        if tune.enabled and tune.seed in self.seeds:
            raise ConfigError(
                f"compare.tune.seed should be a seed of its own, so that no arm is tuned on what it is compared on. "
                f"Found {tune.seed}, which is one of compare.seeds."
            )
        for name in ("evaluations", "curve_rows", "eval_rows", "timing_pools", "timing_rounds"):
            check_count(f"compare.{name}", getattr(self, name))
        check_count("compare.tune.rows", tune.rows)
        for name in ("processes", "threads", "final_rows"):
            if getattr(self, name) is not None:
                check_count(f"compare.{name}", getattr(self, name), more=", or none")
        if not isinstance(self.smallest_effect, int | float) or not self.smallest_effect > 0:
            raise ConfigError(f"compare.smallest_effect should be above 0. Found {self.smallest_effect!r}.")
        if self.advice is not None and not isinstance(self.advice, str):
            raise ConfigError(f"compare.advice should be a path. Found {self.advice!r}.")
        if not isinstance(self.extra_arms, Mapping):
            raise ConfigError(f"compare.extra_arms should be a block of arms. Found {self.extra_arms!r}.")
        if tune.metric and tune.metric not in MEANS:
            raise ConfigError(f"compare.tune.metric should be {', '.join(MEANS)}. Found {tune.metric!r}.")
        for name in ("shortest", "held_out"):
            value = getattr(tune, name)
            if not isinstance(value, int | float) or not 0 < value <= (1 if name == "shortest" else 0.9):
                raise ConfigError(f"compare.tune.{name} should be a share above 0. Found {value!r}.")
        for name in ("learning_rates", "factors", "adam_beta2"):
            for value in getattr(tune, name) or ():
                if value <= 0 or (name == "adam_beta2" and value >= 1):
                    raise ConfigError(f"compare.tune.{name}: {value} is out of range.")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{where} should be a list. Found {value!r}.")
    return list(value)


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{where} should be numbers. Found {value!r}.") from None


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least

"""The `subset:` block of a config file: which rows are kept once, and by what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from corebatch.config.coerce import block_of
from corebatch.errors import ConfigError
from corebatch.mixture import DatasetSpec, parse_specs
from corebatch.options import check_count
from corebatch.scoring import SCORERS, Scorer, make_scorer
from corebatch.subset import SubsetMethod, make_subset
from corebatch.subset.keeping import budget_of

OF_LOSSES = ("forgetting", "excess_loss")
"""Scores that are computed from losses by several models."""


@dataclass(frozen=True, kw_only=True)
class FeatureSettings:
    """What rows are compared by.

    Attributes:
        scorer, options: as `coreset.scorer` and `coreset.scorer_options`.
        width: wider features are projected to so many columns (Gaussian: inner products are kept in expectation).
    """

    scorer: str = "representation"
    options: Mapping[str, Any] = field(default_factory=dict)
    width: int = 1024

    def make(self) -> Scorer:
        """Raises ConfigError for an unknown scorer or option."""
        return make_scorer(self.scorer, self.options)


@dataclass(frozen=True, kw_only=True)
class SubsetSettings:
    """The keys of the `subset:` block.

    Attributes:
        method, options: of `corebatch.subset.SUBSETS`.
        keep: the share of rows that is kept, in (0, 1].
        model: scores in the place of the config's model, with its own tokenizer; None: the config's.
        features: what rows are compared by, where the method compares rows.
        score: what a method of difficulty goes by: a scorer of one column ("loss", "el2n", "gradient_norm"),
            "forgetting" (in how many steps from one of `states` to the next, the model last, the row's loss rises) or
            "excess_loss" (the model's loss less that of `reference`); by default the method's own.
        scores: scores of one's own in its place: the path of a .npy file with a number for each row as it is read, or
            the name of a column of the rows.
        reference: a model for "excess_loss".
        states: models in the order of training, for "forgetting" and for methods that need losses by several.
        target: `datasets`, the rows that those kept are to be like, for methods with a target.
        output: the folder; None: the config's output_dir with "-subset" behind it.
    """

    method: str
    keep: float
    options: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    features: FeatureSettings = FeatureSettings()
    score: str = "loss"
    scores: str | None = None
    reference: str | None = None
    states: tuple[str, ...] = ()
    target: tuple[DatasetSpec, ...] = ()
    output: str | None = None

    @classmethod
    def from_dict(cls, block: Any) -> SubsetSettings:
        """Raises ConfigError for an unknown key, a value out of range, a key that the method does not use, or one that
        it needs and is missing."""
        values = block_of(block, cls, "subset")
        for key in ("method", "keep"):
            if values.get(key) is None:
                raise ConfigError(f"subset.{key} should be given. Found none.")
        given = {key for key, value in values.items() if value is not None}
        values = {key: value for key, value in values.items() if value is not None}
        if "features" in values:
            values["features"] = FeatureSettings(**block_of(values["features"], FeatureSettings, "subset.features"))
        if "target" in values:
            target = block_of(values["target"], _Target, "subset.target")
            values["target"] = tuple(parse_specs(target.get("datasets") or (), "subset.target.datasets"))
        if "states" in values:
            states = values["states"]
            if not isinstance(states, list | tuple) or not all(isinstance(each, str) and each for each in states):
                raise ConfigError(f"subset.states should be a list of models. Found {states!r}.")
            values["states"] = tuple(states)
        made = cls(**values)
        made._check(given)
        return made if "score" in given else replace(made, score=made.made.score)

    @property
    def needs(self) -> frozenset[str]:
        """Which fields of `SubsetProblem` the method needs."""
        return self.made.requires

    @property
    def made(self) -> SubsetMethod:
        """The method."""
        return make_subset(self.method, self.options)

    def _check(self, given: set[str]) -> None:
        for key in ("model", "score", "scores", "reference", "output"):
            if not isinstance(getattr(self, key), str | None):
                raise ConfigError(f"subset.{key} should be text. Found {getattr(self, key)!r}.")
        if not isinstance(self.options, Mapping):
            raise ConfigError(f"subset.options should be a block of keys and values. Found {self.options!r}.")
        needs = self.needs
        budget_of(self.keep, 1)
        check_count("subset.features.width", self.features.width)
        self.features.make()
        if self.score not in (*SCORERS, *OF_LOSSES):
            known = ", ".join(dict.fromkeys((*SCORERS, *OF_LOSSES)))
            raise ConfigError(f"subset.score should be one of {known}. Found {self.score!r}.")
        by_losses = "losses" in needs or ("scores" in needs and self.scores is None and self.score == "forgetting")
        excess = "scores" in needs and self.scores is None and self.score == "excess_loss"
        uses = {
            "features": bool({"features", "target"} & needs),
            "score": "scores" in needs and self.scores is None,
            "scores": "scores" in needs,
            "reference": excess,
            "states": by_losses,
            "target": bool({"target", "target_texts"} & needs),
        }
        for key, used in uses.items():
            if key in given and not used:
                by = f"method {self.method!r}" + (f" and score {self.score!r}" if "scores" in needs else "")
                raise ConfigError(f"subset.{key} does nothing beside {by}. Found it: leave it out.")
        for key, needed in (("reference", excess), ("target", uses["target"])):
            if needed and not getattr(self, key):
                raise ConfigError(f"subset.{key} is needed by method {self.method!r}. Found none.")
        if by_losses and not self.states:
            raise ConfigError(
                f"subset.states should list models in the order of training, by whose losses method {self.method!r} "
                "goes. Found none."
            )


@dataclass(frozen=True, kw_only=True)
class _Target:
    """The keys of `subset.target`."""

    datasets: Any = None

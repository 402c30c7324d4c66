"""The settings of the method. Field names are the keys of the `coreset:` block in a config file."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

from corebatch.batch.budget import CONSTANT
from corebatch.batch.cuts import Cut, make_cut
from corebatch.batch.feedback import make_feedback
from corebatch.batch.method import CoresetStep
from corebatch.batch.strategies import Strategy, Unscored, make_strategy, shortest
from corebatch.batch.target_settings import make_target
from corebatch.errors import ConfigError
from corebatch.options import check_count, hint
from corebatch.sampling.shares import make_sampling
from corebatch.scoring import Scorer, Tokens, make_scorer
from corebatch.selectors import Selector, make_selector
from corebatch.sources import Leftovers, SmallSources, check_cap, small_candidates
from corebatch.trainer.auto import AUTO, is_auto, resolved
from corebatch.trainer.claiming import ClaimSettings
from corebatch.trainer.noise_checks import NoiseSettings
from corebatch.trainer.online import check_followed
from corebatch.trainer.recipes import plain_values, recipe
from corebatch.transforms import Normaliser, Sparsifier, make_normaliser, make_sparsifier

MOST = 2**20
"""Rows drawn for one that is trained, at most."""


def ScoringConfig(*, way: str = "auto", **options: Any) -> Strategy:
    """A way of scoring with options of its own, checked; the same as a mapping with the key `way`.

    Raises:
        ConfigError: an unknown way or option, a value out of range, or an option that would do nothing.
    """
    return make_strategy({"way": way, **options})


@dataclass(frozen=True, kw_only=True)
class CoresetConfig(ClaimSettings, NoiseSettings):
    """How the small batch is chosen. `CoresetConfig()` is the recommended setting.

    Attributes:
        pool_factor: how many times more examples are drawn than are trained, at least 1. With 1 every row is trained,
            as in the plain Trainer: what says how rows are scored and chosen plays no part.
            `per_device_train_batch_size` and `gradient_accumulation_steps` keep their meaning: what is trained.
        scorer: a name in `corebatch.scoring.SCORERS`, an instance, or "auto": `label_counts`, which needs no forward,
            and `last_layer` where a selector, a way of scoring, scorer_options, normalise or sparsify is named. Once
            made, a config holds what "auto" stands for, here and below.
        scorer_options, selector_options: keyword arguments of one given by name.
        selector: a name in `corebatch.selectors.SELECTORS`, an instance, or "auto": `balanced` on `label_counts` or
            with feedback, else `cube`.
        normalise: "optimizer" (scale by the live optimizer's second moments), "sgd", "muon", "adam" (CoLM's map with a
            history of its own; for uniform selectors), an instance, or none.
        sparsify: "topk" (CoLM's, per source; for uniform selectors), "projection", an integer h (topk with h
            coordinates), an instance, or none.
        small_sources: sources that are kept whole: "auto" (share of the data set below 1 / number of sources), a list
            of names, or none. All of them are kept, as in the official code of CoLM; a weighted selector leaves one row
            at least to the others. Keeping sources changes the mixture that is trained.
        small_sources_cap: the share of the small batch, in (0, 1], that they take together, at most: they are kept from
            the smallest up while they do. None: no cap.
        leftovers: how selectors that choose per source round their budgets: "random", which is right in expectation, or
            "smallest", by which leftovers go to the smallest budgets, as in the official code of CoLM.
        source_column: the data set's column that names an example's source. Without such a column, or with "none",
            there is one source.
        feedback: the share of the sum of past errors that the next choice makes up for (error feedback), in [0, 1), for
            a selector that can (`balanced`), or a mapping of `rho`, this share, and `examples` (`batch/feedback.py`);
            "auto": 0.99 on `label_counts` where the selector is "auto" too, else none: each step is chosen by itself.
        seed: of all randomness of scoring and selection.
        objective: what a step claims, at every pool_factor (`corebatch.objective`): "tokens", the mean over trained
            tokens, as in the Trainer (the default); "examples", the mean over examples of each one's mean, as in the
            official CoLM code; "sources", where every source counts alike; shares of sources; {"temperature": T};
            "drawn", what `sampling` makes of the data; {"online": name, ...}, shares that follow the run
            (`corebatch.sampling.online`); or a schedule, a list of {"until": 0.8, "is": ...}. Rows are the likelier to
            be chosen the more they count, and have weights by which the update's mean is the claimed one.
        loss: `objective` by other names: "token_mean" for "tokens", "example_mean" for "examples".
        weight_column: the data set's column with a number of at least 0 for each example, which multiplies what the
            objective has it count; none: ones.
        source_tokens: trained tokens of each source, by name, or numbers in proportion to them, for objectives that go
            by source; counted over the data set if not given, which a stream cannot be.
        scoring: how the pool gets its features: a way ("auto", "full", "window", "first_blocks", "every", "remembered",
            "two_phase", "none"), a mapping of the key `way` and its options, or a `ScoringConfig`; see
            `corebatch.batch.strategies`. "auto" runs no forward for it unless something that is given asks for one.
        padding_free: whether a micro-batch is trained as one row without padding, its examples kept apart by their
            positions: True, False, or "auto": where the model runs flash attention and passes a numerical check.
        micro_batches: how a step's rows are cut into micro-batches: "plain", "length", "positions", "flops", "auto",
            or a mapping of `by` and the options of `corebatch.batch.cuts.Cut` (`most`, `multiple`). The update is the
            same. "auto" is "positions" with pool_factor above 1, and "plain" with 1.
        track_error: at every so-many-th step the exact gradients of the large and the small batch are compared, and
            the numbers go into the record and the log; 0 is never. Training is the same bit for bit. Such a step
            costs a forward and a backward of every row that was drawn, and a second one of the chosen rows.
        sampling: how often the rows of each source come, a mapping of `shares` or `temperature`, `epochs` and `until`
            (`corebatch.sampling.shares.Sampling`); or {"learnt": method}, which rows come in a pass by what they have
            taught (`corebatch.sampling.learnt`); None: as the Trainer draws them.
        by_length: each step's rows are of about one length, the more of them the shorter they are, so that all steps
            have the positions of per_device_train_batch_size rows of the longest: a mapping of the keys of
            `corebatch.sampling.by_length.ByLength`; None: rows come whatever their length.
        replay: sources that each step trains a share of, {"general": 0.05}: so many of its rows, rounded at random, are
            of that source, chosen apart. `sampling`, where it says nothing of them, draws them as often, and "tokens"
            becomes an objective with these shares. With pool_factor 1 they have their shares of what is drawn.
        target: a mapping of `every` and `rows` for a selector that follows a target (`greats`): at every so-many-th
            step the gradients of so many rows of the Trainer's `target_dataset` are looked at; those are never trained.
        budget: how many rows a step trains: "constant", as configured; or a batch that grows, "ramp", "noise" or
            "adadagrad", or a mapping of one to its options (`corebatch.batch.budget`).
        loss_by_source: whether the training loss of each source goes into the record and the log, from the forwards
            that train; "auto": where the step is ours and the data have several sources. True also where everything
            else is left to the plain Trainer, whose update stays the same bit for bit.
        noise_scale: whether the gradient's noise goes there (`corebatch.trainer.noise`), of every step, or every
            so-many-th, where rows that are else chosen jointly come at random; "auto": every tenth, if it can be told.
    """

    pool_factor: int = 2
    scorer: str | Scorer = AUTO
    scorer_options: Mapping[str, Any] = field(default_factory=dict)
    selector: str | Selector = AUTO
    selector_options: Mapping[str, Any] = field(default_factory=dict)
    normalise: str | Normaliser | None = None
    sparsify: str | int | Sparsifier | None = None
    small_sources: SmallSources = None
    small_sources_cap: float | None = None
    leftovers: Leftovers = "random"
    source_column: str = "source"
    feedback: float | str | Mapping[str, float] | None = AUTO
    seed: int = 0
    scoring: str | Mapping[str, Any] | Strategy = "auto"
    padding_free: bool | str = "auto"
    micro_batches: str | Mapping[str, Any] | Cut = "auto"
    track_error: int = 0
    loss_by_source: bool | str = "auto"

    def __post_init__(self) -> None:
        for name, least, most in (("pool_factor", 1, MOST), ("seed", 0, 2**63 - 1), ("track_error", 0, 10**9)):
            value = getattr(self, name)
            check_count(f"coreset.{name}", value, least=least)
            if value > most:
                raise ConfigError(f"coreset.{name} should be at most {most:,}. Found {value:,}.")
        for name in ("padding_free", "loss_by_source"):
            if not isinstance(getattr(self, name), bool) and getattr(self, name) != "auto":
                raise ConfigError(f"coreset.{name} should be true, false or auto. Found {getattr(self, name)!r}.")
        for name in ("scorer_options", "selector_options"):
            if not isinstance(getattr(self, name), Mapping):
                raise ConfigError(f"coreset.{name} should map options to values. Found {getattr(self, name)!r}.")
        if not isinstance(self.source_column, str) or not self.source_column:
            raise ConfigError(f"coreset.source_column should be the name of a column. Found {self.source_column!r}.")
        for name in ("small_sources", "small_sources_cap", "feedback"):
            if isinstance(getattr(self, name), str) and getattr(self, name) == "none":
                object.__setattr__(self, name, None)
        self._resolve()
        self.settle()
        small_candidates({}, [], self.small_sources)
        check_cap(self.small_sources_cap, self.small_sources)
        make_feedback(self.feedback, self.seed)
        if self.cut.multiple > 1 and self.padding_free is True:
            raise ConfigError(
                f"coreset.micro_batches.multiple rounds up what rows are padded to. Found {self.cut.multiple} beside "
                "coreset.padding_free true, where nothing is padded."
            )
        self._check_every_row()
        self.check_noise_scale()
        if self.leftovers not in get_args(Leftovers):
            raise ConfigError(f"coreset.leftovers should be random or smallest. Found {self.leftovers!r}.")
        step = self.build()  # an unknown name, option or combination is an error here, before anything is loaded
        self._check_scoring(step)
        check_followed(self.claimed, self, step.scorer.name)

    def _resolve(self) -> None:
        """Puts what "auto" stands for in its place, and keeps in mind where that was."""
        given = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        made = resolved(given, self.scoring_settings)
        object.__setattr__(self, "_automatic", tuple(key for key in made if is_auto(given[key])))
        for key, value in made.items():
            object.__setattr__(self, key, value)

    def changed(self, **settings: Any) -> CoresetConfig:
        """With other fields; what was "auto" is found anew.

        Raises:
            ConfigError: a value out of range, or settings that do not go together.
        """
        stale = {"objective": {"loss": AUTO}, "loss": {"objective": AUTO}}  # one stands for the other
        given = {key: value for name in stale if name in settings for key, value in stale[name].items()}
        if "replay" in settings and self.replay is not None:  # what came of it goes with it
            if self.objective == self.replay:
                given |= {"objective": AUTO, "loss": AUTO}
            if self.sampling == make_sampling({"shares": self.replay}):
                settings = {"sampling": None, **settings}
        return dataclasses.replace(self, **{**dict.fromkeys(self.automatic, AUTO), **given, **settings})

    @property
    def automatic(self) -> tuple[str, ...]:
        """The fields that were "auto"."""
        found: tuple[str, ...] = self._automatic  # type: ignore[attr-defined]
        return found

    @property
    def cut(self) -> Cut:
        """`micro_batches`, with "auto" resolved."""
        return make_cut(self.micro_batches, pool_factor=self.pool_factor)

    @property
    def takes_part(self) -> bool:
        """Whether a step goes through our hands: its rows are chosen, weighed, put together anew or told of by
        source, or they come more or less often."""
        told = self.weighs or self.sampling is not None or self.loss_by_source is True or self.by_length is not None
        told = told or self.budget is not None or self.asks_for_noise
        return told or self.pool_factor > 1 or self.cut.regroups

    def _check_every_row(self) -> None:
        """Raises ConfigError for settings that a step which trains every row cannot honor; a plain cut leaves the step
        to the Trainer."""
        if self.pool_factor > 1 or not self.takes_part:
            return
        if self.track_error:
            raise ConfigError(
                f"coreset.track_error compares what is trained with what was drawn, which is the same with pool_factor "
                f"1. Found {self.track_error}. Set it to 0."
            )

    @cached_property
    def scoring_settings(self) -> Strategy:
        """`scoring`, checked."""
        return make_strategy(self.scoring)

    def _check_scoring(self, step: CoresetStep) -> None:
        """Raises ConfigError for a way of scoring that the other settings leave no room for, or replay beside what
        chooses sources apart by itself."""
        if self.replay is not None and self.pool_factor > 1:
            found = "small_sources" if self.small_sources is not None else ""
            found = f"selector {step.selector.name}" if step.selector.per_source else found
            found = found or f"scoring {self.scoring_settings.way}" * (not _one_choice(self, self.scoring_settings))
            if found:
                raise ConfigError(
                    f"coreset.replay chooses the rows of its sources apart, in one choice of a step with the others. "
                    f"Found {found}, which chooses in parts of its own."
                )
        for fits, found in self.scoring_settings.needs(self, step):
            if not fits:
                raise ConfigError(f"coreset.scoring {self.scoring_settings.way!r} needs {found}.")

    def resolve_scoring(self, again: bool, *, taught: bool = True) -> Strategy:
        """`scoring` with "auto" resolved.

        Args:
            again: whether the run will see examples more than once.
            taught: whether the training backward gives features of what it trains.
        """
        if self.pool_factor == 1:
            return Unscored()
        step = self.build()
        return self.scoring_settings.resolve(
            again,
            lambda strategy: all(fits for fits, _ in strategy.needs(self, step)) and _one_choice(self, strategy),
            taught=taught and step.selector.draws,
        )

    def step_of_run(self) -> CoresetStep:
        """The step of a run, with a state of its own: where every row is trained, one that looks at nothing."""
        if self.pool_factor > 1:
            return self.build()
        return CoresetStep(scorer=Tokens(), selector=make_selector("random", {}), seed=self.seed)

    def build(self) -> CoresetStep:
        """The step, with a state of its own.

        Raises:
            ConfigError: an unknown name or option, or settings that do not go together.
        """
        return CoresetStep(
            scorer=make_scorer(self.scorer, self.scorer_options),
            selector=make_selector(self.selector, self.selector_options),
            normalise=make_normaliser(self.normalise),
            sparsify=make_sparsifier(self.sparsify),
            feedback=make_feedback(self.feedback, self.seed),
            small_sources_cap=self.small_sources_cap,
            leftovers=self.leftovers,
            seed=self.seed,
            loss=self.unit,
            target=make_target(self.target),
        )

    @classmethod
    def colm(cls, **settings: Any) -> CoresetConfig:
        """The faithful recipe of CoLM (arXiv 2407.19580): zeroth order in one direction, the per-example Adam map, the
        2,560 largest coordinates per source, facility location on l1 distances, all small sources kept, uniform
        weights, the mean of per-example means. `settings` replace single fields."""
        return cls(**recipe("colm", settings))

    @classmethod
    def following(cls, **settings: Any) -> CoresetConfig:
        """No forward for choosing: `balanced` on label counts with error feedback, so that the weighted counts of what
        is trained, and every source's weight, follow the large batch's over steps. `settings` replace single fields."""
        return cls(**recipe("following", settings))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any] | None) -> CoresetConfig:
        """From the `coreset:` block of a config file. The key `recipe` names a starting point ("recommended",
        "following" or "colm") that the other keys change.

        Raises:
            ConfigError: an unknown key or a value out of range.
        """
        if settings is not None and not isinstance(settings, Mapping):
            raise ConfigError(f"coreset should be a block of keys and values. Found {settings!r}.")
        settings = dict(settings or {})
        named = recipe(settings.pop("recipe", "recommended"), settings)
        known = [f.name for f in dataclasses.fields(cls)]
        for key in settings:
            if key not in known:
                raise ConfigError(f"coreset has the keys {', '.join(known)}. Found {key!r}.{hint(key, known)}")
        return cls(**named)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a run's record; an instance is written as its repr, and `scoring` and `micro_batches`
        in their shortest form, so that two ways to write the same settings make the same record."""
        plain = {f.name: plain_values(getattr(self, f.name)) for f in dataclasses.fields(self)}
        short = {"scoring": shortest(self.scoring_settings), "micro_batches": self.cut.plain()}
        sampling = None if self.sampling is None else self.sampling.plain()
        by_length = None if self.by_length is None else self.by_length.plain()
        budget = CONSTANT if self.budget is None else self.budget.plain()
        orders = {"sampling": sampling, "by_length": by_length, "budget": budget}
        return {**plain, **short, "objective": self.claimed.plain(), **orders}


def _one_choice(coreset: CoresetConfig, strategy: Strategy) -> bool:
    """Whether all of a step's rows are chosen together, where that matters."""
    return coreset.replay is None or strategy.way in ("auto", "full", "window", "first_blocks", "none")

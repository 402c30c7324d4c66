"""Of a config's data set the rows that are kept: what the method needs is scored, then it chooses."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import set_seed

from corebatch.config.building import load_model, load_tokenizer, read_mixture
from corebatch.config.settings import Settings
from corebatch.errors import ConfigError
from corebatch.launch.subset_given import RowTexts, given_scores
from corebatch.launch.subset_scoring import ScoredRows, key_of, score_rows
from corebatch.launch.subset_settings import SubsetSettings
from corebatch.mixture import Mixture, PaddingCollator, row_lengths, row_sources
from corebatch.scoring import Scorer, make_scorer
from corebatch.subset import Matrix, Subset, keep_rows
from corebatch.text import say


@dataclass(kw_only=True)
class SubsetJob:
    """A subset that is to be chosen.

    Attributes:
        settings: of the config, with the model that scores.
        own: the `subset:` block.
        folder: of the numbers of passes.
        console: where passes are told of.
        models: path of each model that scored -> what it is known again by.
        seconds: of scoring, those of earlier starts included, and of choosing.
    """

    settings: Settings
    own: SubsetSettings
    folder: Path
    console: Console
    models: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=lambda: {"scoring": 0.0, "choosing": 0.0})

    @classmethod
    def of(cls, settings: Settings, own: SubsetSettings, folder: Path, console: Console) -> SubsetJob:
        """Raises ConfigError: what a subset cannot be chosen of."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ConfigError("A subset is chosen in one process. Found several (WORLD_SIZE).")
        for spec in settings.data.datasets:
            if spec.times != 1:
                raise ConfigError(
                    f"datasets: `weight` and `repeat` of {spec.path!r} say how often rows come in training, and a "
                    f"subset is of the rows as they are. Found {spec.times:g}: leave it out, or give "
                    "coreset.sampling.shares for training."
                )
        if settings.data.train_turns == "each":
            raise ConfigError("train_turns: each makes several rows of one, of which a file cannot keep some.")
        if own.model is not None:
            settings = with_model(settings, own.model)
        return cls(settings=settings, own=own, folder=folder, console=console)

    @property
    def seed(self) -> int:
        """Of all randomness."""
        return int(self.settings.training.get("seed", 42))

    def choose(self, mixture: Mixture, tokenizer: Any) -> Subset:
        """Scores what the method needs and chooses. Raises CorebatchError: whatever can be wrong with data, models and
        options."""
        own, needs = self.own, self.own.needs
        target = self._target(tokenizer) if own.target else None
        given: dict[str, Any] = {}
        if "features" in needs:
            given["features"] = self._pass("features", own.features.make(), mixture, tokenizer).features
        if "target" in needs and target is not None:
            given["target"] = self._pass("target", own.features.make(), target, tokenizer).features
        if "losses" in needs:
            given["losses"] = Matrix(self._losses(mixture, tokenizer), "losses")
        if "scores" in needs:
            given["scores"] = self._scores(mixture, tokenizer)
        if "texts" in needs:
            given["texts"] = RowTexts(mixture.dataset, tokenizer)
        if "target_texts" in needs and target is not None:
            given["target_texts"] = RowTexts(target.dataset, tokenizer)
        say(self.console, f"Choosing {own.keep:g} of {len(mixture.dataset):,} rows by {own.method}")
        began = time.perf_counter()
        kept = keep_rows(
            len(mixture.dataset),
            own.keep,
            own.made,
            sources=row_sources(mixture.dataset),
            tokens=torch.from_numpy(np.array(row_lengths(mixture.dataset), dtype=np.int64)),
            seed=self.seed,
            **given,
        )
        self.seconds["choosing"] = time.perf_counter() - began
        return kept

    def _target(self, tokenizer: Any) -> Mixture:
        data = dataclasses.replace(self.settings.data, datasets=self.own.target)
        coreset = self.settings.coreset.changed(weight_column=None)
        return read_mixture(dataclasses.replace(self.settings, data=data, coreset=coreset), tokenizer)

    def _scores(self, mixture: Mixture, tokenizer: Any) -> Tensor:
        """A difficulty of each row: float64 [N]."""
        own = self.own
        if own.scores is not None:
            return given_scores(own.scores, mixture, self.settings.coreset)
        if own.score == "loss":
            return self._loss(mixture, tokenizer)
        if own.score == "forgetting":
            return (self._losses(mixture, tokenizer).diff(dim=1) > 0).sum(dim=1).double()
        if own.score == "excess_loss":
            return self._loss(mixture, tokenizer) - self._loss(mixture, tokenizer, own.reference)
        found = self._pass(f"score-{own.score}", make_scorer(own.score), mixture, tokenizer).features
        if found.width != 1:
            raise ConfigError(f"subset.score should be a scorer of one column. Found {own.score!r} with {found.width}.")
        return torch.cat([block for _, block in found.blocks()])[:, 0].double()

    def _losses(self, mixture: Mixture, tokenizer: Any) -> Tensor:
        """Mean token losses by the states in their order and the model: float64 [N, Q]."""
        columns = [self._loss(mixture, tokenizer, path) for path in self.own.states]
        return torch.stack([*columns, self._loss(mixture, tokenizer)], dim=1)

    def _loss(self, mixture: Mixture, tokenizer: Any, path: str | None = None) -> Tensor:
        """Mean token losses by a model, or by the one that scores: float64 [N]."""
        name = "loss" if path is None else f"loss-{hashlib.sha256(path.encode()).hexdigest()[:8]}"
        found = self._pass(name, make_scorer("loss"), mixture, tokenizer, path).losses
        assert found is not None
        return found

    def _pass(self, name: str, scorer: Scorer, mixture: Mixture, tokenizer: Any, path: str | None = None) -> ScoredRows:
        """The numbers of a scorer for all rows, made or gone on with. `path`: of another model."""
        settings = self.settings if path is None else with_model(self.settings, path)
        model_path, width = settings.model.model_name_or_path, self.own.features.width
        if path is not None and load_tokenizer(settings.model).get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                f"subset: {path} should have the vocabulary of {self.settings.model.model_name_or_path}, whose tokens "
                "it is given. Found another."
            )
        set_seed(self.seed)  # adapters are drawn
        model = load_model(settings)
        on_gpu = torch.cuda.is_available() and not settings.training.get("use_cpu")
        model = model.to("cuda") if on_gpu and not settings.model.load_in_4bit else model
        key = key_of(model, mixture.dataset, scorer, width, self.seed)
        scored = ScoredRows(self.folder / name, key, len(mixture.dataset), anew=settings.overwrite)
        self.models[model_path] = key["model"]
        if scored.done < scored.count:
            on = f", going on at row {scored.done:,}" if scored.done else ""
            say(self.console, f"Scoring {scored.count:,} rows by {scorer.name} of {model_path}{on}")
            rows = int(settings.training.get("per_device_train_batch_size", 8))
            positions, collate = rows * settings.data.max_length, PaddingCollator(tokenizer)
            score_rows(
                scored, model, mixture.dataset, collate, scorer, positions=positions, width=width, seed=self.seed
            )
        self.seconds["scoring"] += scored.seconds
        return scored


def with_model(settings: Settings, path: str) -> Settings:
    """The settings with another model, without adapters."""
    model = dataclasses.replace(settings.model, model_name_or_path=path, model_revision=None)
    return dataclasses.replace(settings, model=model, lora=False)

"""How the pool gets its features: exactly, cheaply, or from memory. The `scoring:` key of the `coreset:` block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from corebatch.errors import ConfigError
from corebatch.options import hint

Way = Literal["auto", "full", "window", "first_blocks", "every", "remembered", "two_phase", "none"]

_REUSE = ("reuse", "reuse_place", "reuse_gb")
OWN_OPTIONS: dict[str, tuple[str, ...]] = {
    "auto": _REUSE,
    "full": _REUSE,
    "window": ("tokens",),
    "first_blocks": ("blocks",),
    "every": ("steps", "max_age", "learn", *_REUSE),
    "remembered": ("max_age", "unknown", "learn", *_REUSE),
    "two_phase": ("share", "proxy", "learn", *_REUSE),
    "none": (),
}
"""Each way, and the options that it takes beside `rows`."""

FROM_MEMORY = ("every", "remembered", "none")
"""Ways in which some features are not computed at this step."""


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How the pool of a step gets its features. In a config file a way alone is short for `{way: ...}`.

    With every way but "full" some features are approximate or unknown. They steer which examples are likely to be
    chosen; the weights M / (N pi) keep the estimate of the large batch's gradient honest whatever the proxy.

    Attributes:
        way: "auto": "remembered" with `unknown: score` where examples come again (more than one epoch) and the other
            settings go with it, else "full": every example is scored in the first epoch, and none after it.
            "full": the scorer on every example at every step.
            "window": the scorer on a window of `tokens` tokens of each example, from a quarter of it before the first
            trained token; for a mean over tokens, features are scaled by the square root of the trained tokens in the
            example over those in the window.
            "first_blocks": an early exit after the first `blocks` blocks, with the model's own final norm and head.
            "every": the scorer at every `steps`-th optimizer step; between them features are remembered, or guessed.
            "remembered": features from the last time that an example was scored or trained, at most `max_age`
            optimizer steps ago; others are guessed, or scored (`unknown`).
            "two_phase": a free `proxy` draws `share` of the pool (None: halfway between the small and the large
            batch), the scorer runs on those alone.
            "none": no scoring and no memory: inclusion in proportion to the square root of trained tokens.
            Where the loss is a mean over examples, equal sizes stand for the square root of trained tokens everywhere.
        tokens, blocks, steps, share: see above.
        max_age: None: for ever.
        unknown: "guess": the square root of trained tokens at the level of the latest examples, without a direction;
            "score": a forward for those.
        learn: whether the examples that are trained are remembered, with exact features out of their own backward.
        proxy: "tokens": the square root of trained tokens; "norm": the remembered feature's length; "loss": the
            remembered loss. What is not known is guessed from the trained tokens.
        rows: how many of the longest rows one scoring forward takes (it takes more if they are shorter), or "auto":
            a micro-batch's worth, on a GPU more as memory allows. Halved, with a warning, when memory runs out.
        reuse: whether the scoring forward serves as the first forward of activation checkpointing for the chosen
            examples; "auto": where that is exact and fits. It needs checkpointing and no active dropout.
        reuse_place: keep the blocks' inputs on the "device" or in "host" memory.
        reuse_gb: at most so many gigabytes (2^30 bytes) are kept; None: half of what is free when training begins.
    """

    way: Way = "auto"
    tokens: int = 64
    blocks: int = 2
    steps: int = 4
    max_age: int | None = None
    unknown: Literal["guess", "score"] = "guess"
    learn: bool = True
    share: float | None = None
    proxy: Literal["tokens", "norm", "loss"] = "tokens"
    rows: int | Literal["auto"] = "auto"
    reuse: bool | Literal["auto"] = "auto"
    reuse_place: Literal["device", "host"] = "device"
    reuse_gb: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.way, str) or self.way not in OWN_OPTIONS:
            raise ConfigError(
                f"coreset.scoring should be one of {', '.join(OWN_OPTIONS)}. Found {self.way!r}."
                f"{hint(str(self.way), OWN_OPTIONS)}"
            )
        for name, least in (("tokens", 2), ("blocks", 1), ("steps", 1)):
            _check_whole(name, getattr(self, name), least)
        if self.max_age is not None:
            _check_whole("max_age", self.max_age, 1)
        if self.rows != "auto":
            _check_whole("rows", self.rows, 1)
        share, cap = self.share, self.reuse_gb
        if share is not None and (isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1):
            raise ConfigError(f"coreset.scoring.share should be above 0 and at most 1. Found {share!r}.")
        if cap is not None and (isinstance(cap, bool) or not isinstance(cap, int | float) or not 0 <= cap < math.inf):
            raise ConfigError(f"coreset.scoring.reuse_gb should be a number of at least 0. Found {cap!r}.")
        for name, allowed in (
            ("unknown", ("guess", "score")),
            ("proxy", ("tokens", "norm", "loss")),
            ("reuse_place", ("device", "host")),
            ("learn", (True, False)),
            ("reuse", (True, False, "auto")),
        ):
            value = getattr(self, name)
            if not any(value is choice or (isinstance(value, str) and value == choice) for choice in allowed):
                raise ConfigError(
                    f"coreset.scoring.{name} should be {' or '.join(map(str, allowed))}. Found {value!r}."
                )
        idle = [
            f.name
            for f in dataclasses.fields(self)
            if f.name not in ("way", "rows", *OWN_OPTIONS[self.way]) and getattr(self, f.name) != f.default
        ]
        if idle:
            raise ConfigError(
                f"coreset.scoring {self.way!r} takes {', '.join((*OWN_OPTIONS[self.way], 'rows'))}. "
                f"Found {', '.join(idle)}, which would do nothing."
            )
        if self.way == "two_phase" and self.proxy != "norm" and not self.learn:
            raise ConfigError(
                f"coreset.scoring.learn does nothing with proxy {self.proxy!r}: only norms are learnt from training. "
                "Leave it out, or use proxy 'norm'."
            )
        if self.way == "remembered" and not self.learn and self.unknown == "guess":
            raise ConfigError(
                "coreset.scoring 'remembered' needs learn true or unknown 'score': with neither there is never "
                "anything to remember. Found learn False and unknown 'guess'."
            )

    @classmethod
    def of(cls, value: Any) -> ScoringConfig:
        """From a way, a mapping with the key `way`, or an instance.

        Raises:
            ConfigError: an unknown way or option, or a value out of range.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(way=value)  # type: ignore[arg-type]  # checked above
        if not isinstance(value, Mapping):
            raise ConfigError(
                f"coreset.scoring should be one of {', '.join(OWN_OPTIONS)}, or a block with the key way. "
                f"Found {value!r}."
            )
        known = [f.name for f in dataclasses.fields(cls)]
        for key in value:
            if key not in known:
                raise ConfigError(
                    f"coreset.scoring has the keys {', '.join(known)}. Found {key!r}.{hint(str(key), known)}"
                )
        return cls(**value)

    @property
    def scores_exactly(self) -> bool:
        """Whether there are ordinary scoring forwards, whose work training could reuse."""
        return self.way in ("full", "every", "two_phase") or (self.way == "remembered" and self.unknown == "score")

    @property
    def remembers(self) -> bool:
        """Whether features or losses are kept from step to step."""
        return self.way in ("every", "remembered") or (self.way == "two_phase" and self.proxy != "tokens")

    @property
    def learns(self) -> bool:
        """Whether the examples that are trained are remembered."""
        return self.remembers and self.learn and not (self.way == "two_phase" and self.proxy == "loss")

    def to_dict(self) -> str | dict[str, Any]:
        """The way alone, or with what differs from the defaults."""
        changed = {
            f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default
        }
        return self.way if not changed.keys() - {"way"} else {"way": self.way, **changed}


def _check_whole(name: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"coreset.scoring.{name} should be an integer of at least {least}. Found {value!r}.")

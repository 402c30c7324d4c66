"""Shares of sources that change while training: one method a file, one dictionary.

None of them beats equal shares of all sources consistently (arXiv 2411.05735, which compares them): compare with the
objective `sources` before you keep one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from corebatch.options import build
from corebatch.sampling.online.aioli import Aioli
from corebatch.sampling.online.base import OnlineShares
from corebatch.sampling.online.doge import DoGE
from corebatch.sampling.online.doremi import DoReMi
from corebatch.sampling.online.odm import ODM
from corebatch.sampling.online.skill_it import SkillIt, skill_graph

ONLINE: dict[str, type[OnlineShares]] = {method.name: method for method in (SkillIt, Aioli, DoReMi, DoGE, ODM)}

__all__ = ["ONLINE", "OnlineShares", "make_online", "skill_graph"]


def make_online(method: str | OnlineShares, options: Mapping[str, Any] | None = None) -> OnlineShares:
    """An online method, given its name and options, or an instance as it is.

    Raises:
        ConfigError: the name or an option is unknown, or an option's value is out of range.
    """
    return build("online", method, options, ONLINE, OnlineShares)

"""The packages of the extra `report`, asked for only when a page is made."""

from __future__ import annotations

from corebatch.errors import CorebatchError


class MissingExtraError(CorebatchError, ImportError):
    """An optional package is needed for what was asked, and not installed."""


def require_matplotlib() -> None:
    """Do nothing where matplotlib is installed, else say how to install it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        message = "The plots of the report need matplotlib: pip install 'corebatch[report]'"
        raise MissingExtraError(message) from error

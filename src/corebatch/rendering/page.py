"""Pages that need nothing else: no network, no script, no external font, so that they may be mailed or archived.

A page is a template that extends `templates/page.html`. Everything that comes from a run is escaped, and a content
policy forbids scripts besides.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from corebatch.errors import MissingExtraError
from corebatch.files import replacing
from corebatch.rendering.formats import clean

_SHARED = Path(__file__).with_name("templates")


def require_matplotlib() -> None:
    """Do nothing where matplotlib is installed, else say how to install it."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        message = "The plots of the report need matplotlib: pip install 'corebatch[report]'"
        raise MissingExtraError(message) from error


def render(template: Path, **values: Any) -> str:
    """The page as text: a template, which finds others beside it and in this room, filled with values."""
    environment = Environment(
        loader=FileSystemLoader([template.parent, _SHARED]),
        autoescape=True,
        finalize=escape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template(template.name).render(values)


def escape(value: object) -> Markup:
    """A text made safe for HTML, in content and in attributes, and on one line; what is HTML already stays."""
    return value if isinstance(value, Markup) else Markup(html.escape(clean(str(value))))


def _breakable(name: str) -> Markup:
    """A name that may be broken after its underscores and dots."""
    return Markup(re.sub(r"([_.])", r"\1<wbr>", str(escape(name))))


def write(path: Path, text: str) -> Path:
    """Writes the text whole or not at all, and returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_bytes(text.encode("utf-8"))
    return path

"""What turns the pages of the tree into pages of the site. Links, lists and pictures are written for the tree; the site
gets them in its own form.

A page may link to any file of the repository: what lies outside docs/ is a page of the site under tree/. Python's
Markdown, unlike GitHub's, begins a list only after an empty line, and takes a table right below a comment for text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TREE = "tree/"
"""Where the site has what lies outside docs/."""
ALWAYS = ("CONTRIBUTING.md", "CHANGELOG.md")
LINK = re.compile(r"\]\(([^)#\s:]+)(#[^)\s]*)?\)")
CODE = re.compile(r"^```.*?^```$|`[^`\n]*`", re.S | re.M)
ITEM = re.compile(r"\s*([-*]|\d+\.) ")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".jsonl": "json", ".toml": "toml"}


def on_files(files: Any, config: Any) -> Any:
    """Adds a page for each file outside docs/ that a page links to, and for those that these link to."""
    from mkdocs.structure.files import File

    pages = [file.src_uri for file in files if file.src_uri.endswith(".md") and not file.inclusion.is_excluded()]
    waiting = [*ALWAYS, *(target for uri in pages for target in linked(uri, (ROOT / "docs" / uri).read_text()))]
    known: set[str] = set()
    while waiting:
        path = waiting.pop()
        if path in known or path.startswith("docs/"):
            continue
        known.add(path)
        text = page_of(path)
        files.append(File.generated(config, place(path), content=text))
        if path.endswith(".md"):
            waiting += linked(place(path), text)
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page's text as Python's Markdown reads it, with links to pages of the site."""
    return without_comments(spaced_lists(site_links(page.file.src_uri, markdown)))


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    """The page with drawings of the tree (docs/pictures) within it, so that they follow the page's light and dark."""

    def drawing(found: re.Match[str]) -> str:
        path = ROOT / "docs" / posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), found["path"]))
        return path.read_text() if path.parent.name == "pictures" else found[0]

    return re.sub(r'<img alt="[^"]*" src="(?P<path>[^"]+\.svg)" ?/?>', drawing, html)


def origin(uri: str) -> str:
    """The path in the tree of a page of the site."""
    if uri.startswith(TREE):
        path = uri.removeprefix(TREE)
        return path if (ROOT / path).exists() else path.removesuffix(".md")
    return f"docs/{uri}"


def place(path: str) -> str:
    """The page of the site for a path of the tree."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return TREE + (path if path.endswith(".md") else f"{path}.md")


def linked(uri: str, text: str) -> list[str]:
    """The paths in the tree outside docs/ that a page links to."""
    targets = (target_of(uri, found[1]) for found in LINK.finditer(CODE.sub("", text)))
    return [path for path in targets if not path.startswith("docs/") and (ROOT / path).exists()]


def target_of(uri: str, link: str) -> str:
    """The path in the tree that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin(uri)), link))


def site_links(uri: str, text: str) -> str:
    """`text` with links from page to page of the site. Code is left as it is."""

    def moved(found: re.Match[str]) -> str:
        path = target_of(uri, found[1])
        if not (uri.startswith(TREE) or not path.startswith("docs/")) or not (ROOT / path).exists():
            return found[0]
        return f"]({posixpath.relpath(place(path), posixpath.dirname(uri) or '.')}{found[2] or ''})"

    return outside_code(text, lambda part: LINK.sub(moved, part))


def page_of(path: str) -> str:
    """A file of the tree as a page; of a folder its files' names."""
    found = ROOT / path
    if path.endswith(".md"):
        return found.read_text()
    if found.is_dir():
        names = sorted(each.name for each in found.iterdir() if each.suffix and not each.name.startswith(("_", ".")))
        return f"# {path}\n\n" + "\n".join(f"- `{name}`" for name in names)
    return f"# {path}\n\n```{LANGUAGES.get(found.suffix, 'text')}\n{found.read_text().rstrip()}\n```\n"


def spaced_lists(text: str) -> str:
    """`text` with an empty line before each list that follows a paragraph at once."""

    def spaced(part: str) -> str:
        lines: list[str] = []
        for line in part.split("\n"):
            before = lines[-1] if lines else ""
            if ITEM.match(line) and before.strip() and not ITEM.match(before) and not before.startswith((" ", "|")):
                lines.append("")
            lines.append(line)
        return "\n".join(lines)

    return outside_code(text, spaced)


def without_comments(text: str) -> str:
    """`text` without the markers between which scripts write."""
    return outside_code(text, lambda part: re.sub(r"<!--.*?-->\n?", "\n", part))


def outside_code(text: str, change: Any) -> str:
    """`text` with all but its code changed. Blocks of code are pieces of their own; code within a line is not."""
    blocks = re.split(r"(^```.*?^```$)", text, flags=re.S | re.M)
    return "".join(part if part.startswith("```") else change(part) for part in blocks)

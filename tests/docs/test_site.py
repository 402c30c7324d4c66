"""The pages as a site: each has a place in it, it is built without a warning, and it asks nothing of any network."""

import functools
import http.server
import json
import queue
import re
import runpy
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote

import pytest

import browsers

ROOT = Path(__file__).parents[2]
hooks = runpy.run_path(str(ROOT / "docs" / "site" / "hooks.py"))


def test_every_page_is_in_the_navigation():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    named = re.findall(r"[\w/]+\.md", nav)
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")}
    assert {name for name in named if not name.startswith("tree/")} == pages
    assert len(named) == len(set(named))


def test_links_out_of_the_pages_lead_to_pages_of_the_site():
    links = hooks["site_links"]
    assert links("running/data.md", "[a](../../examples/chat.yaml)") == "[a](../tree/examples/chat.yaml.md)"
    assert links("running/data.md", "[a](cli.md#keys)") == "[a](cli.md#keys)"
    assert links("tree/CONTRIBUTING.md", "[a](docs/decisions.md)") == "[a](../decisions.md)"
    assert links("tree/README.md", "[a](CONTRIBUTING.md#contributing)") == "[a](CONTRIBUTING.md#contributing)"
    assert links("running/data.md", "```\n[a](../../examples/chat.yaml)\n```") == (
        "```\n[a](../../examples/chat.yaml)\n```"
    )
    assert hooks["linked"]("running/data.md", "[a](../../examples/chat.yaml) `[b](../../Makefile)`") == [
        "examples/chat.yaml"
    ]
    assert hooks["page_of"]("examples/chat.yaml").startswith("# examples/chat.yaml\n\n```yaml\n# Conversations")
    assert "- `test_site.py`" in hooks["page_of"]("tests/docs")


def test_lists_and_tables_of_the_tree_are_pythons_markdown():
    assert hooks["spaced_lists"]("words:\n- one\n  more\n- two") == "words:\n\n- one\n  more\n- two"
    assert hooks["spaced_lists"]("```\nx\n- y\n```") == "```\nx\n- y\n```"
    assert hooks["without_comments"]("<!-- t -->\n| a |\n<!-- end of t -->\n") == "\n| a |\n\n"


def test_pictures_are_what_their_script_draws():
    drawn = runpy.run_path(str(ROOT / "docs" / "site" / "pictures.py"))
    for name in drawn["DRAWN"]:
        assert (drawn["FOLDER"] / f"{name}.svg").read_text() == drawn["picture"](name), "python docs/site/pictures.py"
    page = '<p><img alt="x" src="pictures/once.svg" /> <img alt="y" src="methods/noise.svg" /></p>'
    within = hooks["on_page_content"](page, SimpleNamespace(file=SimpleNamespace(src_uri="index.md")), None, None)
    assert within.startswith('<p><svg class="picture"')
    assert within.endswith('<img alt="y" src="methods/noise.svg" /></p>')


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("material")
    pytest.importorskip("mkdocstrings_handlers.python")
    out = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_it_is_built_without_a_warning_and_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]*\ssrc="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|icon|preload)"[^>]*href="([^"]+)"', text)
        loaded += re.findall(r'<link[^>]*href="([^"]+)"[^>]*rel="(?:stylesheet|preconnect|icon|preload)"', text)
        assert not [one for one in loaded if "//" in one], page


def test_options_recipes_and_the_api_are_there(site):
    assert 'id="coreset-what-comes-what-is-trained-and-with-what-weight"' in (site / "options.html").read_text()
    api = (site / "api.html").read_text()
    for name in ("CoresetTrainer", "CoresetConfig", "select", "keep_rows", "load_mixture", "NonFiniteError"):
        assert re.search(rf'id="[\w.]*\b{name}"', api), name
    for path in (ROOT / "docs" / "recipes").glob("*.md"):
        assert (site / "recipes" / f"{path.stem}.html").exists()


TYPE = """<script>addEventListener("load", () => {
  const field = document.querySelector("[data-md-component=search-query]");
  const type = () => { field.focus(); field.dispatchEvent(new Event("input", {bubbles: true})); };
  field.value = "micro-batches"; type(); setInterval(type, 3000);  // again: the page may not have listened yet
  const told = setInterval(() => {
    const found = [...document.querySelectorAll(".md-search-result__item a")].map((each) => each.href);
    if (found.length && !clearInterval(told)) new Image().src = "FOUND" + encodeURIComponent(JSON.stringify(found));
  }, 100);
});</script>"""


class Listener(http.server.SimpleHTTPRequestHandler):
    """Serves a site, and keeps what a page of it tells."""

    told: queue.Queue = queue.Queue()

    def do_GET(self):
        if self.path.startswith("/found?"):
            self.told.put(json.loads(unquote(self.path.partition("?")[2])))
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def searched(site, tmp_path, monkeypatch):
    """Types a word into the search of the start page, and gives the pages that are offered."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Listener, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    typing = TYPE.replace("FOUND", f"{here}/found?")
    (site / "typed.html").write_text((site / "index.html").read_text().replace("</body>", f"{typing}</body>"))
    monkeypatch.setattr(Listener, "told", queue.Queue())

    def search(base):
        command = [browsers.BROWSER, *browsers.FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
        command += ["--remote-debugging-port=0", f"{base or here}/typed.html"]  # so that it stays open
        browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return Listener.told.get(timeout=150)
        finally:
            browser.kill()
            browser.wait()

    yield search
    server.shutdown()
    server.server_close()
    (site / "typed.html").unlink()


@browsers.needed
@pytest.mark.parametrize("from_disk", [False, True], ids=["served", "from the disk"])
def test_search_finds_a_page(searched, site, from_disk):
    found = searched(site.as_uri() if from_disk else None)
    assert any("running/trainer.html" in address and "#micro-batches" in address for address in found)

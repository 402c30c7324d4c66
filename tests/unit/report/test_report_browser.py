"""The page of a real run in a real browser: something is to be seen, light and dark, on a desktop and on a phone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset
from PIL import Image

import browsers
from corebatch.report import write_report
from corebatch.trainer import CoresetConfig
from training import mixture, run, tiny_model, trainer

FLAGS = (*browsers.FLAGS, "--virtual-time-budget=5000")
DARK = "--blink-settings=preferredColorScheme=0"
SECONDS = 100
LIGHT_PAGE, DARK_PAGE = (245, 246, 248), (15, 19, 25)
"""`--page` of page.css."""

pytestmark = [
    browsers.needed,
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.slow,
]

Browse = Callable[..., "Visit"]


class Tokenizer:
    """Ids are words; some are long and have no space to break at."""

    def decode(self, ids: list[int], **options: bool) -> str:
        return " ".join(f"word{i}" * (12 if i % 11 == 0 else 1) for i in ids)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run with everything that a page can show of one."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    rows = [
        {**row, "source": f"{row['source']} with a rather long name" * (1 + i % 2)} for i, row in enumerate(mixture())
    ]
    made = trainer(
        folder,
        tiny_model(),
        CoresetConfig(track_error=2, scoring="full"),
        train_dataset=Dataset.from_list(rows),
        max_steps=24,
        logging_steps=4,
        eval_strategy="steps",
        eval_steps=8,
        extra={"processing_class": Tokenizer(), "eval_dataset": Dataset.from_list(rows[:8])},
    )
    run(made)
    made.save_state()
    return write_report(folder)


class Visit:
    """What a browser made of a page: its log, all addresses that it asked for, and the DOM."""

    def __init__(self, log: str, requests: list[str], dom: str) -> None:
        self.console = [line for line in log.splitlines() if "CONSOLE" in line]
        self.requests, self.dom = requests, dom


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    def visit(page: Path, *flags: str) -> Visit:
        profile, requests = tmp_path / "profile", tmp_path / "requests.json"
        shutil.rmtree(profile, ignore_errors=True)
        command = [str(browsers.BROWSER), *FLAGS, f"--user-data-dir={profile}", f"--log-net-log={requests}", *flags]
        done = subprocess.run(
            [*command, page.resolve().as_uri()], capture_output=True, text=True, timeout=SECONDS, check=True
        )
        return Visit(done.stderr, addresses(requests), done.stdout)

    return visit


def addresses(log: Path) -> list[str]:
    """What a page from a file asked for, in Chromium's log of its network (a line an event, the end perhaps lacking);
    the browser asks for things of its own, on nobody's behalf."""
    ours = [line for line in log.read_text(encoding="utf-8").splitlines() if '"network_isolation_key":"file:' in line]
    return sorted({url for line in ours for url in re.findall(r'"url":"([a-z]+:[^"]*)"', line)})


def picture(path: Path) -> tuple[tuple[int, int, int], int, float]:
    """The colour of its corner, how many colours it has, and the share of it that has another than the corner."""
    with Image.open(path) as found:
        image = found.convert("RGB")
    corner = image.getpixel((2, 2))
    colours = image.getcolors(maxcolors=image.width * image.height)
    assert colours is not None
    background = sum(count for count, colour in colours if colour == corner)
    return corner, len(colours), 1 - background / (image.width * image.height)


def test_something_is_to_be_seen_light_and_dark_and_nothing_is_asked_of_anybody(
    page: Path, browse: Browse, tmp_path: Path
) -> None:
    pages = []
    for name, flags in (("light", ()), ("dark", (DARK,))):
        shot = tmp_path / f"{name}.png"
        visit = browse(page, "--window-size=1280,4200", f"--screenshot={shot}", *flags)
        assert visit.console == []
        assert visit.requests == []
        corner, colours, other = picture(shot)
        assert colours > 300
        assert other > 0.3
        pages.append(corner)
    assert pages == [LIGHT_PAGE, DARK_PAGE]


def test_this_browser_would_tell_of_errors_and_requests(browse: Browse, tmp_path: Path) -> None:
    page = tmp_path / "noisy.html"
    page.write_text('<img src="http://127.0.0.1:9/x.png"><script>console.error("heard")</script>')
    visit = browse(page, "--dump-dom")
    assert any("heard" in line for line in visit.console)
    assert any(address.startswith("http://127.0.0.1:9/") for address in visit.requests)


WIDTHS = (1280, 820, 390)
MEASURE = """<!doctype html><body>{frames}<script>
addEventListener("load", () => {{
  const found = [...document.querySelectorAll("iframe")].map((frame) => {{
    const inner = frame.contentDocument, wide = frame.clientWidth;
    const over = [...inner.querySelectorAll("main *")].filter((element) =>
      !element.closest(".scroll, svg, details:not([open])") && element.getBoundingClientRect().right > wide + 1);
    return {{wide, scroll: inner.documentElement.scrollWidth, titles: inner.querySelectorAll("h2").length,
      over: over.map((element) => element.outerHTML.slice(0, 99))}};
  }});
  document.body.textContent = JSON.stringify(found);
}});
</script>"""


def test_nothing_is_wider_than_the_screen(page: Path, browse: Browse, tmp_path: Path) -> None:
    frames = "".join(
        f'<iframe src="{page.as_uri()}" style="border:0;width:{w}px;height:900px"></iframe>' for w in WIDTHS
    )
    around = tmp_path / "widths.html"
    around.write_text(MEASURE.format(frames=frames))
    dom = browse(around, "--allow-file-access-from-files", "--dump-dom").dom
    measured = re.search(r"<body>(.*)</body>", dom, re.DOTALL)
    assert measured is not None
    found = json.loads(measured[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert [frame["wide"] for frame in found] == list(WIDTHS)
    for frame in found:
        assert frame["titles"] >= 7  # the page is there
        assert frame["scroll"] <= frame["wide"], frame["over"]
        assert frame["over"] == []

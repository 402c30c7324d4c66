"""What README and docs show is run: Python snippets, configs, links, and the claims on the public surface."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(kind):
    for page in PAGES:
        for number, text in enumerate(re.findall(rf"^```{kind}\n(.*?)^```", page.read_text(), re.S | re.M)):
            yield pytest.param(text, id=f"{page.name}-{number}")


@pytest.mark.parametrize("text", list(blocks("python")))
def test_python_snippets_run(text):
    exec(compile(text, "snippet", "exec"), {"__name__": "snippet"})


@pytest.mark.parametrize("text", list(blocks("yaml")))
def test_configs_in_the_docs_have_known_keys(text, tmp_path):
    from corebatch.config.settings import load_settings

    path = tmp_path / "config.yaml"
    path.write_text(text)
    settings = load_settings(path)
    assert settings.coreset.pool_factor >= 1


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_example_configs_have_known_keys(path):
    from corebatch.config.settings import load_settings

    assert load_settings(path).training["output_dir"] == yaml.safe_load(path.read_text())["output_dir"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_project_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)(#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            other = page.parent / target if target else page
            assert other.exists(), target
            assert not anchor or anchor in anchors(other), target + anchor


def anchors(page):
    """Of a page's headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {"#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_diff_in_the_readme_is_six_lines_or_fewer_and_its_names_exist():
    (diff,) = re.findall(r"^```diff\n(.*?)^```", (ROOT / "README.md").read_text(), re.S | re.M)
    changed = [line for line in diff.splitlines() if line[:1] in "+-"]
    assert len(changed) <= 6
    imports = [line[1:] for line in changed if line.startswith("+from")]
    exec("\n".join(imports), {})


def test_the_file_tree_of_the_readme_is_the_tree():
    text = (ROOT / "README.md").read_text()
    rooms = {path.name + "/" for path in (ROOT / "src" / "corebatch").iterdir() if (path / "__init__.py").exists()}
    tree = text[text.index("src/corebatch/\n") :]
    assert all(f"  {room}" in tree for room in rooms), rooms

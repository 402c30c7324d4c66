"""What a user of the wheel meets: imports that wait for what they need, the extra's name, types, one version."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import corebatch
from corebatch.config.extras import check_extras
from corebatch.errors import MissingExtraError

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ASKED = {
    "galore_adamw_layerwise": ("optim", "galore_torch", "layerwise"),
    "apollo_adamw": ("optim", "apollo_torch", "layerwise"),
    "adalomo": ("optim", "lomo_optim", "layerwise"),
    "adamw_bnb_8bit": ("optim", "bitsandbytes", "qlora"),
    "galore_adamw_8bit": ("optim", "bitsandbytes", "qlora"),
    "paged_lion_32bit": ("optim", "bitsandbytes", "qlora"),
    "trackio": ("report_to", "trackio", "trackio"),
    "tensorboard": ("report_to", "tensorboard", "tensorboard"),
    "true": ("use_liger_kernel", "liger_kernel", "liger"),
    "zero.json": ("deepspeed", "deepspeed", "deepspeed"),
}


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_the_package_is_imported_without_any_other():
    loaded = "{name.partition('.')[0] for name in sys.modules}"
    code = (
        f"import sys; old = {loaded}; import corebatch; print(*sorted({loaded} - old - set(sys.stdlib_module_names)))"
    )
    done = run(code)
    assert done.stdout.split() == ["corebatch"], done.stdout + done.stderr


def test_select_needs_torch_and_numpy_alone():
    others = [re.match(r"[\w-]+", each)[0] for each in PROJECT["dependencies"]]
    hidden = sorted({*others, "yaml"} - {"torch", "numpy", "jinja2", "filelock"})  # torch's own dependencies
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "import torch, corebatch\n"
        "chosen = corebatch.select(torch.randn(16, 4), 4)\n"
        "assert isinstance(chosen, corebatch.Selection) and len(set(chosen.indices.tolist())) == 4\n"
    )
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert "transformers" in hidden


@pytest.mark.parametrize("value", ASKED)
def test_a_setting_that_needs_an_extra_names_it(value, monkeypatch):
    key, module, extra = ASKED[value]
    monkeypatch.setattr("corebatch.config.extras.find_spec", lambda name: None if name == module else name)
    with pytest.raises(MissingExtraError) as caught:
        check_extras({key: [value] if key == "report_to" else value})
    assert str(caught.value) == f"{key}: {value} needs {module}: pip install 'corebatch[{extra}]'."
    package = module.replace("liger_kernel", "liger-kernel").replace("_", "-")
    assert any(re.match(rf"{package}\b", needed) for needed in PROJECT["optional-dependencies"][extra])


def test_what_needs_no_extra_is_not_asked_for(monkeypatch):
    monkeypatch.setattr("corebatch.config.extras.find_spec", lambda name: None)
    for optim in ("adamw_torch", "adamw_torch_8bit", "adafactor", "rmsprop", "lamb", "lion", "muon"):
        check_extras({"optim": optim, "report_to": "none", "use_liger_kernel": False, "deepspeed": None})


def test_every_extra_that_a_message_names_is_one():
    for path in (ROOT / "src").rglob("*.py"):
        for named in re.findall(r"corebatch\[([\w-]+)\]", path.read_text()):
            assert named in PROJECT["optional-dependencies"], f"{path.name}: {named}"


def test_there_is_one_version():
    assert PROJECT["dynamic"] == ["version"]
    newest = re.search(r"^## \[(\d.*?)\] - (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert newest is not None
    assert (newest[1], newest[2]) == (cited["version"], str(cited["date-released"]))
    assert corebatch.__version__ == cited["version"]


def test_a_type_checker_sees_the_types_of_the_installed_package(tmp_path):
    settings = tmp_path / "mypy.ini"
    apart = "[mypy-torch.*,numpy.*,transformers.*,datasets.*,peft.*,accelerate.*]\nfollow_imports = skip\n"
    settings.write_text(f"[mypy]\nfollow_imports = silent\n{apart}")
    words = [sys.executable, "-m", "mypy", f"--config-file={settings}", f"--cache-dir={tmp_path}"]
    example = ROOT / "tests" / "wheel" / "typed.py"
    done = subprocess.run([*words, str(example)], cwd=tmp_path, capture_output=True, text=True, check=False)
    notes = re.findall(r'Revealed type is "(?:builtins\.)?([^"]*)"', done.stdout)
    assert notes == ["corebatch.types.Selection", "str"], done.stdout
    assert re.findall(r"\[([\w-]+)\]$", done.stdout, re.M) == ["arg-type"], done.stdout

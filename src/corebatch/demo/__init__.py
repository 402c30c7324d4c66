"""What `corebatch demo` runs on: a small pretrained model and an imbalanced mixture, both without a hub."""

from corebatch.demo.mixture import MixtureFiles, make_mixture
from corebatch.demo.model import default_cache_dir, load_smollm2, smollm2_folder
from corebatch.demo.settings import DEMO_SOURCES, PROMPT_FORMAT, DemoSettings, DemoSource

__all__ = [
    "DEMO_SOURCES",
    "PROMPT_FORMAT",
    "DemoSettings",
    "DemoSource",
    "MixtureFiles",
    "default_cache_dir",
    "load_smollm2",
    "make_mixture",
    "smollm2_folder",
]

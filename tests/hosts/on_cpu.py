"""For two ranks of Axolotl on a CPU: it gives each rank's model to the accelerator of its number, and there is none."""

from typing import Any

from axolotl.integrations.base import BasePlugin


class OnCpu(BasePlugin):
    """Leaves the model where it is loaded."""

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> None:
        """The first hook after the host has decided where the model goes; gives no data set."""
        cfg.device_map = None

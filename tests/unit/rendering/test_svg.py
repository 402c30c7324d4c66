"""Parts of drawings that a page uses by themselves."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("matplotlib", reason="drawings need matplotlib (extra report)")


@pytest.mark.parametrize("marker", "os^DvPX*p")
def test_markers_are_closed_paths_around_the_origin(marker: str) -> None:
    from corebatch.rendering.svg import marker_path

    path = marker_path(marker, 8.0)
    assert re.fullmatch(r"M[-\d. ]+([LC][-\d. ]+)+Z", path)
    numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", path)]
    assert max(map(abs, numbers)) < 6  # a legend's swatch is 12 pixels high
    assert abs(max(numbers[::2]) + min(numbers[::2])) < 0.1

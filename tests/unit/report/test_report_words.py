"""What a summary holds in words."""

from corebatch.report import rows


def test_phases_and_ways_of_scoring_in_words() -> None:
    assert [rows.phase(name) for name in ("exchange", "score", "a\nb")] == ["communication", "score", "a�b"]
    assert rows.ways({"full": 1, "proxy": 9}) == "proxy (9 steps) and full (1 step)"

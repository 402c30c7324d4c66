from __future__ import annotations

from corebatch.rendering.sheet import source_rows


def test_many_sources_are_the_largest_and_a_number_of_others() -> None:
    rows = [{"source": f"s{i}", "rows": i, "share": i / 465, "length_median": 3} for i in range(31)]
    shown = source_rows(rows)
    assert [row["source"] for row in shown[:2]] == ["s30", "s29"]
    assert len(shown) == 21
    assert shown[-1]["source"] == "11 more"
    assert shown[-1]["rows"] == sum(range(11))
    assert shown[-1]["length: median, p90, max"] == "-, -, -"
    assert [row["source"] for row in source_rows(rows[:20])] == [row["source"] for row in rows[:20]]

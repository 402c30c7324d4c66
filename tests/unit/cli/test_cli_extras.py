"""Without an extra: training ends well, and what cannot be done is said before it costs anything."""

import sys

import pytest


def test_a_run_without_matplotlib_is_whole_and_says_what_its_page_needs(corebatch, config, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = corebatch("train", config, "--max_steps", 1)
    assert code == 0, err
    folder = tmp_path / "run"
    assert "pip install 'corebatch[report]'; then: corebatch report" in out
    assert (folder / "finished.json").is_file()
    assert not (folder / "report.html").exists()
    code, out, err = corebatch("report", folder)
    assert code == 2
    assert err == "corebatch: The plots of the report need matplotlib: pip install 'corebatch[report]'\n"


@pytest.mark.parametrize("module, extra", [("scipy", "bench"), ("matplotlib", "report")])
def test_a_comparison_begins_with_what_its_end_needs(corebatch, config, tmp_path, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    code, _, err = corebatch("compare", config)
    assert code == 2
    assert f"pip install 'corebatch[{extra}]'" in err
    assert not (tmp_path / "run").exists()


def test_training_asks_for_an_extra_before_data_are_read(corebatch, config, monkeypatch):
    monkeypatch.setattr("corebatch.config.extras.find_spec", lambda name: None)
    for command in ("train", "validate"):
        code, out, err = corebatch(command, config, "--report_to", "trackio", "--datasets", "[none.jsonl]")
        assert (code, out) == (2, "")
        assert err == "corebatch: report_to: trackio needs trackio: pip install 'corebatch[trackio]'.\n"

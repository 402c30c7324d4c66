"""The engine of `corebatch advise`: time shared, failures told, files written, what is recommended put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from corebatch.bench.advise.advice import advice_folder, check_advice_folder, read_advice, recommended_values
from corebatch.bench.advise.engine import AdvicePart, advise, measure_all, sentence
from corebatch.bench.advise.finding import MORE_MINUTES, TO_LOSS, Finding
from corebatch.bench.advise.probe import checkpoint_folders
from corebatch.config.settings import load_settings
from corebatch.errors import ConfigError, InputError
from probes import advised_config, tiny_probe

CUT = Finding(lever="cut", arm={"coreset.micro_batches": "positions"}, factor=0.6, low=0.5, high=0.7, recommended=True)


def test_a_finding_is_recommended_by_keys_and_a_measurement() -> None:
    with pytest.raises(InputError, match="should have keys"):
        Finding(lever="cut", recommended=True)
    with pytest.raises(InputError, match="above 0"):
        Finding(lever="cut", factor=0.0)


def test_a_measurement_that_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    probe = tiny_probe(tmp_path, seconds=20.0)
    before = [p.detach().clone() for p in probe.model.parameters()]
    probe.model.train()
    shares = []

    def fails(probe: Any) -> list[Finding]:
        shares.append(probe.seconds_left)
        probe.model.eval()
        weight = next(probe.model.parameters())
        weight.grad = torch.zeros_like(weight)
        raise RuntimeError("no forward")

    def works(probe: Any) -> list[Finding]:
        shares.append(probe.seconds_left)
        torch.rand(3)
        return [CUT]

    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    findings, seconds = measure_all(probe, {"one": AdvicePart(fails, 3.0), "two": AdvicePart(works)})
    assert findings[0].lever == "one"
    assert findings[0].unmeasured == "RuntimeError: no forward"
    assert findings[1] == CUT
    assert list(seconds) == ["one", "two"]
    assert torch.equal(torch.rand(1), expected)
    assert shares[0] < 0.76 * 20 < shares[1], "the first has three quarters, and what it leaves is the other's"
    assert probe.model.training
    assert all(p.grad is None for p in probe.model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, probe.model.parameters(), strict=True))


def test_time_that_is_left_goes_to_what_had_too_little(tmp_path: Path) -> None:
    probe, runs = tiny_probe(tmp_path, seconds=100.0), list[tuple[str, int]]()

    def needs(name: str, seconds: float, key: str = "") -> AdvicePart:
        def measure(probe: Any) -> list[Finding]:
            left = probe.seconds_left
            runs.append((name, round(left)))
            if "gradients" in probe.known and key:
                return [Finding(lever=name, why="of what is known")]
            if left < seconds:
                probe.known["failed"] = InputError(f"it takes {seconds} s: {MORE_MINUTES}")
                return [Finding(lever="always", why="kept"), Finding(lever=name, unmeasured=str(probe.known["failed"]))]
            probe.known |= {"gradients": 1.0} if key else {}
            return [Finding(lever="always", why="anew"), Finding(lever=name, why="measured")]

        return AdvicePart(measure)

    parts = {"small": needs("small", 10), "cached": needs("cached", 60, "x"), "most": needs("most", 90, "x")}
    findings, seconds = measure_all(probe, {**parts, "never": needs("never", 200)})
    # 100 s by four; no more than that in the second round; then all to each, "most" by what "cached" left
    order = ["small", "cached", "most", "never", "cached", "most", "never"]
    assert [name for name, _ in runs] == order
    assert [left for _, left in runs] == pytest.approx([25, 33, 50, 100, 100, 100, 100], abs=2)
    told = [one.why for one in findings if not one.hurried]
    assert told == ["anew", "measured", "anew", "measured", "of what is known", "kept"]
    assert [one.lever for one in findings if one.hurried] == ["never"]
    assert probe.known == {"gradients": 1.0, "failed": probe.known["failed"]}
    assert set(seconds) == {"small", "cached", "most", "never"}
    probe.deadline = 0.0
    late, _ = measure_all(probe, parts)
    assert [one.unmeasured for one in late] == ["no time was left: give more --minutes"] * 3
    assert len(runs) == len(order)


def test_advice_is_not_overwritten_and_its_folder_is_looked_at_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_advice_folder(tmp_path / "a" / "b", overwrite=False)
    (tmp_path / "recommended.yaml").touch()
    with pytest.raises(ConfigError, match=r"has recommended\.yaml already, and nothing is overwritten"):
        check_advice_folder(tmp_path, overwrite=False)
    check_advice_folder(tmp_path, overwrite=True)
    with pytest.raises(ConfigError, match=r"Found the file .*recommended\.yaml"):
        check_advice_folder(tmp_path / "recommended.yaml" / "x", overwrite=True)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ConfigError, match="cannot be written"):
        check_advice_folder(tmp_path / "new", overwrite=False)


def test_the_last_line_says_what_is_not_known() -> None:
    text = sentence(
        [CUT, Finding(lever="rest", unmeasured="no rows"), Finding(lever="noise", unmeasured="no time")], []
    )
    assert text.endswith("2 of 3 lines could not be measured: rest, noise.")
    assert text.startswith("Nothing that was measured")
    assert not sentence([Finding(lever="rest", unmeasured="no time")], []).startswith("Nothing")
    assert "could not" not in sentence([CUT], [CUT])


def test_without_time_each_measurement_says_so(tmp_path: Path) -> None:
    findings, seconds = measure_all(tiny_probe(tmp_path, seconds=0), {"one": AdvicePart(lambda _: [CUT])})
    assert findings[0].unmeasured == "no time was left: give more --minutes"
    assert not seconds


def test_files_hold_config_findings_and_what_is_recommended(tmp_path: Path) -> None:
    values = advised_config(tmp_path)
    told = Finding(lever="noise", why="noise of 5 rows", numbers={"verdict": "A batch of 8 is above."})
    console = Console(width=140, record=True)
    parts = {"one": AdvicePart(lambda _: [CUT, told, Finding(lever="rest", unmeasured="no rows")])}
    folder = advise(
        values, "c.yaml", minutes=1, checkpoints=None, output=None, console=console, parts=parts
    )  # fmt: skip
    assert folder == advice_folder(values["output_dir"]) == tmp_path / "run-advice"
    text = " ".join(console.export_text().split())
    assert "A batch of 8 is above. The strongest lever is cut" in text
    assert "not measured: no rows" in text
    assert "0.60 (0.50 to 0.70)" in text
    found = read_advice(folder)
    assert found.findings == [CUT, told, Finding(lever="rest", unmeasured="no rows")]
    assert found.config == values
    assert found.about["recommended"] == ["cut"]
    assert found.about["data"]["rows"] == 120
    assert found.about["model"]["digest"]
    recommended = load_settings(folder / "recommended.yaml")
    assert recommended.coreset.cut.by == "positions"
    kept = yaml.safe_load((folder / "recommended.yaml").read_text())
    assert kept.pop("coreset") == {"pool_factor": 1, "micro_batches": "positions"}
    assert kept == {key: value for key, value in values.items() if key != "coreset"}
    assert not list(folder.glob(".*"))
    assert values["coreset"] == {"pool_factor": 1}


def test_of_what_sets_one_key_the_strongest_is_set_and_what_would_be_refused_is_not(tmp_path: Path) -> None:
    stronger = Finding(lever="whole", arm={"coreset.micro_batches": "flops"}, factor=0.4, recommended=True)
    refused = Finding(lever="bad", arm={"coreset.pool_factor": 0}, factor=0.1, recommended=True)
    values, taken, left_out = recommended_values(advised_config(tmp_path), [CUT, stronger, refused])
    assert taken == [stronger]
    assert values["coreset"] == {"pool_factor": 1, "micro_batches": "flops"}
    assert left_out[0].startswith("bad: coreset.pool_factor should be an integer of at least 1")
    assert left_out[1] == "cut: whole sets the same key."


@pytest.mark.parametrize(
    ("findings", "words"),
    [
        ([], "Nothing that was measured is worth a change"),
        ([Finding(lever="rest", unmeasured="no time")], "1 of 1 lines could not be measured: rest."),
        ([CUT], "The strongest lever is cut: 0.60 (0.50 to 0.70) of the seconds a step."),
        ([Finding(lever="noise", numbers={"verdict": "A batch of 8 is near."})], "A batch of 8 is near. Nothing that"),
    ],
)
def test_the_closing_sentence_says_what_to_do(findings: list[Finding], words: str) -> None:
    assert words in sentence(findings, [finding for finding in findings if finding.recommended])


def test_of_levers_on_noise_the_strongest_is_set(tmp_path: Path) -> None:
    first, other = (
        Finding(lever=key, arm={f"coreset.{key}": value}, factor=factor, of=TO_LOSS, recommended=True)
        for key, value, factor in (("objective", "sources", 0.9), ("micro_batches", "flops", 0.8))
    )
    values, taken, left_out = recommended_values(advised_config(tmp_path), [first, other, CUT])
    assert taken == [CUT, first]
    assert left_out == ["micro_batches: cut sets the same key."]
    values, taken, left_out = recommended_values(advised_config(tmp_path), [first, other])
    assert values["coreset"] == {"pool_factor": 1, "micro_batches": "flops"}
    assert left_out == ["objective: micro_batches lowers what the noise of a step costs already."]


def test_what_is_no_advice_is_refused_by_name(tmp_path: Path) -> None:
    for content in ("{", "[]", json.dumps({"schema": 7}), json.dumps({"schema": 1, "findings": [{"x": 1}]})):
        (tmp_path / "advice.json").write_text(content)
        with pytest.raises(ConfigError, match=r"advice\.json should be"):
            read_advice(tmp_path)
    with pytest.raises(ConfigError, match=r"missing\.json should be"):
        read_advice(tmp_path / "missing.json")


def test_checkpoints_are_taken_by_their_steps(tmp_path: Path) -> None:
    for step in (100, 20, 3):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert [folder.name for folder in checkpoint_folders(tmp_path)] == [f"checkpoint-{s}" for s in (3, 20, 100)]
    (tmp_path / "checkpoint-3" / "config.json").touch()
    assert checkpoint_folders(tmp_path / "checkpoint-3") == [tmp_path / "checkpoint-3"]
    with pytest.raises(ConfigError, match="--checkpoints should be a folder"):
        checkpoint_folders(tmp_path / "checkpoint-20")

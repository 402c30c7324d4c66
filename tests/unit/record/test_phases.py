"""Phases on a host clock and on a GPU that is played by the test, and when the lines of a run are written."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from corebatch.distributed.ranks import Ranks
from corebatch.errors import CheckpointError, NonFiniteError
from corebatch.record import step_log
from corebatch.record import writer as record
from corebatch.record.phases import CudaClock, HostClock, Phases, clock_for
from corebatch.trainer import CoresetConfig
from training import run, trainer

ORDER = ["load", "score", "exchange", "select", "repack", "train", "optimizer"]


class Gpu:
    """A device that gets to an event only when the test lets it, or when somebody waits."""

    def __init__(self) -> None:
        self.reached = -1  # the last event that the device has passed
        self.recorded = 0
        self.waits = 0
        self.broken = False
        self.at: list[float] = []  # when the device passes each event, ms
        self.allocated = self.peak = 0

    def event(self, enable_timing: bool = False) -> Event:
        assert enable_timing
        return Event(self)

    def run_to_here(self) -> None:
        self.reached = self.recorded - 1

    def allocate(self, mb: int) -> None:
        self.allocated += mb * 2**20
        self.peak = max(self.peak, self.allocated)

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated

    def max_memory_allocated(self) -> int:
        return self.peak


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.number = gpu, -1

    def record(self) -> None:
        self.number = self.gpu.recorded
        self.gpu.recorded += 1
        self.gpu.at.append(10.0 * self.number**2)

    def query(self) -> bool:
        assert self.number >= 0
        if self.gpu.broken:
            raise RuntimeError("CUDA error: device-side assert triggered")
        return self.number <= self.gpu.reached

    def synchronize(self) -> None:
        self.query()
        self.gpu.waits += 1
        self.gpu.reached = max(self.gpu.reached, self.number)

    def elapsed_time(self, other: Event) -> float:
        assert self.query()
        assert other.query()
        return self.gpu.at[other.number] - self.gpu.at[self.number]


def clock(gpu: Gpu) -> CudaClock:
    return CudaClock(event=gpu.event, memory=gpu)


class Ticks(HostClock):
    """A second passes from mark to mark."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def mark(self) -> float:
        self.now += 1.0
        return self.now


# ---- phases ---------------------------------------------------------------------------------------------------------


def test_the_host_clock_knows_at_once() -> None:
    phases = Phases(Ticks())
    phases.end("load")
    phases.start()  # the second before belongs to nobody
    phases.end("score")
    phases.end("load")
    assert phases.ms == {"load": 2000.0, "score": 1000.0}
    assert phases.resolved
    assert phases.memory_mb["score"] > 1


def test_without_a_gpu_the_default_is_the_host_clock() -> None:
    assert isinstance(clock_for(torch.device("cpu")), HostClock)
    phases = Phases(clock_for(torch.device("cpu")))
    phases.end("train")
    assert 0 <= phases.ms["train"] < 1000


def test_a_gpu_is_never_waited_for_in_a_step() -> None:
    gpu = Gpu()
    phases = Phases(clock(gpu))  # event 0
    phases.end("load")  # 1
    phases.start()  # 2
    phases.end("score")  # 3
    phases.end("score")  # 4
    assert (phases.ms, phases.resolved, gpu.waits) == ({}, False, 0)
    gpu.reached = 3
    assert not phases.resolve()
    assert phases.ms == {"load": 10.0, "score": 50.0}
    gpu.run_to_here()
    assert phases.resolve()
    assert phases.ms == {"load": 10.0, "score": 120.0}
    assert phases.resolve()
    assert gpu.waits == 0


def test_resolving_may_wait() -> None:
    gpu = Gpu()
    phases = Phases(clock(gpu))
    phases.end("train")
    assert phases.resolve(wait=True)
    assert phases.ms == {"train": 10.0}
    assert gpu.waits == 1


def test_peak_memory_is_each_phases_own() -> None:
    gpu = Gpu()
    gpu.allocate(100)
    phases = Phases(clock(gpu))
    gpu.allocate(50)
    gpu.allocate(-50)
    phases.end("score")
    gpu.allocate(20)
    phases.end("train")
    gpu.allocate(-20)
    phases.end("score")
    assert phases.memory_mb == {"score": 150.0, "train": 120.0}
    assert gpu.waits == 0


# ---- lines ----------------------------------------------------------------------------------------------------------

STEP = {
    "pool_examples": 8,
    "chosen_examples": 4,
    "pool_loss": 2.0,
    "chosen_loss": None,
    "tokens_scored": 600,
    "tokens_trained": 200,
    "positions_scored": 800,
    "positions_trained": 250,
    "reuse_mb": 1.5,
    "scoring": "full",
    "bytes_sent": {"features": 4096},
}


class Run:
    """A recorder whose device is the test's, driven as the Trainer does."""

    def __init__(self, folder: Path, gpu: Gpu | None) -> None:
        accelerator = SimpleNamespace(num_processes=1)
        ranks = Ranks()
        self.model = torch.nn.Linear(8, 4)
        self.args = SimpleNamespace(
            output_dir=str(folder), device=torch.device("cpu"), bf16=False, fp16=False, report_to=[]
        )
        data = (SimpleNamespace(source_ids=torch.zeros(3)), SimpleNamespace(counts={0: 3}))
        owner = SimpleNamespace(
            args=self.args,
            accelerator=accelerator,
            _run=SimpleNamespace(
                ranks=ranks,
                folder=folder,
                model=lambda: self.model,
                record=lambda: {"model": "tiny"},
                step=SimpleNamespace(losses=None),
                noise=SimpleNamespace(message=lambda _: torch.zeros(0), settle=lambda _: None, line=dict),
            ),
            train_dataset=None,
            coreset=CoresetConfig(),
            _tagged=SimpleNamespace(of=lambda *_, **__: data),
            model_wrapped=self.model,
        )
        self.recorder = record.Recorder(owner)
        if gpu is not None:
            self.recorder._clock = clock(gpu)
            self.recorder.phases = Phases(self.recorder._clock)
        self.state = SimpleNamespace(global_step=0, epoch=0.0, is_world_process_zero=True)
        self.call("on_train_begin")

    def call(self, name: str) -> None:
        getattr(self.recorder, name)(self.args, self.state, None)

    def step(self, loss: float = 1.0, **values: Any) -> None:
        phases = self.recorder.phases
        phases.start()
        for phase in ORDER[:5]:
            phases.end(phase)
        self.recorder.step = {**STEP, **values}
        self.recorder.losses.append(torch.tensor(loss))
        self.call("on_pre_optimizer_step")
        self.call("on_optimizer_step")
        self.state.global_step += 1
        self.call("on_step_end")


def lines(folder: Path) -> list[dict[str, Any]]:
    path = folder / "selection.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_on_cpu_a_line_is_written_at_the_end_of_its_step(tmp_path: Path) -> None:
    made = Run(tmp_path, None)
    for number in (1, 2):
        made.step()
        assert [line["step"] for line in lines(tmp_path)] == list(range(1, number + 1))
    line = lines(tmp_path)[0]
    assert list(line["ms"]) == list(line["memory_mb"]) == ORDER
    assert (line["padding_scored"], line["padding_trained"]) == (0.25, 0.2)
    assert {key: line[key] for key in STEP} == STEP
    assert line["mfu"] > 0
    assert list(line)[-1] == "seconds"


def test_keys_that_nobody_gave_are_left_out_or_null(tmp_path: Path) -> None:
    made = Run(tmp_path, None)
    optional = ("positions_scored", "positions_trained", "reuse_mb", "scoring", "bytes_sent")
    phases = made.recorder.phases
    phases.end("train")
    made.recorder.step = {key: value for key, value in STEP.items() if key not in optional}
    made.call("on_step_end")
    (line,) = lines(tmp_path)
    assert not set(optional) & set(line)
    assert line["padding_scored"] is line["padding_trained"] is None
    assert not any("padding" in key for key in made.recorder.take_means())


def test_on_a_gpu_lines_wait_for_the_device_and_keep_their_order(tmp_path: Path) -> None:
    gpu = Gpu()
    made = Run(tmp_path, gpu)
    made.step()
    assert lines(tmp_path) == []
    gpu.run_to_here()
    made.step()
    made.step()
    assert [line["step"] for line in lines(tmp_path)] == [1]
    assert gpu.waits == 0
    made.recorder.before_save()  # a complete checkpoint has a line for each of its steps
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]
    made.step()
    made.call("on_train_end")
    found = lines(tmp_path)
    assert [line["step"] for line in found] == [1, 2, 3, 4]
    assert all(list(line["ms"]) == ORDER and line["mfu"] > 0 for line in found)
    assert gpu.waits > 0


def test_a_loss_that_is_not_finite_leaves_all_lines(tmp_path: Path) -> None:
    made = Run(tmp_path, Gpu())
    made.step()
    with pytest.raises(NonFiniteError, match="At step 2"):
        made.step(loss=float("nan"))
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_an_error_that_no_callback_hears_of_leaves_all_lines(tmp_path: Path) -> None:
    made = Run(tmp_path, Gpu())
    made.step()
    assert lines(tmp_path) == []
    del made
    gc.collect()
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_the_next_run_in_the_folder_finds_all_lines(tmp_path: Path) -> None:
    made = Run(tmp_path, Gpu())
    made.step()
    made.step()
    step_log.start_log(tmp_path, 1)
    assert [line["step"] for line in lines(tmp_path)] == [1]
    del made
    gc.collect()
    assert [line["step"] for line in lines(tmp_path)] == [1]
    with pytest.raises(CheckpointError, match="Found 1"):
        step_log.start_log(tmp_path, 2)


def test_a_device_that_failed_costs_times_and_no_lines(tmp_path: Path) -> None:
    gpu = Gpu()
    made = Run(tmp_path, gpu)
    made.step()
    gpu.broken = True
    made.call("on_train_end")
    (line,) = lines(tmp_path)
    assert (line["step"], line["ms"], line["mfu"]) == (1, {}, None)
    assert list(line["memory_mb"]) == ORDER


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    made = Run(tmp_path, None)
    (tmp_path / "corebatch.json").unlink()
    made.state.is_world_process_zero = False
    made.call("on_train_begin")
    made.step()
    made.call("on_train_end")
    assert list(tmp_path.iterdir()) == []
    assert made.recorder.take_means()["tokens_scored"] == 600


def test_utilisation_is_model_flops_over_time_ranks_and_peak(tmp_path: Path) -> None:
    made = Run(tmp_path, None)
    made.recorder._trainer.accelerator.num_processes = 4
    made.recorder._peak = record.Peak(value=1e6, how="table")
    made.recorder._clock = Ticks()
    made.recorder.phases = Phases(made.recorder._clock)
    made.recorder.step = dict(STEP)
    for phase in ("score", "train"):
        made.recorder.phases.end(phase)
    made.call("on_step_end")
    flops = 600 * 2 * 32 + 200 * 6 * 32  # a linear layer of 8 x 4, no attention
    (line,) = lines(tmp_path)
    assert line["mfu"] == pytest.approx(flops / (2.0 * 4 * 1e6), rel=1e-3)
    means = made.recorder.take_means()
    assert means["mfu"] == pytest.approx(line["mfu"], rel=1e-3)
    assert means["tokens_scored_per_second"] == 300
    phases = Phases(Ticks())
    phases.end("train")
    for at_peak, told in ((0.5, 0.5), (1e9, None)):  # the last was measured while the machine had something else to do
        timed = step_log.TimedLine({**STEP, "step": 1}, phases, at_peak)
        assert timed.timed()
        assert timed.line().mfu == told


def test_means_for_the_trainers_log(tmp_path: Path) -> None:
    gpu = Gpu()
    made = Run(tmp_path, gpu)
    assert made.recorder.take_means() == {}
    made.step()
    gpu.run_to_here()
    gpu.allocate(30)
    made.step(pool_loss=4.0, positions_scored=1200)
    means = made.recorder.take_means()
    assert gpu.waits == 0
    assert (means["pool_loss"], means["tokens_scored"], means["tokens_trained"]) == (3.0, 600, 200)
    assert (means["padding_scored"], means["padding_trained"]) == (0.375, 0.2)
    first = lines(tmp_path)[0]  # the device has not finished the second
    assert {key: means[f"ms_{key}"] for key in ORDER} == pytest.approx(first["ms"], rel=1e-3)
    assert means["tokens_trained_per_second"] == pytest.approx(200_000 / sum(first["ms"].values()))
    assert [means[f"memory_mb_{key}"] for key in ORDER] == [30.0] * 7
    assert made.recorder.take_means() == {}
    made.step()  # not finished: no times, all the rest
    means = made.recorder.take_means()
    assert means["pool_loss"] == 2.0
    assert not any(key.startswith("ms_") or key in ("mfu", "tokens_scored_per_second") for key in means)


def test_a_run_of_the_trainer_has_them_in_its_log_and_its_record(tmp_path: Path) -> None:
    made = run(trainer(tmp_path, coreset=CoresetConfig(), max_steps=3, logging_steps=3))
    logged = made.state.log_history[0]
    found = lines(tmp_path)
    assert len(found) == 3
    for phase in ORDER:
        assert logged[f"ms_{phase}"] == pytest.approx(sum(line["ms"][phase] for line in found) / 3, rel=1e-3)
        assert logged[f"memory_mb_{phase}"] == max(line["memory_mb"][phase] for line in found)
    assert logged["mfu"] == pytest.approx(sum(line["mfu"] for line in found) / 3, rel=1e-3)
    peak = json.loads((tmp_path / "corebatch.json").read_text())["peak_flops"]
    assert peak["how"] == "measured matmul float32"
    assert peak["value"] > 0

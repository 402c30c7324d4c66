"""`corebatch compare`: several arms from one config, at equal budgets, tuned, over seeds."""

from __future__ import annotations

import math
import os
import random
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import datasets
import torch
from rich.console import Console
from transformers.utils import logging as transformers_logging

from corebatch.bench.runs import read_comparison, terminal_tables, write_outputs
from corebatch.bench.runs.arms import Arm, make_arms
from corebatch.bench.runs.costs import StepCost
from corebatch.bench.runs.engine import Setup
from corebatch.bench.runs.engine import compare as run_comparison
from corebatch.bench.runs.settings import CompareSettings
from corebatch.bench.runs.training_run import HeldOut, Place, count_flops, run_arm, time_arm, tune_arm
from corebatch.cli.main import hush
from corebatch.config.building import load_model, load_tokenizer, read_mixture
from corebatch.config.settings import Settings, settings_from
from corebatch.errors import ConfigError, CorebatchError
from corebatch.evaluation import evaluate, parse_task
from corebatch.mixture import PaddingCollator
from corebatch.record.provenance import provenance
from corebatch.text import say


def compare(values: Mapping[str, Any], where: str, console: Console) -> Path:
    """Runs the comparison of a config, or what of it is missing, and returns its folder.

    Args:
        values: the keys of the config, `compare` among them.
        where: the config's name, for errors.

    Raises:
        ConfigError: settings that do not go together, or a folder that holds something else.
    """
    settings, own, arms = parts(values, where)
    if not settings.data.eval_datasets:
        raise ConfigError(f"{where}: a comparison needs held-out data: the key 'eval_datasets' is missing.")
    for task in own.tasks:
        parse_task(task)  # an error now, and not after hours
    tokenizer = load_tokenizer(settings.model)
    rows = len(read_mixture(settings, tokenizer).dataset)
    drawn = arms[0].rows_drawn
    if rows < drawn:
        raise ConfigError(f"The data should hold a large batch of {drawn} rows at least. Found {rows}.")
    setup = Setup(
        arms=arms,
        settings=own,
        steps=reference_steps(settings, rows, drawn),
        rows=rows,
        learning_rate=float(settings.training_arguments().learning_rate),
        values=values,
    )
    folder = Path(settings.training["output_dir"])
    run_comparison(setup, folder, Processes(dict(values), where, own), console)
    show(folder, console)
    return folder


def show(folder: Path, console: Console, output: Path | None = None) -> Path:
    """Prints a comparison's tables, finished or not, writes its text and its page, and returns the page's path.

    Args:
        output: the folder that they go to, instead of the comparison's own.
    """
    found = read_comparison(folder)
    for each in terminal_tables(found):
        console.print(each)
    text, page = write_outputs(found, output)
    say(console, f"The comparison is in {text} and {page}")
    return page


def parts(values: Mapping[str, Any], where: str) -> tuple[Settings, CompareSettings, list[Arm]]:
    """The run's settings, the comparison's, and the arms."""
    settings = settings_from({key: value for key, value in values.items() if key != "compare"}, where)
    own = CompareSettings.from_dict(values.get("compare"))
    block = values.get("coreset") or {}
    arms = make_arms(own.arms, own.extra_arms, settings.coreset, block, settings.training)
    if settings.coreset.pool_factor < 2:
        raise ConfigError(f"{where}: coreset.pool_factor should be at least 2, or nothing is chosen. Found 1.")
    return settings, own, arms


def reference_steps(settings: Settings, rows: int, drawn: int) -> int:
    """Optimizer steps of the config: max_steps, or so many epochs."""
    args = settings.training_arguments()
    return args.max_steps if args.max_steps > 0 else max(1, math.ceil(args.num_train_epochs * rows / drawn))


# ---- processes ------------------------------------------------------------------------------------------------------


class Processes:
    """Worker processes that hold the data; each runs one job at a time."""

    def __init__(self, values: dict[str, Any], where: str, own: CompareSettings) -> None:
        found = 0 if values.get("use_cpu") else torch.cuda.device_count()
        gpus = list(own.devices) if own.devices is not None else list(range(found))
        if any(not isinstance(gpu, int) or not 0 <= gpu < found for gpu in gpus):
            raise ConfigError(f"compare.devices should be indices of the {found} GPUs here. Found {gpus}.")
        self.count = own.processes or max(1, len(gpus))
        self._args = (values, where)
        self._devices = [str(gpus[n % len(gpus)]) if gpus else None for n in range(self.count)]
        self._threads = own.threads or max(1, (os.cpu_count() or 1) // self.count)

    @contextmanager
    def one(self) -> Iterator[Callable[[dict[str, Any]], Any]]:
        with self._pool(1) as pool:
            yield lambda job: _alive(lambda: pool.submit(work, job).result())

    @contextmanager
    def all(self) -> Iterator[Callable[[Sequence[dict[str, Any]]], Iterator[tuple[dict[str, Any], Any]]]]:
        with self._pool(self.count) as pool:

            def each(jobs: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Any]]:
                futures: dict[Future[Any], dict[str, Any]] = {pool.submit(attempt, job): job for job in jobs}
                while futures:
                    for future in wait(futures, return_when=FIRST_COMPLETED).done:
                        yield futures.pop(future), _alive(future.result)

            yield each

    @contextmanager
    def _pool(self, count: int) -> Iterator[ProcessPoolExecutor]:
        context = get_context("spawn")
        devices = context.Queue()
        for device in self._devices[:count]:
            devices.put(device)
        pool = ProcessPoolExecutor(
            count, mp_context=context, initializer=start, initargs=(*self._args, self._threads, devices)
        )
        try:
            yield pool
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _alive(result: Callable[[], Any]) -> Any:
    try:
        return result()
    except BrokenProcessPool:
        raise CorebatchError(
            "A process of the comparison ended before its run (killed, or out of memory). What is finished is kept: "
            "run the same command again to go on."
        ) from None


_HERE: dict[str, Any] = {}


def start(values: dict[str, Any], where: str, threads: int, devices: Any) -> None:
    """Runs once in a worker process: its device and threads. The data are read by the first job."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    device = devices.get()
    if device is not None:  # one GPU alone is seen, before CUDA starts: the Trainer would take all
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        os.environ["CUDA_VISIBLE_DEVICES"] = seen.split(",")[int(device)] if seen else device
    else:
        torch.set_num_threads(threads)
    hush()
    # The comparison's own lines are all that a reader wants of so many runs.
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    _HERE.update(values=values, where=where, device="cpu" if device is None else "cuda:0")


def _end_with_parent() -> None:
    """A comparison that is killed takes its processes with it, also in the middle of a run."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def attempt(job: dict[str, Any]) -> Any:
    """The job's result, or its exception as a value: a run that fails is a line, not the end."""
    try:
        return work(job)
    except Exception as error:
        return error if isinstance(error, CorebatchError) else RuntimeError(f"{type(error).__name__}: {error}")


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Runs one job in this process; what it found, and where."""
    return {**_work(job), **provenance()}


def _work(job: dict[str, Any]) -> dict[str, Any]:
    if "place" not in _HERE:
        settings, own, arms = parts(_HERE["values"], _HERE["where"])
        methods = {arm.method.name: arm for arm in reversed(arms)}
        _HERE.update(place=make_place(settings, own, _HERE["device"]), own=own, arms=arms, methods=methods, warm=set())
    place: Place = _HERE["place"]
    own, arm = _HERE["own"], _HERE["methods"][job["method"]]
    if job["do"] in ("time", "flops"):
        drawn = _HERE["arms"][0].rows_drawn  # of the reference
        rows = rehearsal_rows(place.train, drawn, own.timing_pools if job["do"] == "time" else 3)
        if job["do"] == "flops":
            return {"flops": list(count_flops(arm, place, rows))}
        if job["method"] not in _HERE["warm"]:  # compiled kernels, and memory that is held from then on
            time_arm(arm, place, rows[:drawn], _HERE["device"])
            _HERE["warm"].add(job["method"])
        return {
            "seconds": list(time_arm(arm, place, rows, _HERE["device"])),
            "rows": len(rows),
            "threads": torch.get_num_threads(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        }
    tuned = {key: job[key] for key in ("steps", "seed", "learning_rate", "adam_beta2")}
    if job["do"] == "tune":
        return dict(tune_arm(arm, place, **tuned))
    return run_arm(
        _HERE["arms"][job["number"]],
        place,
        **tuned,
        seconds=StepCost(**job["seconds"]),
        flops=StepCost(**job["flops"]),
        evaluations=own.evaluations,
    )


def rehearsal_rows(train: Any, drawn: int, pools: int) -> list[int]:
    """So many large batches of rows at random, the same for every arm."""
    count = min(len(train) // drawn, pools) * drawn
    return random.Random(0).sample(range(len(train)), count)


def make_place(settings: Settings, own: CompareSettings, device: str) -> Place:
    """Data and model of the comparison in this process."""
    tokenizer = load_tokenizer(settings.model)
    train = read_mixture(settings, tokenizer).dataset
    held = read_mixture(settings, tokenizer, evaluation=True).dataset
    collate = PaddingCollator(tokenizer)
    names = sorted(set(held["source"]))
    tune, final = split_rows(held["source"], own.tune.held_out if own.tune.enabled else 0.0)
    if own.final_rows is not None:
        final = random.Random(3).sample(final, min(own.final_rows, len(final)))
    curve = random.Random(1).sample(final, min(own.curve_rows, len(final)))

    def batches(rows: Sequence[int]) -> HeldOut:
        return HeldOut.of(held, rows, collate, own.eval_rows, device, names)

    return Place(
        make_model=lambda: load_model(settings),
        tokenizer=tokenizer,
        train=train,
        collate=collate,
        tune=batches(random.Random(2).sample(tune, min(own.tune.rows, len(tune)))),
        curve=batches(curve),
        final=batches(final),
        evaluate_tasks=task_accuracy(own, tokenizer) if own.tasks else None,
    )


def task_accuracy(own: CompareSettings, tokenizer: Any) -> Callable[[Any], dict[str, float]]:
    """Model -> share of correct answers by task, and for tasks of several sources their mean.

    Raises:
        ConfigError, DataError: a task that is unknown or cannot be read.
    """
    tasks = [parse_task(task) for task in own.tasks]

    def measure(model: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for task in tasks:
            result = evaluate(model, tokenizer, task, progress=False)
            found[task.name] = result.overall.accuracy
            if len(result.sources) > 1:
                found[f"{task.name}, mean of sources"] = result.source_mean
        return found

    return measure


def split_rows(sources: Sequence[str], share: float) -> tuple[list[int], list[int]]:
    """Held-out rows for tuning and for the final evaluation: this share of each source, drawn once and for all."""
    rows: dict[str, list[int]] = defaultdict(list)
    for number, source in enumerate(sources):
        rows[source].append(number)
    tune: list[int] = []
    for name in sorted(rows):
        own = rows[name][:]
        random.Random(name).shuffle(own)
        tune += own[: round(share * len(own))] if len(own) > 1 else []
    kept = set(tune)
    return sorted(tune), [n for n in range(len(sources)) if n not in kept]

"""Jobs of a comparison or a search, run in the test's own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from corebatch.bench.runs import jobs


class InProcess:
    """In the place of `corebatch.bench.runs.processes.Processes`; what fails is told as from there."""

    count = 1

    def __init__(self, parts: Any) -> None:
        self.place = jobs.Workplace(parts, "cpu")

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    @contextmanager
    def all(self) -> Iterator[Any]:
        yield lambda wanted: ((job, self.outcome(job)) for job in wanted)

    def outcome(self, job: Any) -> Any:
        try:
            return self.place.run(job)
        except Exception as error:
            return jobs.failure(error)

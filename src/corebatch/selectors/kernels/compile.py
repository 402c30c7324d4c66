"""Loops that numba compiles where it can be had, each with a numpy twin where it cannot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, ParamSpec, TypeVar

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")


class Kernel(Generic[_Args, _Result]):
    """A function with two bodies: `loop`, which numba compiles, and `fallback`, in numpy.

    numba is imported at the first call, not with corebatch: it takes most of a second. The compiled code is
    kept on disk where that works. An install folder that cannot be written, or a cache that cannot be read
    (another numba, a half-written file), costs a compilation in every process, and nothing else.
    """

    def __init__(
        self,
        loop: Callable[_Args, _Result],
        fallback: Callable[_Args, _Result],
        fastmath: Iterable[str] = (),
    ) -> None:
        self.loop = loop
        self.fallback = fallback
        self.fastmath = set(fastmath)  # LLVM's flags: "reassoc" lets sums of floats be vectorised
        self._run: Callable[_Args, _Result] | None = None
        self._from_cache = False

    def __call__(self, *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        run = self._prepare() if self._run is None else self._run
        try:
            return run(*args, **kwargs)
        except Exception:
            # numba reads and writes its cache within the call, and a broken cache raises whatever unpickling
            # raises. Loops write only to arrays of their own, so running again is safe.
            if not self._from_cache:
                raise
        run = self._prepare(cache=False)
        return run(*args, **kwargs)

    def _prepare(self, cache: bool = True) -> Callable[_Args, _Result]:
        try:
            import numba
        except ImportError:
            self._run, self._from_cache = self.fallback, False
            return self.fallback
        options = {"fastmath": self.fastmath} if self.fastmath else {}
        try:
            self._run, self._from_cache = numba.njit(cache=cache, **options)(self.loop), cache
        except RuntimeError:
            # "cannot cache function: no locator available": neither folder can be written.
            self._run, self._from_cache = numba.njit(**options)(self.loop), False
        return self._run

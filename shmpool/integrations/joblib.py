"""joblib over a pool: a backend whose workers are a `shmpool.Executor`'s.

::

    shmpool.joblib.register()
    with joblib.parallel_config(backend="shmpool", n_jobs=4, memory_limit="1GiB"):
        joblib.Parallel()(joblib.delayed(work)(array) for array in arrays)

Calls are pickled with cloudpickle, so functions of an interactive session work, as with loky.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from joblib import register_parallel_backend
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase, SequentialBackend

from ..pools import Pool
from ..system.importing import door, explained
from .executor import Executor

try:
    from joblib.externals.cloudpickle import CloudPickler
except ImportError:  # a joblib that has it as a dependency
    from cloudpickle import CloudPickler


class Backend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """What joblib knows by the name "shmpool". *memory_limit*, *retries* and *mp_context* are those of `Executor`;
    with *pool* there is no private broker."""

    supports_retrieve_callback = True
    supports_timeout = True

    def __init__(
        self,
        memory_limit: int | str = "512MiB",
        retries: int = 0,
        mp_context: Any = None,
        pool: Pool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._options = {"memory_limit": memory_limit, "retries": retries, "mp_context": mp_context, "pool": pool}
        self._executor: Executor | None = None
        self._workers = 0

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many workers that means; -1 is one for each processor."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs < 0:
            with door, explained:
                from joblib import cpu_count

            return max(int(cpu_count()) + 1 + n_jobs, 1)
        return int(n_jobs)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **_: Any) -> int:
        """Called by joblib before its first call."""
        workers = self.effective_n_jobs(n_jobs)
        if workers == 1:
            with door, explained:
                from joblib.parallel import FallbackToBackend

            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        if self._executor is None or self._workers != workers:
            self.terminate()
            self._executor, self._workers = Executor(workers, pickler=CloudPickler, **self._options), workers
        self.parallel = parallel
        return workers

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Future[Any]:
        """Have a batch of calls done."""
        assert self._executor is not None
        future = self._executor.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    #: What joblib called it before.
    apply_async = submit

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch, or what it raised."""
        return out.result()

    def terminate(self) -> None:
        """End the workers."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A call has failed: what has not begun is not done."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.shutdown(cancel_futures=True)
        if ensure_ready:
            self.configure(n_jobs=self._workers, parallel=self.parallel)


def register(*, make_default: bool = False) -> None:
    """Have joblib know the backend "shmpool"; *make_default* for all that say nothing else."""
    register_parallel_backend("shmpool", Backend, make_default=make_default)

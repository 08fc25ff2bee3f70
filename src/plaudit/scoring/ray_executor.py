"""Scoring on a Ray cluster: one task reads the source, a pool of workers scores its chunks in any order."""

import logging
import pickle
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers.utils.logging import disable_progress_bar

from plaudit.data.reader import Chunk, Source
from plaudit.errors import ConfigError, PlauditError
from plaudit.scoring.job import Executor
from plaudit.scoring.worker import ScoredChunk, ScoringConfig, Worker

try:
    import ray
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
    from ray.data.block import BlockMetadata
except ImportError as error:
    raise ConfigError(f"--engine ray needs Ray Data ({error}). Install it: pip install 'plaudit[ray]'") from error

__all__ = ["RayExecutor"]


class RayExecutor(Executor):
    """Score chunks in the workers of a Ray cluster: the one of RAY_ADDRESS, else one that runs or is started here.

    Args:
        min_workers: Number of workers at the start.
        max_workers: Greatest number of workers; `None` for as many as the cluster has room for.
    """

    def __init__(self, min_workers: int = 1, max_workers: int | None = None) -> None:
        self.min_workers, self.max_workers = min_workers, max_workers

    def default_device(self) -> str:
        """Return "cuda" if the cluster has GPUs, else "cpu"."""
        _connect()
        return "cuda" if ray.cluster_resources().get("GPU", 0) > 0 else "cpu"

    def score(
        self,
        config: ScoringConfig,
        source: Source,
        done: frozenset[int],
        on_batch: Callable[[Chunk, float], object],  # noqa: ARG002  # batches run in other processes
    ) -> Generator[ScoredChunk]:
        """Return the scored chunks of a source, in any order; raise the errors that a worker raised."""
        _connect()
        # Ray's processes run in folders of their own.
        config, source = replace(config, model=_absolute(config.model)), replace(source, path=_absolute(source.path))
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.target_max_block_size = 1  # then each chunk, which is a row there, goes to a worker by itself
        here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
        chunks = ray.data.read_datasource(
            _ChunkSource(source, config.chunk_rows, done), override_num_blocks=1, num_cpus=0, label_selector=here
        )
        on_gpu = str(config.device).startswith("cuda")
        scored = chunks.map_batches(
            _RayWorker, fn_constructor_args=(config,), batch_size=1, batch_format="numpy",
            compute=ActorPoolStrategy(min_size=self.min_workers, max_size=self.max_workers),
            num_cpus=None if on_gpu else config.threads, num_gpus=1 if on_gpu else None,
        )  # fmt: skip
        with closing(iter(scored.iter_rows())) as rows:  # or the rest of the run would outlive an error
            for row in rows:
                result = pickle.loads(row["pickled"])
                if isinstance(result, PlauditError):
                    raise result
                yield result


class _ChunkSource(Datasource):
    """The chunks of a source, each pickled into one value: Arrow would give its rows other types."""

    def __init__(self, source: Source, chunk_rows: int, done: frozenset[int]) -> None:
        super().__init__()
        self._source, self._chunk_rows, self._done = source, chunk_rows, done

    def estimate_inmemory_data_size(self) -> int | None:
        """Return `None`, for an unknown size."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:  # noqa: ARG002  # one task reads
        """Return one task, which reads on as its chunks are taken."""
        return [ReadTask(self._read, BlockMetadata(None, None, None, None))]

    def _read(self) -> Iterator[pa.Table]:
        try:
            for chunk in self._source.chunks(self._chunk_rows, self._done):
                yield _pickled(chunk)
        except PlauditError as error:
            yield _pickled(error)


class _RayWorker:
    """A `Worker` in a process of its own, which returns Plaudit's errors: Ray would wrap raised ones in tracebacks."""

    def __init__(self, config: ScoringConfig) -> None:
        disable_progress_bar()  # transformers' bar would appear on the driver's terminal
        self._config = config
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the one chunk of a batch; an error of the source is passed on."""
        result: Chunk | ScoredChunk | PlauditError = pickle.loads(batch["pickled"][0])
        try:
            if isinstance(result, Chunk):
                self._worker = self._worker or Worker(self._config)
                result = self._worker.score(result)
        except PlauditError as error:
            result = error
        return {"pickled": [pickle.dumps(result)]}


def _connect() -> None:
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # Ray logs its plans


def _absolute(path: str) -> str:
    """Return the absolute path of a file or folder, and a hub id as it is."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path


def _pickled(value: Chunk | PlauditError) -> pa.Table:
    return pa.table({"pickled": pa.array([pickle.dumps(value)], pa.large_binary())})

"""Scoring on a Ray cluster: one task reads, a pool of workers scores, and blocks come back as they are ready."""

import logging
import pickle
from collections.abc import Container, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
from transformers.utils.logging import disable_progress_bar

from plaudit.data.reader import Chunk as Block
from plaudit.data.reader import Source
from plaudit.errors import ConfigError, PlauditError
from plaudit.scoring.worker import ScoredBlock, Settings, Worker

try:
    import ray
    import ray.data
    from ray.data import ActorPoolStrategy, DataContext, Datasource, ReadTask
    from ray.data.block import BlockMetadata
except ImportError as error:
    raise ConfigError(f"--engine ray needs Ray Data ({error}). Install it: pip install 'plaudit[ray]'") from error

__all__ = ["connect", "score_on_ray"]


def connect() -> bool:
    """Join the cluster that RAY_ADDRESS or this machine names, else start one here; whether it has GPUs."""
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its plans go there, and a remark on bars that are off
    return ray.cluster_resources().get("GPU", 0) > 0


def score_on_ray(
    settings: Settings, source: Source, size: int, done: Container[int], workers: tuple[int, int | None]
) -> Generator[ScoredBlock]:
    """Score the blocks of a source that are not done, in whatever order they get ready.

    Args:
        settings: What all workers score with.
        source: Read once, on this machine.
        size: Rows of a block.
        done: Numbers of blocks to pass over.
        workers: The least and the most of them; `None` for as many as there is room for.

    Raises:
        PlauditError: What a worker raises.
    """
    connect()
    # Its processes run in folders of their own.
    settings, source = replace(settings, model=_absolute(settings.model)), replace(source, path=_absolute(source.path))
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block of ours is a row there, and goes to a worker by itself
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    blocks = ray.data.read_datasource(
        _Blocks(source, size, done), override_num_blocks=1, num_cpus=0, label_selector=here
    )
    on_gpu = settings.device.startswith("cuda")
    scored = blocks.map_batches(
        _RayWorker, fn_constructor_args=(settings,), batch_size=1, batch_format="numpy",
        compute=ActorPoolStrategy(min_size=workers[0], max_size=workers[1]),
        num_cpus=None if on_gpu else settings.threads, num_gpus=1 if on_gpu else None,
    )  # fmt: skip
    with closing(iter(scored.iter_rows())) as rows:  # what is left of a run must not outlive an error
        for row in rows:
            outcome = pickle.loads(row["packed"])
            if isinstance(outcome, PlauditError):
                raise outcome
            yield outcome


class _Blocks(Datasource):
    """The blocks of a source, each packed into one value: Arrow would give its rows other types."""

    def __init__(self, source: Source, size: int, done: Container[int]) -> None:
        super().__init__()
        self._source, self._size, self._done = source, size, done

    def estimate_inmemory_data_size(self) -> int | None:
        """Nobody knows."""
        return None

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:  # noqa: ARG002  # one reads
        """One task, which reads on as its blocks are taken."""
        return [ReadTask(self._read, BlockMetadata(None, None, None, None))]

    def _read(self) -> Iterator[pa.Table]:
        try:
            for block in self._source.chunks(self._size, self._done):
                yield _packed(block)
        except PlauditError as error:
            yield _packed(error)


class _RayWorker:
    """A `Worker` in a process of its own. Errors of ours travel as values: Ray would bury them in tracebacks."""

    def __init__(self, settings: Settings) -> None:
        disable_progress_bar()  # transformers': it would come out on the driver's terminal
        self._worker: Worker | PlauditError
        try:
            self._worker = Worker(settings)
        except PlauditError as error:
            self._worker = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Score the one block of a batch."""
        outcome: Block | ScoredBlock | PlauditError = pickle.loads(batch["packed"][0])
        if isinstance(self._worker, PlauditError):
            outcome = self._worker
        elif isinstance(outcome, Block):
            try:
                outcome = self._worker.score(outcome)
            except PlauditError as error:
                outcome = error
        return {"packed": [pickle.dumps(outcome)]}


def _absolute(path: str) -> str:
    """Of a hub id, itself."""
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else path


def _packed(value: Block | PlauditError) -> pa.Table:
    return pa.table({"packed": pa.array([pickle.dumps(value)], pa.large_binary())})

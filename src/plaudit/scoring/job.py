"""A scoring job: the rows of a source, scored in chunks into a file; a job that was stopped goes on where it was."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch

from plaudit.data.reader import Chunk, Source
from plaudit.errors import ConfigError, DataError
from plaudit.models.placement import resolve_device
from plaudit.scoring.chunk_store import ChunkStore, Counts, rejected_path
from plaudit.scoring.manifest import input_manifest, model_manifest
from plaudit.scoring.worker import ScoredChunk, ScoringConfig, Worker

__all__ = ["Executor", "LocalExecutor", "Progress", "score_file"]


@dataclass(frozen=True)
class Progress:
    """How far a job is, its earlier starts included.

    Attributes:
        counts: The counts of the complete chunks.
        rows: Rows with rewards, those of the chunk that is being scored included.
        fraction: How much of the source is done, from 0 to 1, if that is known.
        workers: Number of workers that have scored a chunk since this start.
    """

    counts: Counts
    rows: int
    fraction: float | None
    workers: int


class Executor(Protocol):
    """Where the chunks of a job are scored."""

    def default_device(self) -> str:
        """Return the device to run on if neither the options nor an earlier start name one."""

    def score(
        self, config: ScoringConfig, source: Source, done: frozenset[int], on_batch: Callable[[Chunk, float], object]
    ) -> Generator[ScoredChunk]:
        """Load the model where that is possible at once, and return the scored chunks of a source, in any order.

        Args:
            config: The options, device and threads settled.
            source: The rows.
            done: Numbers of the chunks to leave out.
            on_batch: Called after each batch with its chunk and the fraction of that chunk's sequences that are
                scored, if the executor can tell.
        """


class LocalExecutor:
    """Score chunks one after the other in this process."""

    def default_device(self) -> str:
        """Return the accelerator if there is one, else the CPU."""
        return resolve_device(None).type

    def score(
        self, config: ScoringConfig, source: Source, done: frozenset[int], on_batch: Callable[[Chunk, float], object]
    ) -> Generator[ScoredChunk]:
        """Load the model, and return the scored chunks of a source, in order."""
        worker = Worker(config)  # loaded now, not when the first chunk is asked for
        return (worker.score(chunk, partial(on_batch, chunk)) for chunk in source.chunks(config.chunk_rows, done))


def score_file(
    source: Source,
    output: Path,
    config: ScoringConfig,
    *,
    executor: Executor | None = None,
    restart: bool = False,
    report: Callable[[Progress], object] = lambda _: None,
) -> Progress:
    """Score the rows of a source and write them, with their rewards, to a file.

    Chunks are written as they are scored, so a job that is stopped in any way goes on after the complete ones when it
    is called with the same arguments again, without `restart`. The output is that of a job that was never stopped, byte
    for byte.

    Args:
        source: The rows.
        output: The file to make, beside which the chunks lie until it is complete.
        config: The options.
        executor: Where the chunks are scored; in this process by default.
        restart: Discard the chunks of earlier starts, and replace the output if it exists.
        report: Called at the start, when the model is loaded, after each chunk and, if the executor can tell, after
            each batch.

    Returns:
        The progress at the end.

    Raises:
        ConfigError: The options, the input or the model are not those of the earlier start, or the output cannot be
            made.
        DataError: The source cannot be read, or, unless `skip_bad_rows`, a row cannot be scored.
        CheckpointError: The disk is full.
    """
    executor = executor or LocalExecutor()
    if source.holds(output):
        raise ConfigError(
            f"--output: '{output}' lies in INPUT, and would be read as a part of it. Name a place outside."
        )
    with ChunkStore(output, restart=restart) as store:
        config = _settled(config, store.options, executor)
        manifest = {
            "input": input_manifest(source), "model": model_manifest(config.model), "options": config.manifest(),
        }  # fmt: skip
        store.check_manifest(manifest)
        tracker, schema = _Tracker(store, report), source.schema()
        with closing(executor.score(config, source, frozenset(store.done), tracker.on_batch)) as chunks:
            tracker.on_ready()
            for chunk in chunks:
                if chunk.rejected and not config.skip_bad_rows:
                    raise DataError(_bad_row(chunk, store, restart))
                store.add(chunk, schema)
                tracker.on_chunk(chunk)
        store.check_manifest(manifest | {"input": input_manifest(source)})  # nothing was written to it meanwhile
        store.finish()
    return tracker.progress


class _Tracker:
    """Counts what is scored, and reports it."""

    def __init__(self, store: ChunkStore, report: Callable[[Progress], object]) -> None:
        self._store, self._report = store, report
        self._workers: set[str] = set()
        self.on_ready()

    def on_ready(self) -> None:
        self._update(self._store.counts.rows, None)

    def on_chunk(self, chunk: ScoredChunk) -> None:
        self._workers.add(chunk.worker)
        self._update(self._store.counts.rows, chunk.fraction_read)

    def on_batch(self, chunk: Chunk, fraction: float) -> None:
        rows, end = fraction * len(chunk.rows), chunk.fraction_read  # the end of the chunk has been read already
        done = None if end is None else end * (chunk.first + rows) / (chunk.first + len(chunk.rows))
        self._update(self._store.counts.rows + int(rows), done)

    def _update(self, rows: int, fraction: float | None) -> None:
        self.progress = Progress(self._store.counts, rows, fraction, len(self._workers))
        self._report(self.progress)


def _settled(config: ScoringConfig, earlier: dict[str, Any], executor: Executor) -> ScoringConfig:
    """Fill in the device and the threads: another number of threads or another device would give other last bits."""
    return replace(
        config,
        device=config.device or earlier.get("device") or executor.default_device(),
        threads=config.threads or earlier.get("threads") or torch.get_num_threads(),
    )


def _bad_row(chunk: ScoredChunk, store: ChunkStore, restart: bool) -> str:
    start = " and without --restart" if restart else ""
    return (
        f"{chunk.rejected[0]['reason']}\nThe same command with --on_error skip{start} writes such rows to "
        f"'{rejected_path(store.output)}' and goes on after the {store.counts.rows:,} rows that are scored."
    )

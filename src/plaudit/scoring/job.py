"""A scoring job: the rows of a source, scored in chunks into a file; a job that was stopped goes on where it was."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from plaudit.data.reader import Chunk, Source
from plaudit.errors import ConfigError, DataError
from plaudit.models.placement import resolve_device
from plaudit.scoring.chunk_store import ChunkStore, Counts, rejected_path
from plaudit.scoring.manifest import input_manifest, job_manifest
from plaudit.scoring.server_connection import is_server_url
from plaudit.scoring.worker import ScoredChunk, ScoringConfig, Worker

__all__ = ["Executor", "Progress", "score_file"]


@dataclass(frozen=True)
class Progress:
    """The progress of a job, its earlier starts included.

    Attributes:
        counts: The counts of the complete chunks.
        rows: Rows with rewards, those of the chunk that is being scored included.
        fraction: The fraction of the source that is scored, from 0 to 1, if that is known.
        workers: Number of workers that have scored a chunk since this start.
    """

    counts: Counts
    rows: int
    fraction: float | None
    workers: int


class Executor:
    """Score the chunks of a job one after the other in this process; a subclass scores them elsewhere."""

    def default_device(self) -> str:
        """Return the device to run on if neither the options nor an earlier start name one."""
        return resolve_device(None).type

    def score(
        self, config: ScoringConfig, source: Source, done: frozenset[int], on_batch: Callable[[Chunk, float], object]
    ) -> Generator[ScoredChunk]:
        """Load the model, and return the scored chunks of a source; those of a subclass may come in any order.

        Args:
            config: The options, with device and threads chosen.
            source: The rows.
            done: Numbers of the chunks to leave out.
            on_batch: Called after each batch with its chunk and the fraction of that chunk's sequences that are scored.
                A subclass need not call it.
        """
        worker = Worker(config)  # outside of the generator, which would load the model when the first chunk is taken
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
        ServerError: The server of the model does not answer.
    """
    executor = executor or Executor()
    if source.holds(output):
        raise ConfigError(
            f"--output: '{output}' lies in INPUT, and would be read as a part of it. Name a place outside."
        )
    with ChunkStore(output, restart=restart) as store:
        if not is_server_url(config.model):
            # Another device or another number of threads would change the last bits of the rewards.
            config = replace(
                config,
                device=config.device or store.options.get("device") or executor.default_device(),
                threads=config.threads or store.options.get("threads") or torch.get_num_threads(),
            )
        manifest = job_manifest(source, config)
        store.check_manifest(manifest)
        tracker, schema = _Tracker(store, report), source.schema()
        with closing(executor.score(config, source, frozenset(store.done), tracker.on_batch)) as chunks:
            tracker.show()
            for chunk in chunks:
                if chunk.rejected and not config.skip_bad_rows:
                    raise DataError(_bad_row(chunk, store))
                store.add(chunk, schema)
                tracker.on_chunk(chunk)
        store.check_manifest(manifest | {"input": input_manifest(source)})  # nothing was written to it meanwhile
        store.finish()
    return tracker.progress


class _Tracker:
    """The progress of a job, reported as it changes."""

    def __init__(self, store: ChunkStore, report: Callable[[Progress], object]) -> None:
        self._store, self._report = store, report
        self._workers: set[str] = set()
        self.show()

    def show(self, rows: int = 0, fraction: float | None = None) -> None:
        counts = self._store.counts
        self.progress = Progress(counts, counts.rows + rows, fraction, len(self._workers))
        self._report(self.progress)

    def on_chunk(self, chunk: ScoredChunk) -> None:
        self._workers.add(chunk.worker)
        self.show(fraction=chunk.fraction_read)

    def on_batch(self, chunk: Chunk, fraction: float) -> None:
        rows, end = fraction * len(chunk.rows), chunk.fraction_read  # the end of the chunk has been read already
        done = None if end is None else end * (chunk.first + rows) / (chunk.first + len(chunk.rows))
        self.show(int(rows), done)


def _bad_row(chunk: ScoredChunk, store: ChunkStore) -> str:
    return (
        f"{chunk.rejected[0]['reason']}\nThe same command with --on_error skip (and without --restart) writes such "
        f"rows to '{rejected_path(store.output)}' and goes on after the {store.counts.rows:,} rows that are scored."
    )

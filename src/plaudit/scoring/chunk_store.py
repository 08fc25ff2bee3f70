"""The chunks of a scoring job on disk: each complete or not there, and joined into the output at the end.

Beside the output OUT lie `_scoring-OUT.lock`, which one process holds, and, until the job is finished, `_scoring-OUT`:

manifest.json       what decides the rewards: properties of the input, the model and the options
00000007.rows       the rows of a chunk, as they go into OUT
00000007.rejected   the rows of the chunk that could not be scored, if there are any
00000007.json       the counts of the chunk; written last, so a chunk that has it is complete
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
from filelock import FileLock, Timeout

from plaudit.checkpoint.atomic import remove_folder, staged_file
from plaudit.checkpoint.disk_full import explain_disk_full
from plaudit.errors import CheckpointError, ConfigError, DataError
from plaudit.scoring.manifest import Manifest, differences
from plaudit.scoring.output_formats import check_output, join_chunks, join_files, write_chunk, write_rejected
from plaudit.scoring.worker import ScoredChunk

__all__ = ["ChunkStore", "Counts", "rejected_path"]


@dataclass(frozen=True)
class Counts:
    """Counts of some chunks.

    Attributes:
        rows: Rows with rewards.
        rejected: Rows that could not be scored.
        tokens: Tokens of the sequences that were scored.
        truncated: Sequences that were truncated.
    """

    rows: int = 0
    rejected: int = 0
    tokens: int = 0
    truncated: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*map(sum, zip(astuple(self), astuple(other), strict=True)))


def rejected_path(output: Path) -> Path:
    """Return the file beside an output for the rows that could not be scored."""
    return output.with_name(f"{output.name}.rejected.jsonl")


class ChunkStore:
    """The chunks of one output, over any number of starts; a context in which no other process may write that output.

    Args:
        output: The file to make.
        restart: Discard the chunks of earlier starts, and replace the output if it exists.

    Attributes:
        options: The options in the manifest of an earlier start; empty if there was none.
        done: The numbers of the chunks that are complete.
        counts: The counts of these chunks.

    Raises:
        ConfigError: The output cannot be made, exists already, or another process is writing it.
    """

    def __init__(self, output: Path, *, restart: bool = False) -> None:
        check_output(output)
        self.output = output
        self._folder = output.with_name(f"_scoring-{output.name}")
        self._lock = FileLock(f"{self._folder}.lock")  # the system releases it however this process ends
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise ConfigError(
                f"--output: another run is writing '{output}'. Wait for that run, or name another output."
            ) from error
        if restart:
            remove_folder(self._folder)
        counts = {int(path.stem): Counts(**json.loads(path.read_text())) for path in self._folder.glob("[0-9]*.json")}
        self.done, self.counts = set(counts), sum(counts.values(), start=Counts())
        if output.exists() and not restart and not self.done:
            self._close()
            raise ConfigError(
                f"--output: '{output}' exists already. Name another output, or give --restart to replace it."
            )
        self._folder.mkdir(exist_ok=True)
        for staged in self._folder.glob("_*"):
            staged.unlink()  # left by a start that was killed while it wrote; as large as the output at most
        manifest = self._folder / "manifest.json"
        self._manifest: Manifest = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        self.options = self._manifest.get("options", {})

    def __enter__(self) -> "ChunkStore":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def check_manifest(self, manifest: Manifest) -> None:
        """Compare a manifest with that of the complete chunks; if there are none, store it.

        Raises:
            ConfigError: The manifests differ; the message names each difference.
        """
        if not self.done:
            with self._writing("manifest.json") as file:
                file.write(json.dumps(manifest, indent=2).encode())
            self._manifest = json.loads(json.dumps(manifest))
        if changes := differences(self._manifest, manifest):
            raise ConfigError(
                f"'{self._folder}' holds {len(self.done):,} chunks that were scored from something else: "
                f"{'; '.join(changes)}. Undo the change to go on, or give --restart to score all rows anew."
            )

    def add(self, chunk: ScoredChunk, schema: pa.Schema | None) -> None:
        """Write a chunk, with the types of the source's columns if the source has types.

        Raises:
            DataError: The rows cannot be written in the output's format.
            CheckpointError: The disk is full.
        """
        name = f"{chunk.number:08}"
        if chunk.rows:
            with self._writing(f"{name}.rows") as file:
                write_chunk(chunk.rows, file, self.output, schema)
        if chunk.rejected:
            with self._writing(f"{name}.rejected") as file:
                write_rejected(chunk.rejected, file)
        counts = Counts(len(chunk.rows), len(chunk.rejected), chunk.tokens, chunk.truncated)
        with self._writing(f"{name}.json") as file:
            file.write(json.dumps(asdict(counts)).encode())
        self.done.add(chunk.number)
        self.counts += counts

    def finish(self) -> None:
        """Join all chunks into the output, and remove what the job needed on the way.

        Raises:
            CheckpointError: A chunk is missing, or the disk is full.
            DataError: No row could be scored, or the chunks cannot be joined in the output's format.
        """
        if missing := set(range(len(self.done))) - self.done:
            raise CheckpointError(f"'{self._folder}': chunk {min(missing)} is missing. Run the same command again.")
        rejected = rejected_path(self.output)
        if self.counts.rejected:
            with self._writing("rejected", rejected) as file:
                join_files(self._files("rejected"), file)
        else:
            rejected.unlink(missing_ok=True)  # of an earlier output
        if not self.counts.rows:
            raise DataError(
                f"none of the {self.counts.rejected:,} rows could be scored; the reasons are in '{rejected}'"
            )
        with self._writing("rows", self.output) as file:
            join_chunks(self._files("rows"), file, self.output)
        remove_folder(self._folder)

    def _close(self) -> None:
        """Release the lock, and leave nothing behind if there is nothing to go on from."""
        if not self.done or not self._folder.exists():
            remove_folder(self._folder)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def _files(self, kind: str) -> list[Path]:
        paths = (self._folder / f"{number:08}.{kind}" for number in sorted(self.done))
        return [path for path in paths if path.exists()]

    @contextmanager
    def _writing(self, name: str, target: Path | None = None) -> Iterator[BinaryIO]:
        """Open a file of the folder for writing; when it is complete, rename it to `target`, by default its name."""
        advice = (
            "Make room for twice the size of the output. The same command (without --restart) goes on after the "
            f"{self.counts.rows:,} rows that are scored."
        )
        staging = self._folder / f"_{name}-{os.getpid()}"
        with explain_disk_full(self.output, advice), staged_file(target or self._folder / name, staging) as file:
            yield file

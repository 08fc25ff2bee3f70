"""A run of `plaudit score` on the disk: blocks that are whole or not there, and what they were made with.

Beside OUT lie `_scoring-OUT.lock`, which one process holds, and `_scoring-OUT` while a run is on its way:

manifest.json            what decides the rewards: of the input, the model and the options
00000007.rows            a block's rows, in a form that goes into OUT
00000007.rejected        its rows that could not be scored, if there are some
00000007.json            its counts; renamed to this name last, so a block that has it is whole
"""

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock, Timeout
from huggingface_hub import HfApi

from plaudit.checkpoint.atomic import remove_folder
from plaudit.checkpoint.metadata import read_description
from plaudit.data.reader import Source
from plaudit.errors import CheckpointError, ConfigError, DataError
from plaudit.scoring.output_formats import check_output, join_lines, join_parts, on_disk, write_aside, write_part
from plaudit.scoring.worker import ScoredBlock

__all__ = ["Counts", "Run", "fingerprint_of_model", "fingerprint_of_source"]

Manifest = dict[str, dict[str, Any]]

_MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt", "*.tiktoken", "*.py")


@dataclass(frozen=True)
class Counts:
    """What has become of some rows.

    Attributes:
        rows: Those with rewards.
        rejected: Those that could not be scored.
        tokens: Tokens of their sequences.
        cut: Sequences that were cut.
    """

    rows: int = 0
    rejected: int = 0
    tokens: int = 0
    cut: int = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(mine + its for mine, its in zip(asdict(self).values(), asdict(other).values(), strict=True)))


class Run:
    """The scoring of one source into one file, over any number of starts; a context in which nobody else makes it.

    Args:
        output: The file to make.
        restart: Give up what an earlier start has done, and replace the file if it is there.

    Attributes:
        rejected: Where the rows go that could not be scored.
        earlier: The options of the start before; none if this is the first.
        done: The numbers of the blocks that are whole.
        counts: What has become of their rows.

    Raises:
        ConfigError: The file cannot be made, is there already, or another run is making it.
    """

    def __init__(self, output: Path, *, restart: bool = False) -> None:
        check_output(output)
        self.output = output
        self.rejected = output.with_name(f"{output.name}.rejected.jsonl")
        self._folder = output.with_name(f"_scoring-{output.name}")
        self._lock = FileLock(f"{self._folder}.lock")  # the system lets go of it however this process ends
        try:
            self._lock.acquire(blocking=False)
        except Timeout as error:
            raise ConfigError(f"--output: another run is writing '{output}'. Wait for it, or name another.") from error
        if restart:
            remove_folder(self._folder)
        counts = {int(path.stem): Counts(**json.loads(path.read_text())) for path in self._folder.glob("[0-9]*.json")}
        self.done, self.counts = set(counts), sum(counts.values(), start=Counts())
        if output.exists() and not restart and not self.done:
            self._leave()
            raise ConfigError(f"--output: '{output}' is there already. Name another, or give --restart to replace it.")
        self._folder.mkdir(exist_ok=True)
        for staged in self._folder.glob("_*"):
            staged.unlink()  # a start that was killed while it wrote; the last one may be as large as the output
        manifest = self._folder / "manifest.json"
        self._earlier: Manifest = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        self.earlier = self._earlier.get("options", {})

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        """Let others in, and leave nothing behind where nothing is done or all is."""
        if not self.done or not self._folder.exists():
            remove_folder(self._folder)
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()

    def agree_on(self, manifest: Manifest) -> None:
        """Go on only if what decides the rewards is what it was when the run began.

        Args:
            manifest: It, by the name of the part ("input", "model", "options") and of what is in it. A "commit" of
                `None` agrees with any: the hub could not be asked.

        Raises:
            ConfigError: Something is different.
        """
        if not self.done:
            self._put("manifest.json", json.dumps(manifest, indent=2))
            self._earlier = json.loads(json.dumps(manifest))
        changes = []
        for part, values in self._earlier.items():
            for name in sorted({*values, *manifest[part]}):
                was, now = values.get(name), manifest[part].get(name)
                if was != now and not (name == "commit" and None in (was, now)):
                    changes.append(f"{part}: {name} was {was}, is {now}")
        if changes:
            raise ConfigError(
                f"'{self._folder}' holds {len(self.done):,} blocks that were scored from something else: "
                f"{'; '.join(changes)}. Run with what it was to go on, or give --restart to score all rows anew."
            )

    def commit(self, scored: ScoredBlock, schema: pa.Schema | None) -> None:
        """Put a block on the disk.

        Args:
            scored: The block.
            schema: The types of the source's columns, where it says them.

        Raises:
            DataError: Its rows have no form in the output's format.
        """
        name = f"{scored.number:08}"
        if scored.rows:
            staged = self._staged(name)
            write_part(scored.rows, staged, self.output, schema)
            os.replace(staged, self._folder / f"{name}.rows")
        if scored.rejected:
            write_aside(scored.rejected, self._staged(name))
            os.replace(self._staged(name), self._folder / f"{name}.rejected")
        counts = Counts(len(scored.rows), len(scored.rejected), scored.tokens, scored.cut)
        self._put(f"{name}.json", json.dumps(asdict(counts)))
        self.done.add(scored.number)
        self.counts += counts

    def finish(self) -> None:
        """Make the output of all blocks, and take away what the run has needed.

        Raises:
            CheckpointError: A block is missing.
            DataError: No row could be scored, or the blocks do not go together in the output's format.
        """
        if missing := set(range(len(self.done))) - self.done:
            raise CheckpointError(f"'{self._folder}': block {min(missing)} is missing. Run once more.")
        if self.counts.rejected:
            join_lines(self._parts("rejected"), self._staged("rejected"))
            os.replace(self._staged("rejected"), self.rejected)
        else:
            self.rejected.unlink(missing_ok=True)
        if not self.counts.rows:
            raise DataError(f"none of the {self.counts.rejected:,} rows could be scored; '{self.rejected}' says why")
        join_parts(self._parts("rows"), self._staged("rows"), self.output)
        os.replace(self._staged("rows"), self.output)
        remove_folder(self._folder)

    def _parts(self, kind: str) -> list[Path]:
        paths = (self._folder / f"{number:08}.{kind}" for number in sorted(self.done))
        return [path for path in paths if path.exists()]

    def _staged(self, name: str) -> Path:
        return self._folder / f"_{name}-{os.getpid()}"

    def _put(self, name: str, text: str) -> None:
        staged = self._staged(name)
        with on_disk(staged) as file:
            file.write(text.encode())
        os.replace(staged, self._folder / name)


def fingerprint_of_source(source: Source) -> dict[str, Any]:
    """What tells that a source is still the same: of files their sizes and times, of a hub dataset its commit."""
    said = {"config": source.config, "split": source.split}
    local = Path(source.path).expanduser()
    if not local.exists():
        return {"path": source.path, "commit": _commit(source.path, "dataset")} | said
    files = [local] if local.is_file() else sorted(path for path in local.rglob("*") if path.is_file())
    return {"path": str(local.resolve()), **_state(files)} | said


def fingerprint_of_model(path: str) -> dict[str, Any]:
    """What tells that a model is still the same: the fingerprint in `reward.json`, and its files' sizes and times."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return {"path": path, "commit": _commit(path, "model")}
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text(encoding="utf-8")).get("base_model_name_or_path") if adapter.exists() else None
    folders = [folder, Path(base)] if base and Path(base).is_dir() else [folder]
    # `reward.json` itself is written anew when the model is verified once more.
    every = (file for each in folders for pattern in _MODEL_FILES for file in each.glob(pattern))
    files = sorted(file for file in every if file.name != "reward.json")
    scores = json.dumps(read_description(folder).get("fingerprint"), sort_keys=True)
    return {"path": str(folder.resolve()), "fingerprint": _digest([scores]), **_state(files)}


def _state(files: list[Path]) -> dict[str, Any]:
    states = [file.stat() for file in files]
    written = _digest(
        f"{file.resolve()} {state.st_size} {state.st_mtime_ns}" for file, state in zip(files, states, strict=True)
    )
    return {"bytes": sum(state.st_size for state in states), "files": written}


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _commit(name: str, kind: str) -> str | None:
    try:
        return HfApi().repo_info(name, repo_type=kind).sha
    except Exception:  # offline, or no such name: whoever loads it says so better
        return None

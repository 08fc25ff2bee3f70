"""`ensemble.json`: the folder of an ensemble names its members, and holds the constants by which they are compared."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from transformers.utils import cached_file

from plaudit.checkpoint.atomic import write_atomically
from plaudit.checkpoint.member_agreement import SavedMember
from plaudit.checkpoint.metadata import library_versions
from plaudit.errors import CheckpointError, ConfigError
from plaudit.uncertainty import MemberUncertainty, uncertainty_from_dict

__all__ = ["ENSEMBLE_FILE", "SavedEnsemble"]

ENSEMBLE_FILE = "ensemble.json"


@dataclass(frozen=True)
class SavedEnsemble:
    """The content of `ensemble.json`.

    Attributes:
        file: The file, for messages.
        members: Folders or hub ids of the K members.
        digests: Digest of the fingerprint of each member when the ensemble was made; `None` for one without.
        constants: Centre and scale of each member.
        measured_on: The sequences that the constants were measured on, in words.
    """

    file: Path
    members: tuple[str, ...]
    digests: tuple[str | None, ...]
    constants: MemberUncertainty
    measured_on: str

    def write(self, folder: Path) -> None:
        """Write the file into `folder`, whole or not at all; it names the members as they are seen from `file`."""
        root = self.file.parent.resolve()  # `..` leads from where the folder is, not from a link to it
        members: list[dict[str, str | None]] = [
            {**_entry_of_member(root, path), "fingerprint": digest}
            for path, digest in zip(self.members, self.digests, strict=True)
        ]
        content = {
            "versions": library_versions(), "members": members, "uncertainty": self.constants.to_dict(),
            "measured_on": self.measured_on,
        }  # fmt: skip
        write_atomically(folder / ENSEMBLE_FILE, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    @classmethod
    def read(cls, path_or_id: str | Path, **hub: Any) -> "SavedEnsemble | None":
        """Read the file from a folder or from the hub; return `None` where there is none.

        Args:
            path_or_id: The folder or hub id.
            **hub: `revision`, `subfolder`, `token`, ..., as for `from_pretrained`.

        Raises:
            CheckpointError: The file is damaged, lacks its constants, or names a member that is not there.
        """
        try:
            file = Path(cached_file(str(path_or_id), ENSEMBLE_FILE, **hub))
        except OSError:  # there is no such file or place, or the hub cannot be reached
            return None
        entries, constants, measured_on = _parse(file)
        root = file.parent.resolve()  # the folder and not the file, which the hub's cache keeps elsewhere
        if not Path(path_or_id).is_dir() and any(folder for folder, _, _ in entries):
            root = Path(snapshot_download(str(path_or_id), revision=hub.get("revision"), token=hub.get("token")))
        members = [str(hub_id) if folder is None else os.path.normpath(root / folder) for folder, hub_id, _ in entries]
        missing = [path for path, entry in zip(members, entries, strict=True) if entry[0] and not Path(path).is_dir()]
        if missing:
            raise CheckpointError(
                f"{file} names the member {missing[0]}, and there is no such folder. Put it back, or write the "
                "ensemble anew where its members lie; `plaudit ensemble --copy` puts copies of them inside."
            )
        return cls(file, tuple(members), tuple(digest for _, _, digest in entries), constants, measured_on)

    def check_unchanged(self, members: Sequence[SavedMember]) -> None:
        """Raise if a member has been trained on since the constants were measured.

        Raises:
            CheckpointError: The fingerprint of a member is another one.
        """
        for member, digest in zip(members, self.digests, strict=True):
            if digest is not None and member.digest != digest:
                raise CheckpointError(
                    f"{self.file}: the member {member.path} has other weights than when the ensemble was made "
                    f"(fingerprint {member.digest}, expected {digest}), so the constants are not its own. Write the "
                    "ensemble anew by `plaudit ensemble`, or put the former weights back."
                )


def _parse(file: Path) -> tuple[list[tuple[str | None, str | None, str | None]], MemberUncertainty, str]:
    """Return folder, hub id and digest of each member, the constants, and what these were measured on."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = [(each.get("folder"), each.get("hub_id"), each.get("fingerprint")) for each in content["members"]]
        constants = uncertainty_from_dict(content["uncertainty"])
        if not isinstance(constants, MemberUncertainty) or len(constants.centers) != len(entries):
            raise ConfigError(f"{len(entries)} members and the constants {constants}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{file}: expected `members`, and as `uncertainty` the constants of as many ({type(error).__name__}: "
            f"{error}). Write it anew: `plaudit ensemble A B C --output FOLDER --data REFERENCE`."
        ) from error
    return entries, constants, str(content.get("measured_on", "unknown"))


def _entry_of_member(root: Path, path: str) -> dict[str, str]:
    """Return the entry of a member: a folder relative to `root` where there is such a way, or a hub id."""
    if not Path(path).is_dir() and not Path(path).is_absolute():
        return {"hub_id": path}
    try:
        place = Path(path).parent.resolve() / Path(path).name  # a member that is a link itself is named as the link
        return {"folder": Path(os.path.relpath(place, root)).as_posix()}
    except ValueError:  # on another drive of Windows
        return {"folder": str(Path(path).absolute())}

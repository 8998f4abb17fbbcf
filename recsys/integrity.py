"""That a bundle is what was exported: a checksum of every file, and a fingerprint of the whole.

Export hashes every file once, when all are written. `verify` hashes them all again; nothing else reads a table through.
"""

import hashlib
from pathlib import Path
from typing import Any

from features.errors import InputError
from features.manifest import MANIFEST, fingerprint

FILES, FINGERPRINT, FORMAT = "files", "fingerprint", "format"

PRESENT_FORMAT = 1
"""Of the files of a bundle; one that was written in another form cannot be read."""

_MEANT = ("schema", "split", "has_clock")
"""What the manifest says that changes answers."""


def described(directory: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What the manifest of a directory says of its files.

    Args:
        directory: all its files are written but the manifest, which is none of them.
        facts: what its manifest says besides.

    Returns:
        `format`; `files`, of each by its path `sha256` and `bytes`; `fingerprint`, 16 hex digits of all of them and of
        what `facts` means for answers: bundles that answer alike in every way have the same.
    """
    files = {
        path.relative_to(directory).as_posix(): {"sha256": _sha256(path), "bytes": path.stat().st_size}
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    return {FORMAT: PRESENT_FORMAT, FILES: files, FINGERPRINT: _fingerprint(facts, files)}


def require_whole(directory: Path, facts: dict[str, Any]) -> None:
    """Refuse a bundle of another form, whose manifest contradicts itself, or whose files are not of the sizes it says.

    Reads no file; what has the right size may still have the wrong content, see `verify`.

    Raises:
        InputError: it is so; names the first such file.
    """
    if facts.get(FORMAT) != PRESENT_FORMAT:
        raise InputError(
            f"{directory}: a bundle of form {facts.get(FORMAT, 0)}, and this version reads form {PRESENT_FORMAT}; run "
            "`recsys export` again"
        )
    if facts[FINGERPRINT] != _fingerprint(facts, facts[FILES]):
        raise InputError(f"{directory}: its manifest.json has been changed; run `recsys export` again")
    for name, file in facts[FILES].items():
        path = directory / name
        size = path.stat().st_size if path.is_file() else None
        if size != file["bytes"]:
            found = "is missing" if size is None else f"has {size} bytes"
            raise InputError(f"{path}: {found} where {file['bytes']} were exported; run `recsys export` again")


def verify(directory: Path, facts: dict[str, Any], names: list[str] | None = None) -> None:
    """Refuse a bundle any of whose files is not byte for byte what was exported.

    Args:
        directory: of the bundle.
        facts: its manifest.
        names: files to read through; all if not given.

    Raises:
        InputError: it is so; names the first such file.
    """
    require_whole(directory, facts)
    for name in facts[FILES] if names is None else names:
        if _sha256(directory / name) != facts[FILES][name]["sha256"]:
            raise InputError(
                f"{directory / name}: its content is not what was exported (its SHA-256 differs); run `recsys export` "
                "again"
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(facts: dict[str, Any], files: dict[str, Any]) -> str:
    return fingerprint({name: facts.get(name) for name in _MEANT}, files)

"""Directories that are either finished or absent, and the manifest that says what they were made from.

A stage writes aside and renames, so that one that died half-way leaves nothing that looks finished. A stage whose
manifest bears the fingerprint of the present inputs is not run again.
"""

import hashlib
import json
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from features.errors import InputError

MANIFEST = "manifest.json"


def fingerprint(*parts: object) -> str:
    """A short, stable name of JSON-able values: 16 hex digits of their SHA-256."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(path: Path) -> str:
    """The same for a file's content.

    Raises:
        InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; set the dataset's path to an existing one")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def source_fingerprint(places: tuple[str, ...]) -> str:
    """The same for folders and files of this project's source, so that what changed code made is made again."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for place in places:
        for path in _sources(root / place):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(place: Path) -> list[Path]:
    if place.is_file():
        return [place]
    return sorted(path for path in place.rglob("*") if path.suffix in (".py", ".jinja"))


def read(directory: Path) -> dict[str, Any] | None:
    """The manifest of a finished directory; None where there is none."""
    path = directory / MANIFEST
    return read_json(path) if path.exists() else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    return json.loads(path.read_text(encoding="utf-8"))


@contextmanager
def finished_directory(directory: Path, manifest: dict[str, Any]) -> Generator[Path]:
    """Yield an empty directory to fill; on success it replaces `directory`, with `manifest` written last.

    What the caller adds to `manifest` inside the block is written too. On an error nothing is left.
    """
    aside = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        write_json(aside / MANIFEST, manifest)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    # The old one goes by renaming, so that at no moment half of it stands under its name.
    old = directory.with_name(directory.name + ".replaced")
    shutil.rmtree(old, ignore_errors=True)
    if directory.exists():
        directory.rename(old)
    aside.rename(directory)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` aside and rename, so that a reader never sees half a file."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """The same for text; makes the directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".unfinished")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)

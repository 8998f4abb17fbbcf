"""A deployed bundle is read through once on a host, and again only where its files have been touched since.

`recsys deploy` hashes every file and writes `<fingerprint>.verified.json` beside the bundle: of each file its inode,
size, and times of change, by host. A replica that loads the bundle compares these, which costs nothing, and hashes the
files that are not as noted: all of them on another host, none otherwise. Whoever writes into a file changes them; what
a disk loses by itself is found by `recsys deploy` and by the recorded questions alone.
"""

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from features import manifest
from features.errors import InputError
from recsys import integrity

States = dict[str, list[int]]
"""File → device, inode, size, and the times of its last change."""


def require(bundle: Path) -> int:
    """Refuse a bundle that is not what was exported; how many of its files had to be read through.

    Raises:
        InputError: it is so.
    """
    facts = manifest.read(bundle)
    if facts is None:
        raise InputError(f"{bundle}: no bundle here; run `recsys deploy` again")
    noted, states = _read(_place(bundle)).get(socket.gethostname(), {}), _states(bundle, facts)
    touched = [name for name, state in states.items() if noted.get(name) != state]
    if touched:
        integrity.verify(bundle, facts, touched)
        with suppress(OSError):  # on a volume that can only be read the next one reads again
            note(bundle, states)
    return len(touched)


def read_through(bundle: Path, facts: dict[str, Any]) -> States:
    """Compare every file with its checksum; the states in which they were found whole.

    Raises:
        InputError: one is not what was exported.
    """
    states = _states(bundle, facts)
    integrity.verify(bundle, facts)
    return states


def note(bundle: Path, states: States) -> None:
    """Remember on this host the states in which the files of a bundle were found whole."""
    manifest.write_json(_place(bundle), _read(_place(bundle)) | {socket.gethostname(): states})


def _states(bundle: Path, facts: dict[str, Any]) -> States:
    integrity.require_whole(bundle, facts)
    return {name: _state(bundle / name) for name in facts[integrity.FILES]}


def _place(bundle: Path) -> Path:
    return bundle.with_name(f"{bundle.name}.verified.json")


def _state(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _read(note: Path) -> dict[str, Any]:
    try:
        return manifest.read_json(note)
    except (OSError, json.JSONDecodeError):
        return {}

"""API keys: who may ask for what. The file holds their hashes; `python -m serving.keys` writes it.

A key is 256 random bits, so that nobody can try them all, nor guess one from a list: one SHA-256 is as good a hash as
a slow one, which would only make every request slow. It is salted by nothing for the same reason.
"""

import hashlib
import hmac
import ipaddress
import json
import os
import secrets
import time
from pathlib import Path
from typing import Literal, get_args

from pydantic import Field, ValidationError

from features.errors import InputError
from features.settings import Settings

Scope = Literal["read", "write", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
LOOK_SECONDS = 1.0
"""How often the file is looked at: a key that is taken out is refused after so long."""


class Key(Settings):
    """One entry of the file."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    """Who has it; what metrics and logs say."""
    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    """Of the key itself, which is nowhere."""
    scopes: frozenset[Scope]
    """`read`: feeds, items, histories; `write`: events and tastes; `admin`: erase, reload, list people."""
    rate: float | None = Field(default=None, gt=0)
    """Requests a second at each replica; None: as `[serve.limits] rate` says."""


class KeyFile(Settings):
    """What the file holds, as JSON."""

    keys: tuple[Key, ...] = ()


ANYBODY = Key(name="anybody", sha256="0" * 64, scopes=frozenset(SCOPES))
"""Who asks where no keys are configured, which only a loopback address allows."""


class Keys:
    """The keys of a file, read again when it changes."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            InputError: it cannot be read, or says what no key says.
        """
        self._path = path
        self._keys = read(path).keys
        self._changed = path.stat().st_mtime_ns
        self._looked = time.monotonic()

    def find(self, presented: str) -> Key | None:
        """Whose key this is; every hash is compared to its end, whether or not one before it was right."""
        self._look()
        digest = hash_of(presented)
        found = None
        for key in self._keys:
            if hmac.compare_digest(key.sha256, digest):
                found = key
        return found

    def _look(self) -> None:
        if (now := time.monotonic()) - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        try:
            changed = self._path.stat().st_mtime_ns
            if changed != self._changed:
                self._keys, self._changed = read(self._path).keys, changed
        except (OSError, InputError):
            return  # A file that is being replaced, or is wrong now, takes nobody's key away.


def hash_of(key: str) -> str:
    """As the file holds it."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def read(path: Path) -> KeyFile:
    """The keys of a file.

    Raises:
        InputError: it cannot be read, or says what no key says.
    """
    try:
        return KeyFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"serve.keys = {str(path)!r} cannot be read ({error.strerror}); make it with "
            f"`python -m serving.keys {path} add NAME`"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{path}: {field}: {first['msg']}; correct it, or make the key again") from None


def write(path: Path, keys: KeyFile) -> None:
    """Replace the file at once; only its owner can read it."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    entries = [
        {"name": key.name, "sha256": key.sha256, "scopes": sorted(key.scopes), "rate": key.rate} for key in keys.keys
    ]
    with os.fdopen(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        json.dump({"keys": entries}, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


def require_keys(host: str, keys: str | None) -> None:
    """Refuse to answer strangers without keys.

    Raises:
        InputError: the address is not a loopback's, and there are no keys.
    """
    if keys is None and not is_loopback(host):
        raise InputError(
            f"serve.host = {host!r} is open to others, and serve.keys names no file of keys; make one with "
            "`python -m serving.keys keys.json add NAME` and set serve.keys, or set serve.host = '127.0.0.1'"
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

"""Make, list and take away API keys; a key is shown once, when it is made.

python -m serving.keys keys.json add app --scopes read,write --rate 100
python -m serving.keys keys.json list
python -m serving.keys keys.json remove app
"""

import argparse
import secrets
import sys
from pathlib import Path

from features.errors import InputError, one_of
from serving.auth import SCOPES, Key, KeyFile, Scope, hash_of, read, write

PREFIX = "feedline_"
"""Begins every key, so that one that was published by mistake can be searched for."""


def main(words: list[str] | None = None) -> None:
    """Read the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m serving.keys", description="API keys of a service.")
    parser.add_argument("file", type=Path, help="what serve.keys names")
    verbs = parser.add_subparsers(dest="verb", required=True)
    adding = verbs.add_parser("add", help="make a key and show it, once")
    adding.add_argument("name")
    adding.add_argument("--scopes", default="read", help=f"of {', '.join(SCOPES)}, with commas")
    adding.add_argument("--rate", type=float, default=None, help="requests a second at each replica")
    verbs.add_parser("list", help="names, scopes and rates")
    verbs.add_parser("remove", help="refuse a key from now on").add_argument("name")
    given = parser.parse_args(words)
    try:
        if given.verb == "add":
            print(add(given.file, given.name, given.scopes.split(","), given.rate))
        elif given.verb == "remove":
            remove(given.file, given.name)
        else:
            for key in read(given.file).keys:
                rate = "" if key.rate is None else f"  {key.rate:g} requests a second"
                print(f"{key.name}  {','.join(sorted(key.scopes))}{rate}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def add(path: Path, name: str, scopes: list[str], rate: float | None = None) -> str:
    """A new key in the file, which is made if there is none.

    Returns:
        The key, which nothing can show again.

    Raises:
        InputError: the name is taken or is none, or a scope is not known.
    """
    keys = read(path).keys if path.exists() else ()
    if any(key.name == name for key in keys):
        raise InputError(f"{path}: there is a key named {name!r}; remove it first, or take another name")
    known: frozenset[Scope] = frozenset(scope for scope in SCOPES if scope in scopes)
    for scope in scopes:
        if scope not in SCOPES:
            raise one_of("--scopes", scope, list(SCOPES))
    shown = PREFIX + secrets.token_urlsafe(32)
    try:
        made = Key(name=name, sha256=hash_of(shown), scopes=known, rate=rate)
    except ValueError:
        raise InputError(
            f"{name!r}, rate {rate}: a name has up to 64 letters, digits, '.', '_', '-', and a rate is above 0"
        ) from None
    write(path, KeyFile(keys=(*keys, made)))
    return shown


def remove(path: Path, name: str) -> None:
    """Take a key out; running servers refuse it within a second or two.

    Raises:
        InputError: there is no such key.
    """
    keys = read(path).keys
    if all(key.name != name for key in keys):
        raise one_of("name", name, [key.name for key in keys])
    write(path, KeyFile(keys=tuple(key for key in keys if key.name != name)))


if __name__ == "__main__":
    main()

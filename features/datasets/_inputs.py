"""Files that a dataset's config names: there, and readable as text or JSON, or one line that says what is wrong."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from features.errors import InputError


def require_files(fields: Mapping[str, Path | None]) -> list[Path]:
    """The paths of config fields, those that are set.

    Raises:
        InputError: one is not an existing file.
    """
    given = {field: path for field, path in fields.items() if path is not None}
    for field, path in given.items():
        if not path.is_file():
            raise InputError(f"{path}: no such file; set {field} to an existing one")
    return list(given.values())


def read_text(path: Path, encoding: str = "utf-8") -> str:
    """A whole text file.

    Raises:
        InputError: it is not in that encoding.
    """
    try:
        return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}, byte {error.start}: not {encoding} text; convert it to {encoding}") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: it is not one.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: not JSON ({error.msg}); mend it") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: holds a JSON {type(value).__name__}, not an object; give one of id → value")
    return cast("dict[str, Any]", value)

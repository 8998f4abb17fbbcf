"""The TOML file of a run: read, merged with the command line, checked section by section, errors in one line.

This file imports nothing heavy, so that what needs no model answers at once.
"""

import difflib
import tomllib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from features import registry
from features.errors import InputError

Section = TypeVar("Section", bound=BaseModel)


def read_toml(path: Path, overrides: list[str]) -> dict[str, Any]:
    """The file with the overrides merged in, nothing checked yet.

    Args:
        path: the TOML file.
        overrides: `--section.field value` or `--section.field=value`, values as in TOML, or bare text.

    Raises:
        InputError: no such file, not TOML, or an override without a value.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such config file; see configs/ for those that are shipped")
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path}: not valid TOML: {error}; mend that line") from None
    tree = _with_run(tree, path)
    words = [word for override in overrides for word in _split(override)]
    if len(words) % 2:
        raise InputError(f"option {words[-1]} has no value; write {words[-1]} VALUE")
    for name, value in zip(words[::2], words[1::2], strict=True):
        if not name.startswith("--"):
            raise InputError(f"unexpected argument {name!r}; options are --section.field VALUE")
        *sections, field = name.removeprefix("--").split(".")
        if not sections:
            raise InputError(f"unknown option {name}; options are --section.field VALUE, as in {path}")
        place = tree
        for section in sections:
            place = place.setdefault(section, {})
            if not isinstance(place, dict):
                raise InputError(f"option {name}: '{section}' is no section that can be overridden; edit {path}")
        place[field] = _value(value)
    return tree


def _with_run(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """A file whose [serve] names a run is that run, with what the file itself says of serving put first."""
    section = tree.get("serve", {})
    if "run" not in section:
        return tree
    if len(tree) > 1:
        others = ", ".join(name for name in tree if name != "serve")
        raise InputError(f"{path}: serve.run names a run, which {others} would be of too; take {others} out")
    named = path.parent / section["run"]
    base = read_toml(named, [])
    own = {name: value for name, value in section.items() if name != "run"}
    return base | {"serve": _merged(base.get("serve", {}), own)}


def _merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    both = {
        name: _merged(below[name], value) if isinstance(value, dict) and isinstance(below.get(name), dict) else value
        for name, value in above.items()
    }
    return below | both


def check_dataset(tree: dict[str, Any], path: Path) -> tuple[Any, Any]:
    """The module and the checked Config of the dataset that a run names."""
    section = dict(tree.get("dataset", {}))
    if "kind" not in section:
        raise InputError(
            f"{path}: dataset.kind is missing; use one of: {', '.join(registry.known('features.datasets'))}"
        )
    module = registry.load("features.datasets", section.pop("kind"), f"{path}: dataset.kind")
    return module, validate(module.Config, section, str(path), "dataset.")


def validate(model: type[Section], tree: dict[str, Any], source: str, prefix: str) -> Section:
    """`tree` as `model`; what is wrong first becomes one line."""
    try:
        return model.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        parts = [part for part in first["loc"] if isinstance(part, str | int)]
        field = (prefix + ".".join(str(part) for part in parts)).rstrip(".")
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, parts[:-1])
            near = difflib.get_close_matches(str(parts[-1]), known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
            raise InputError(f"{source}: unknown key {field}; {hint}") from None
        if first["type"] == "missing":
            raise InputError(f"{source}: {field} is missing; set it") from None
        message = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict | BaseModel) else f" = {first['input']!r}"
        raise InputError(f"{source}: {field}{given}: {message[0].lower()}{message[1:]}") from None


def _known_keys(model: type[BaseModel], path: list[str | int]) -> list[str]:
    """The keys of the section at `path`."""
    for part in path:
        if isinstance(part, int) or part not in model.model_fields:  # the place in a list, the key of a dict
            continue
        annotation = model.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        model = next(kind for kind in candidates if isinstance(kind, type) and issubclass(kind, BaseModel))
    return sorted(model.model_fields)


def _split(override: str) -> list[str]:
    return override.split("=", 1) if override.startswith("--") else [override]


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text

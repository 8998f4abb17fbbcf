"""Files as the registry: `kind = "movielens"` is `features/datasets/movielens.py`.

A new kind is a new file. A miss lists the known names; an ImportError inside the file surfaces as it is.
"""

import pkgutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

from features.errors import one_of


def known(package: str) -> list[str]:
    """The names that `load` accepts for `package`: its public modules, sorted, found without importing it."""
    spec = find_spec(package)
    assert spec is not None, package
    assert spec.submodule_search_locations is not None, package
    paths = [str(Path(location)) for location in spec.submodule_search_locations]
    return sorted(module.name for module in pkgutil.iter_modules(paths) if not module.name.startswith("_"))


def load(package: str, kind: str, field: str) -> ModuleType:
    """Import `package.kind`; `field` names the config field that asked for it.

    Raises:
        InputError: there is no such file.
    """
    if kind not in known(package):
        raise one_of(field, kind, known(package))
    return import_module(f"{package}.{kind}")

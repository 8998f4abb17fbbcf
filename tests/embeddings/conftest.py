from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys import distributed


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of this process."""
    with distributed.process_group(0, 1, f"file://{tmp_path / 'rendezvous'}"):
        yield

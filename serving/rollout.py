"""What is asked to be served: variants, whom each answers, and which came before; one file of a run.

    runs/<name>/served/
        deployment.json         a `Rollout`: written aside and renamed, so that a reader never sees half of it
        <fingerprint>/          a bundle, as it was verified; never changed afterwards

People are spread over 10,000 slots by a hash of their id and the experiment's salt. A variant has slots of its own, the
control has the rest. Where a share grows or shrinks, slots go from the control to the variant or back, and nobody else
moves.
"""

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from features.errors import InputError
from features.manifest import read_json, write_json
from features.online import Id
from features.settings import Settings
from recsys import inference

FILE = "deployment.json"
CONTROL = "control"
SLOTS = 10_000
"""The unit of shares is 1 / 10,000."""


class Part(Settings):
    """A bundle, how it recommends, and whom it answers."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,32}$")
    """How responses and logs call it."""
    bundle: str
    """Its fingerprint, which is the name of its directory."""
    recommend: inference.Config
    """How it retrieves and blends."""
    slots: tuple[tuple[int, int], ...] = ()
    """Whom it answers: slots from the first on, up to the second. None for the control, which has the rest."""

    @property
    def size(self) -> int:
        """How many slots it has."""
        return sum(end - start for start, end in self.slots)


class Deployment(Settings):
    """Who answers whom."""

    number: int = Field(ge=1)
    """Counts up, and stays with what it counts."""
    made: str
    """When it was asked for, UTC."""
    salt: str
    """Of the experiment: another one spreads people anew."""
    retain: int = Field(gt=0)
    """Events of a history that the store keeps."""
    control: Part
    """Answers everybody that no variant has."""
    variants: tuple[Part, ...] = ()
    """Answer the people of their slots."""
    shadows: tuple[Part, ...] = ()
    """Asked after the response, for logs and metrics alone."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [part.name for part in self.parts]
        if len(set(names)) != len(names):
            raise ValueError(f"two variants have one name: {', '.join(names)}")
        spans = sorted(span for part in self.variants for span in part.slots)
        edges = [edge for span in spans for edge in span]
        if edges != sorted(edges) or any(not 0 <= start < end <= SLOTS for start, end in spans):
            raise ValueError(f"slots of variants overlap, or are none of {SLOTS}")
        return self

    @property
    def parts(self) -> tuple[Part, ...]:
        """All of them, the control first."""
        return (self.control, *self.variants, *self.shadows)

    def share(self, part: Part) -> float:
        """The share of people that a part answers."""
        if part is self.control:
            return 1 - sum(other.size for other in self.variants) / SLOTS
        return part.size / SLOTS

    def with_variant(self, part: Part, share: float) -> "Deployment":
        """The same with a variant beside the control, in place of one of its name; a share of 0 takes it out.

        Raises:
            InputError: the shares of all variants leave nothing for the control.
        """
        wanted = round(share * SLOTS)
        others = tuple(other for other in self.variants if other.name != part.name)
        held = next((other.slots for other in self.variants if other.name == part.name), ())
        taken = sum(other.size for other in others)
        if share and not 0 < wanted < SLOTS - taken:
            raise InputError(
                f"--share {share:g}: a share is at least {1 / SLOTS:g}, and all together leave something for the "
                f"control; other variants have {taken / SLOTS:g}; give another"
            )
        changed = part.model_copy(update={"slots": _resized(held, wanted, [s for o in others for s in o.slots])})
        kept = (*others, changed) if wanted else others
        return self.model_copy(update={"variants": kept, "shadows": self._shadows_but(part.name)})

    def with_shadow(self, part: Part) -> "Deployment":
        """The same with a shadow, in place of one of its name."""
        return self.without(part.name).model_copy(update={"shadows": (*self._shadows_but(part.name), part)})

    def without(self, name: str) -> "Deployment":
        """The same with no variant and no shadow of this name."""
        kept = tuple(other for other in self.variants if other.name != name)
        return self.model_copy(update={"variants": kept, "shadows": self._shadows_but(name)})

    def _shadows_but(self, name: str) -> tuple[Part, ...]:
        return tuple(other for other in self.shadows if other.name != name)


class Rollout(Settings):
    """The deployment that is asked for, and those to which a rollback leads."""

    current: Deployment
    """What is asked for."""
    earlier: tuple[Deployment, ...] = ()
    """Before it, the latest first."""
    last: int = Field(ge=1)
    """The highest number that a deployment was ever given."""


def slot(salt: str, user: Id) -> int:
    """Where a person stands, from 0 to 9,999: the same in every process and on every machine, for good."""
    kind = "i" if isinstance(user, int) else "s"
    digest = blake2b(f"{salt}\0{kind}{user}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") * SLOTS >> 64


def read(folder: Path) -> Rollout | None:
    """What is asked for in a run's folder; None where nothing was deployed yet.

    Raises:
        InputError: the file is not what `write` leaves.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        return Rollout.model_validate(read_json(path))
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"{path}: cannot be read ({first}); take it away and run `recsys deploy` again") from None


def write(folder: Path, rollout: Rollout) -> None:
    """Ask for something else."""
    write_json(folder / FILE, rollout.model_dump(mode="json"))


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """One change at a time, whoever makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def sweep(folder: Path, rollout: Rollout) -> list[str]:
    """Take away the bundles that neither the present deployment nor an earlier one has; their names."""
    kept = {part.bundle for each in (rollout.current, *rollout.earlier) for part in each.parts}
    gone = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in kept)
    for name in gone:
        shutil.rmtree(folder / name)
        (folder / f"{name}.verified.json").unlink(missing_ok=True)
    return gone


def summary(deployment: Deployment) -> dict[str, Any]:
    """For people: number, when it was made, and of each part its name, bundle and share."""
    parts = {part.name: {"bundle": part.bundle, "share": deployment.share(part)} for part in deployment.parts}
    return {"number": deployment.number, "made": deployment.made, "variants": parts}


def _resized(
    held: tuple[tuple[int, int], ...], wanted: int, taken: list[tuple[int, int]]
) -> tuple[tuple[int, int], ...]:
    """As many of the held slots as are wanted, or all of them and free ones besides."""
    free: list[tuple[int, int]] = []
    start = 0
    for low, high in sorted([*held, *taken, (SLOTS, SLOTS)]):
        if start < low:
            free.append((start, low))
        start = high
    found: list[tuple[int, int]] = []
    for low, high in (*held, *free):
        count = min(high - low, wanted - sum(end - begin for begin, end in found))
        if count > 0:
            found.append((low, low + count))
    merged: list[tuple[int, int]] = []
    for low, high in sorted(found):
        if merged and merged[-1][1] == low:
            merged[-1] = (merged[-1][0], high)
        else:
            merged.append((low, high))
    return tuple(merged)

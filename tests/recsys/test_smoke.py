"""A bundle says what it is: any byte that changed is found, and any answer that is another one."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from features import manifest
from features.errors import InputError
from recsys import bundle as bundles
from recsys import integrity, smoke
from tests.conftest import FinishedRun


@pytest.fixture
def bundle(finished_run: FinishedRun, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(finished_run.directory / "bundle" / "time", tmp_path / "bundle"))


def facts(bundle: Path) -> dict[str, Any]:
    found = manifest.read(bundle)
    assert found is not None
    return found


def test_every_file_counts(bundle: Path) -> None:
    integrity.verify(bundle, facts(bundle))
    files = facts(bundle)[integrity.FILES]
    assert set(files) == {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()} - {
        manifest.MANIFEST
    }
    for name in files:
        path = bundle / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(InputError, match=rf"{path.name}: its content is not what was exported .* `recsys export`"):
            integrity.verify(bundle, facts(bundle))
        path.write_bytes(whole[:-1])
        with pytest.raises(InputError, match=rf"{path.name}: has {len(whole) - 1} bytes where {len(whole)} were"):
            integrity.require_whole(bundle, facts(bundle))
        path.write_bytes(whole)
    integrity.verify(bundle, facts(bundle))


def test_a_manifest_that_was_changed_to_fit_is_found(bundle: Path) -> None:
    changed = facts(bundle)
    changed["files"]["config.json"]["sha256"] = "0" * 64
    manifest.write_json(bundle / manifest.MANIFEST, changed)
    with pytest.raises(InputError, match=r"manifest\.json has been changed"):
        integrity.require_whole(bundle, facts(bundle))


def test_the_same_models_have_the_same_fingerprint_and_others_another(bundle: Path) -> None:
    first = facts(bundle)
    again = integrity.described(bundle, first)
    assert again["fingerprint"] == first["fingerprint"]
    assert integrity.described(bundle, first | {"has_clock": False})["fingerprint"] != first["fingerprint"]


def test_recorded_questions_are_answered_alike_again_and_no_other_model_passes(bundle: Path) -> None:
    loaded = bundles.load(bundle)
    assert smoke.check(loaded) == smoke.PEOPLE + smoke.STRANGERS
    recorded = manifest.read_json(bundle / smoke.FILE)
    assert {answer["source"] for answer in recorded["answers"]} == {"model", "popularity"}
    scores = recorded["shown"]["scores"]
    assert scores == sorted(scores)
    assert len(scores) == len(recorded["shown"]["quantiles"])

    # A bias of the ranker that is off by a hundredth is no rounding.
    weights = dict(loaded.ranker.named_parameters())
    last = [weight for name, weight in weights.items() if name.endswith("bias")][-1]
    last.data = last.data + 0.01
    with pytest.raises(
        InputError, match=r"recorded questions are answered differently, the first: question 1, place 1"
    ):
        smoke.check(loaded)
    other = replace(bundles.load(bundle), config=loaded.config | {"recommend": {"blend": {"ranker_weight": 0.5}}})
    with pytest.raises(InputError, match=r"answered differently"):
        smoke.check(other)


def test_two_items_that_changed_places_are_found(bundle: Path) -> None:
    recorded = manifest.read_json(bundle / smoke.FILE)
    first = recorded["answers"][0]
    first["items"][:2] = first["items"][1::-1]
    manifest.write_json(bundle / smoke.FILE, recorded)
    with pytest.raises(InputError, match=r"1 of 64 .* question 1, place 1: item"):
        smoke.check(bundles.load(bundle))


@pytest.mark.parametrize(
    ("items", "scores", "says"),
    [
        ([1, 2, 3], [0.5, 0.5 - 1e-6, 0.1], None),
        ([2, 1, 3], [0.5, 0.5, 0.1], None),
        ([1, 2, 3], [0.5, 0.49, 0.1], "place 2: score"),
        ([1, 3, 2], [0.5, 0.5, 0.1], "place 2: item 3"),
        ([1, 2, 4], [0.5, 0.5, 0.1], "place 3: item 4"),
        ([1, 2], [0.5, 0.5], "2 items"),
    ],
)
def test_rounding_is_no_difference(items: list[int], scores: list[float], says: str | None) -> None:
    there = {"source": "model", "items": [1, 2, 3], "scores": [0.5, 0.5 - 1e-6, 0.1]}
    found = smoke.difference(there, "model", list(items), scores)
    assert found is None if says is None else found is not None and found.startswith(says)

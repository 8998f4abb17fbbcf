"""Who gets which variant: shares are kept, nobody moves without need, experiments are independent."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import stats

from features.errors import InputError
from features.online import Id
from recsys import inference
from serving.rollout import CONTROL, SLOTS, Deployment, Part, slot

PEOPLE = 20_000


def part(name: str) -> Part:
    return Part(name=name, bundle="f" * 16, recommend=inference.Config())


def deployment(**shares: float) -> Deployment:
    made = Deployment(number=1, made="", salt="run-1", retain=10, control=part(CONTROL))
    for name, share in shares.items():
        made = made.with_variant(part(name), share)
    return made


def assigned(made: Deployment, users: list[Id]) -> list[str]:
    by_slot = [CONTROL] * SLOTS
    for each in made.variants:
        for start, end in each.slots:
            by_slot[start:end] = [each.name] * (end - start)
    return [by_slot[slot(made.salt, user)] for user in users]


@pytest.mark.parametrize("text", [False, True])
def test_people_are_spread_as_shares_say(text: bool) -> None:
    made = deployment(B=0.1, C=0.25)
    users: list[Id] = [f"user-{number}" if text else number for number in range(PEOPLE)]
    found = assigned(made, users)
    counts = [found.count(name) for name in (CONTROL, "B", "C")]
    # A fixed draw: one in a thousand draws would fail.
    assert stats.chisquare(counts, [PEOPLE * share for share in (0.65, 0.1, 0.25)]).pvalue > 0.001
    slots = np.bincount([slot("another", user) for user in users], minlength=SLOTS)
    assert stats.chisquare(slots.reshape(100, -1).sum(axis=1)).pvalue > 0.001


def test_a_number_and_its_text_are_two_people() -> None:
    assert sum(slot("s", number) == slot("s", str(number)) for number in range(1000)) < 10


def test_the_same_person_stands_at_the_same_place_for_good() -> None:
    assert [slot("ml-100k-2", user) for user in (1, "1", -5, "ü")] == [7649, 6935, 99, 2893]


def test_another_experiment_spreads_people_anew() -> None:
    users: list[Id] = list(range(PEOPLE))
    first = np.array(assigned(deployment(B=0.5), users)) == "B"
    second = deployment(B=0.5).model_copy(update={"salt": "run-2"})
    table = stats.contingency.crosstab(first, np.array(assigned(second, users)) == "B").count
    assert stats.chi2_contingency(table).pvalue > 0.001


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("BCD"), st.integers(0, 30)), min_size=1, max_size=8))
def test_only_as_many_move_as_a_share_changes(changes: list[tuple[str, int]]) -> None:
    steps = [deployment()]
    for name, percent in changes:
        steps.append(steps[-1].with_variant(part(name), percent / 100))
    for (before, after), (name, _) in zip(pairwise(steps), changes, strict=True):
        shares = [{each.name: each.size for each in made.variants} for made in (before, after)]
        changed = abs(shares[1].get(name, 0) - shares[0].get(name, 0))
        owners = [_owners(made) for made in (before, after)]
        moved = owners[0] != owners[1]
        assert moved.sum() == changed
        assert {*owners[0][moved], *owners[1][moved]} <= {CONTROL, name}
        for each in after.variants:
            assert all(low < high for span in each.slots for low, high in pairwise(span))


def _owners(made: Deployment) -> np.ndarray:
    owner = np.full(SLOTS, CONTROL, dtype=object)
    for each in made.variants:
        for start, end in each.slots:
            owner[start:end] = each.name
    return owner


def test_shares_are_checked() -> None:
    made = deployment(B=0.6)
    assert made.share(made.control) == pytest.approx(0.4)
    for share in (0.4, 1.0, -0.1, 1e-6):
        with pytest.raises(InputError, match=r"--share .*other variants have 0\.6; give another"):
            made.with_variant(part("C"), share)
    assert made.with_variant(part("B"), 0.9).variants[0].size == 9000
    assert made.with_variant(part("B"), 0).variants == ()
    both = [part(name).model_copy(update={"slots": ((0, 10),)}) for name in "BC"]
    with pytest.raises(ValidationError, match="overlap"):
        Deployment.model_validate(deployment().model_dump() | {"variants": [one.model_dump() for one in both]})


def test_a_shadow_takes_nobody() -> None:
    made = deployment(B=0.2).with_shadow(part("B"))
    assert made.variants == ()
    assert [each.name for each in made.shadows] == ["B"]
    assert made.share(made.control) == 1

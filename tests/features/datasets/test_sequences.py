"""S3-Rec files, tidy and untidy."""

from pathlib import Path

import pytest

from features.datasets.sequences import Config, load
from features.errors import InputError
from features.events import validate


def test_spaces_and_blank_lines_mean_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_text("  1 10  20 \r\n\n2\t30\n \n")
    log = load(Config(path=path))
    assert not log.has_clock
    assert next(iter(log.parts)).read().rows() == [(1, 10, 0), (1, 20, 1), (2, 30, 0)]


def test_attributes_become_names(tmp_path: Path) -> None:
    (tmp_path / "log.txt").write_text("1 10 20\n")
    (tmp_path / "of.json").write_text('{"10": [1, 2, 3], "20": []}')
    (tmp_path / "names.json").write_text('{"2": "big"}')
    paths = {"attributes": tmp_path / "of.json", "attribute_names": tmp_path / "names.json"}
    items = load(Config(path=tmp_path / "log.txt", **paths)).items
    assert items is not None
    assert items.rows() == [(10, ["1", "big", "3"], "big, 3 #10"), (20, [], " #20")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 10\n2\n", "log.txt, line 2: '2' is not 'user item item …'"),
        ("\n1 10 x\n", "log.txt, line 2: '1 10 x' has ids that are not whole numbers"),
        ("1 10\n2 3\n1 20\n", "log.txt, line 3: '1 20' is of a user who had a line before"),
        ("1 " + "9 " * 500 + "x", "9 9…' has ids"),
        ("", "log.txt: the log has no rows"),
        ("\n \n", "log.txt: the log has no rows"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "log.txt").write_text(text)
    with pytest.raises(InputError) as caught:
        validate(load(Config(path=tmp_path / "log.txt")))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        (b'{"1": [', "of.json, line 1: not JSON"),
        (b"[1]", "of.json: holds a JSON list, not an object"),
        (b'{"x": [1]}', "of.json: 'x' is not a whole number with a list"),
        (b'{"1": 5}', "of.json: '1' is not a whole number with a list"),
        (b'{"1": ["\xe9"]}', "of.json, byte 8: not utf-8 text"),
    ],
)
def test_bad_attributes_are_named(tmp_path: Path, attributes: bytes, message: str) -> None:
    (tmp_path / "log.txt").write_text("1 10\n")
    (tmp_path / "of.json").write_bytes(attributes)
    with pytest.raises(InputError) as caught:
        load(Config(path=tmp_path / "log.txt", attributes=tmp_path / "of.json"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)

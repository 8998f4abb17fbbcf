"""Every layout of MovieLens gives the same log."""

import zipfile
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from features.datasets import movielens
from features.datasets.movielens import GENRES_100K, Archive, Config, load
from features.errors import InputError
from features.events import RawLog, validate


def write_100k(folder: Path) -> None:
    flags = {1: "Comedy Romance", 2: "unknown"}
    genres = {i: "|".join(str(int(genre in flags[i].split())) for genre in GENRES_100K) for i in flags}
    folder.mkdir()
    (folder / "u.data").write_text("1\t2\t3\t881250949\n2\t1\t5\t881250949\n")
    (folder / "u.item").write_text(
        f"1|Amélie\x85 (1995)|01-Jan-1995||http://x|{genres[1]}\n2|unknown||||{genres[2]}\n", "latin-1"
    )
    (folder / "u.user").write_text("1|24|M|technician|85711\n2|53|F|other|94043\n")


def check_100k(log: RawLog) -> None:
    valid = validate(log)
    assert valid.quarantine.is_empty()
    assert valid.events.select("user_id", "item_id", "timestamp", "value").rows() == [
        (1, 2, 881_250_949_000, 3),
        (2, 1, 881_250_949_000, 5),
    ]
    assert valid.items.sort("item_id").rows() == [
        (1, "Amélie\x85 (1995)", 1995, ["Comedy", "Romance"]),
        (2, "unknown", None, ["unknown"]),
    ]
    assert valid.users.rows() == [(1, "M", "technician", "20s"), (2, "F", "other", "50s")]


def test_the_original_100k_unpacked_and_zipped(tmp_path: Path) -> None:
    write_100k(tmp_path / "ml-100k")
    with zipfile.ZipFile(tmp_path / "ml-100k.zip", "w") as archive:
        archive.writestr("__MACOSX/._u", "")
        for path in (tmp_path / "ml-100k").iterdir():
            archive.write(path, f"ml-100k/{path.name}")
    for path in (tmp_path / "ml-100k", tmp_path / "ml-100k.zip"):
        config = Config(path=path)
        log = load(config)
        check_100k(log)
        assert log.source == f"{path}: u.data"
    assert movielens.inputs(Config(path=tmp_path / "ml-100k.zip")) == [tmp_path / "ml-100k.zip"]


def test_the_two_forms_of_1m_are_one(tmp_path: Path) -> None:
    for form in ("text", "parquet"):
        folder = tmp_path / form
        folder.mkdir()
        (folder / "movies.dat").write_text("10::Amélie (2001)::Comedy|Romance\n", "latin-1")
        (folder / "users.dat").write_text("1::F::1::10::48067\n")
    (tmp_path / "text" / "ratings.dat").write_text("1::10::5::978300760\n")
    ratings = pl.DataFrame({"user_id": [1], "movie_id": [10], "rating": [5], "timestamp": [978300760]})
    ratings.write_parquet(tmp_path / "parquet" / "ratings.parquet")
    text, parquet = (load(Config(release="1m", path=tmp_path / form)) for form in ("text", "parquet"))
    assert_frame_equal(*(next(iter(log.parts)).read() for log in (text, parquet)))
    assert text.items is not None
    assert text.items.rows() == [(10, "Amélie (2001)", 2001, ["Comedy", "Romance"])]
    assert text.users is not None
    assert text.users.rows() == [(1, "F", "10", "under 18")]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda at: (at / "u.data").write_text("1\t2\n"), "u.data, line 1: fewer than 4 fields; the file is damaged"),
        (lambda at: (at / "u.data").write_text("1\tx\t3\t4\n"), "ml-100k: damaged (conversion from `str` to `i64`"),
        (lambda at: (at / "u.item").unlink(), "ml-100k: damaged ([Errno 2] No such file"),
        (lambda at: (at / "u.data").unlink(), "no MovieLens-100k in it (looked for u.data, ml-100k.inter)"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, spoil, message: str) -> None:
    write_100k(tmp_path / "ml-100k")
    spoil(tmp_path / "ml-100k")
    with pytest.raises(InputError) as caught:
        load(Config(path=tmp_path / "ml-100k"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_release_is_not_taken_for_it(tmp_path: Path) -> None:
    write_100k(tmp_path / "ml-100k")
    with pytest.raises(InputError, match="no MovieLens-1m in it"):
        load(Config(release="1m", path=tmp_path / "ml-100k"))
    with pytest.raises(InputError, match=r"MovieLens-1m is not on this machine; set dataset\.path"):
        load(Config(release="1m"))


def test_a_download_is_checked_and_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "served").mkdir()
    write_100k(tmp_path / "served" / "ml-100k")
    with zipfile.ZipFile(tmp_path / "served.zip", "w") as archive:
        for path in (tmp_path / "served" / "ml-100k").iterdir():
            archive.write(path, f"ml-100k/{path.name}")
    url = (tmp_path / "served.zip").as_uri()
    config = Config(path=tmp_path / "new" / "ml.zip", download=True)
    monkeypatch.setitem(movielens.ARCHIVES, "100k", Archive(url, "0" * 32))
    with pytest.raises(InputError, match=r"MD5 is \w+, expected 0+; fetch it by hand") as caught:
        load(config)
    monkeypatch.setitem(movielens.ARCHIVES, "100k", Archive((tmp_path / "gone.zip").as_uri(), ""))
    with pytest.raises(InputError, match=r"gone\.zip: cannot be fetched"):
        load(config)
    assert not (tmp_path / "new").exists()
    md5 = str(caught.value).split("MD5 is ")[1].split(",")[0]
    monkeypatch.setitem(movielens.ARCHIVES, "100k", Archive(url, md5))
    check_100k(load(config))
    assert list((tmp_path / "new").iterdir()) == [config.path]

"""MovieLens-100K and MovieLens-1M (GroupLens; Harper & Konstan, TiiS 2015, https://doi.org/10.1145/2827872).

Three layouts of the same data are read, whichever is found at `path`:

- the original archive, as a zip or unpacked (`u.data …` or `ratings.dat …`);
- the archive's `ratings.dat` as `ratings.parquet`, rows in each user's order, beside `movies.dat` and `users.dat`;
- the atomic files of the `recbole` wheel (`ml-100k.inter …`), which is where 100K is looked for without a `path`.

With `download = true` the original archive is fetched from GroupLens and its checksum compared.
"""

import hashlib
import importlib.util
import tempfile
import zipfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.request import urlopen

import polars as pl

from features.datasets._inputs import read_text
from features.errors import InputError
from features.events import RawLog, in_one_part
from features.settings import Settings


class Archive(NamedTuple):
    """Where GroupLens keeps a release, and the MD5 that it publishes beside it."""

    url: str
    md5: str


ARCHIVES = {
    "100k": Archive("https://files.grouplens.org/datasets/movielens/ml-100k.zip", "0e33842e24a9c977be4e0107933c0723"),
    "1m": Archive("https://files.grouplens.org/datasets/movielens/ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906"),
}

GENRES_100K = [
    *(
        "unknown",
        "Action",
        "Adventure",
        "Animation",
        "Children's",
        "Comedy",
        "Crime",
        "Documentary",
        "Drama",
        "Fantasy",
    ),
    *("Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"),
]

AGES_1M = {1: "under 18", 18: "18-24", 25: "25-34", 35: "35-44", 45: "45-49", 50: "50-55", 56: "56+"}


class Config(Settings):
    """Which release, and where it is."""

    release: Literal["100k", "1m"] = "100k"
    """Which MovieLens."""
    path: Path | None = None
    """A directory or zip archive of it; None looks for the copy in the recbole wheel (100k only)."""
    download: bool = False
    """Fetch the original archive from GroupLens to `path` if there is nothing; its MD5 is compared."""


def inputs(config: Config) -> list[Path]:
    """The files that `load` reads; fetches the archive where that is asked for.

    Raises:
        InputError: there is nothing at the place that the config names.
    """
    root = _root(config)
    return [root] if root.is_file() else sorted(path for path in root.iterdir() if path.suffix in _SUFFIXES)


_SUFFIXES = {".inter", ".item", ".user", ".data", ".dat", ".parquet"}


def load(config: Config) -> RawLog:
    """Ratings as events (`value` is the rating), movies with titles, genres and year, users with what they told.

    Raises:
        InputError: it is not there, or damaged.
    """
    root, layouts = _root(config), _LAYOUTS[config.release]
    try:
        with _unpacked(root, layouts) as folder:
            for probe, read in layouts.items():
                if (folder / probe).exists():
                    return read(folder, f"{root}: {probe}")
    except (OSError, zipfile.BadZipFile, pl.exceptions.PolarsError) as error:
        raise InputError(f"{root}: damaged ({str(error).splitlines()[0]}); take a fresh copy") from None
    raise InputError(
        f"{root}: no MovieLens-{config.release} in it (looked for {', '.join(layouts)}); "
        "give its folder or archive as dataset.path"
    )


def _root(config: Config) -> Path:
    if config.path is not None:
        if config.path.exists():
            return config.path
        if config.download:
            return _download(ARCHIVES[config.release], config.path)
        raise InputError(
            f"{config.path}: no such file; set dataset.path to MovieLens-{config.release} or dataset.download = true"
        )
    wheel = importlib.util.find_spec("recbole")
    if config.release == "100k" and wheel is not None and wheel.submodule_search_locations:
        return Path(wheel.submodule_search_locations[0]) / "dataset_example" / "ml-100k"
    raise InputError(
        f"MovieLens-{config.release} is not on this machine; set dataset.path to its folder or archive"
        + ("" if config.release == "1m" else ", or run: pip install --no-deps recbole==1.2.1")
    )


def _download(archive: Archive, to: Path) -> Path:
    try:
        with urlopen(archive.url, timeout=60) as response:
            content = response.read()
    except OSError as error:
        raise InputError(f"{archive.url}: cannot be fetched ({error}); fetch it by hand and set dataset.path") from None
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != archive.md5:
        raise InputError(
            f"{archive.url}: MD5 is {found}, expected {archive.md5}; fetch it by hand and set dataset.path"
        )
    to.parent.mkdir(parents=True, exist_ok=True)
    aside = to.with_name(to.name + ".unfinished")
    aside.write_bytes(content)
    return aside.rename(to)


@contextmanager
def _unpacked(root: Path, probes: Iterable[str]) -> Generator[Path]:
    """The folder that holds one of `probes`: `root`, or one inside the archive."""
    if not zipfile.is_zipfile(root):
        yield root
        return
    with tempfile.TemporaryDirectory() as aside, zipfile.ZipFile(root) as archive:
        archive.extractall(aside)
        yield next((found.parent for probe in probes for found in Path(aside).rglob(probe)), Path(aside))


def _fields(path: Path, separator: str, encoding: str, columns: list[str]) -> pl.DataFrame:
    """Split every line at a separator of any length; all columns are text."""
    # Not splitlines(): in Latin-1 it would also split at U+0085.
    lines = pl.Series("line", read_text(path, encoding).removesuffix("\n").split("\n"), dtype=pl.String)
    fields = lines.str.split(separator)
    short = fields.list.len() < len(columns)
    if short.any():
        at = short.arg_max()
        assert at is not None
        raise InputError(
            f"{path}, line {at + 1}: fewer than {len(columns)} fields; the file is damaged, take a fresh copy"
        )
    return pl.DataFrame({name: fields.list.get(i) for i, name in enumerate(columns)})


def _events(ratings: pl.DataFrame) -> pl.DataFrame:
    return ratings.select(
        pl.col("user_id", "item_id").cast(pl.Int64),
        timestamp=pl.col("timestamp").cast(pl.Float64).cast(pl.Int64) * 1000,
        action=pl.lit("rating"),
        value=pl.col("rating").cast(pl.Float64),
    )


def _original_100k(folder: Path, source: str) -> RawLog:
    ratings = _fields(folder / "u.data", "\t", "utf-8", ["user_id", "item_id", "rating", "timestamp"])
    columns = ["item_id", "title", "release_date", "video_date", "url", *GENRES_100K]
    movies = _fields(folder / "u.item", "|", "latin-1", columns).select(
        pl.col("item_id").cast(pl.Int64),
        "title",
        year=pl.col("release_date").str.extract(r"(\d{4})$").cast(pl.Float32),
        categories=pl.concat_list(
            pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K
        ).list.drop_nulls(),
    )
    users = _fields(folder / "u.user", "|", "utf-8", ["user_id", "age", "gender", "occupation", "zip"])
    return RawLog(parts=in_one_part(_events(ratings), source), items=movies, users=_users_100k(users), source=source)


def _atomic_100k(folder: Path, source: str) -> RawLog:
    def table(suffix: str) -> pl.DataFrame:
        raw = pl.read_csv(folder / f"ml-100k.{suffix}", separator="\t", quote_char=None, infer_schema=False)
        return raw.rename(lambda name: name.split(":")[0])

    movies = table("item").select(
        pl.col("item_id").cast(pl.Int64),
        title=pl.col("movie_title"),
        year=pl.col("release_year").cast(pl.Float32, strict=False),
        categories=pl.col("class").fill_null("unknown").str.split(" "),
    )
    return RawLog(
        parts=in_one_part(_events(table("inter")), source),
        items=movies,
        users=_users_100k(table("user")),
        source=source,
    )


def _users_100k(users: pl.DataFrame) -> pl.DataFrame:
    decade = (pl.col("age").cast(pl.Int32) // 10 * 10).cast(pl.String) + "s"
    return users.select(pl.col("user_id").cast(pl.Int64), "gender", "occupation", age=decade)


def _original_1m(folder: Path, source: str) -> RawLog:
    ratings = _fields(folder / "ratings.dat", "::", "latin-1", ["user_id", "item_id", "rating", "timestamp"])
    return _log_1m(folder, ratings, source)


def _parquet_1m(folder: Path, source: str) -> RawLog:
    ratings = pl.read_parquet(folder / "ratings.parquet").rename({"movie_id": "item_id"})
    return _log_1m(folder, ratings, source)


def _log_1m(folder: Path, ratings: pl.DataFrame, source: str) -> RawLog:
    movies = _fields(folder / "movies.dat", "::", "latin-1", ["item_id", "title", "genres"]).select(
        pl.col("item_id").cast(pl.Int64),
        "title",
        year=pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Float32),
        categories=pl.col("genres").str.split("|"),
    )
    users = _fields(folder / "users.dat", "::", "latin-1", ["user_id", "gender", "age", "occupation", "zip"]).select(
        pl.col("user_id").cast(pl.Int64),
        "gender",
        "occupation",
        age=pl.col("age").cast(pl.Int32).replace_strict(AGES_1M, default="unknown"),
    )
    return RawLog(parts=in_one_part(_events(ratings), source), items=movies, users=users, source=source)


_LAYOUTS = {
    "100k": {"u.data": _original_100k, "ml-100k.inter": _atomic_100k},
    "1m": {"ratings.dat": _original_1m, "ratings.parquet": _parquet_1m},
}

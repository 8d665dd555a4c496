"""MovieLens 1M, 100K and 20M: ratings of films; the films' years (out of the title) and genres."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw

YEAR = (
    r"(?s)^.*\(([0-9]{4})[-–]?(?:[0-9]{4})?\)"  # the last one in parentheses, the first of a range
)
NO_GENRE = "(no genres listed)"
GENRES_100K = [
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
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]


def read_1m(raw_dir: str | Path, *, on_bad_rows: str = "error") -> Raw:
    """``ratings.dat`` and ``movies.dat`` of MovieLens 1M."""
    folder = Folder(raw_dir, "GroupLens: MovieLens 1M Dataset (ml-1m.zip)", on_bad_rows)
    ratings = folder.delimited(
        "ratings.dat", _ratings(0, 1, 2, 3), header=False, separator="::", quote=None
    )
    columns = [
        Column("item", 0, "int"),
        Column("title", 1, "text"),
        Column("genres", 2, "text", nullable=True),
    ]
    films = folder.delimited(
        "movies.dat", columns, header=False, separator="::", quote=None, encoding="latin-1"
    )
    return _raw(folder, ratings, films)


def read_100k(raw_dir: str | Path, *, on_bad_rows: str = "error") -> Raw:
    """``u.data`` and ``u.item`` of MovieLens 100K."""
    folder = Folder(raw_dir, "GroupLens: MovieLens 100K Dataset (ml-100k.zip)", on_bad_rows)
    ratings = folder.delimited(
        "u.data", _ratings(0, 1, 2, 3), header=False, separator="\t", quote=None
    )
    flags = [Column(genre, 5 + i, choices=("0", "1")) for i, genre in enumerate(GENRES_100K)]
    columns = [Column("item", 0, "int"), Column("title", 1, "text"), *flags]
    films = folder.delimited(
        "u.item", columns, header=False, separator="|", quote=None, encoding="latin-1"
    )
    flagged = [
        pl.when(pl.col(genre) == "1").then(pl.lit(genre))
        for genre in GENRES_100K
        if genre != "unknown"
    ]
    return _raw(
        folder,
        ratings,
        films.with_columns(genres=pl.concat_str(flagged, separator="|", ignore_nulls=True)),
    )


def read_20m(raw_dir: str | Path, *, on_bad_rows: str = "error") -> Raw:
    """``ratings.csv`` and ``movies.csv`` of MovieLens 20M (25M and 32M have the same layout)."""
    folder = Folder(raw_dir, "GroupLens: MovieLens 20M Dataset (ml-20m.zip)", on_bad_rows)
    ratings = folder.delimited(
        "ratings.csv", _ratings("userId", "movieId", "rating", "timestamp"), header=True
    )
    columns = [
        Column("item", "movieId", "int"),
        Column("title", "title", "text"),
        Column("genres", "genres", "text", nullable=True),
    ]
    return _raw(folder, ratings, folder.delimited("movies.csv", columns, header=True))


def _ratings(
    user: str | int, item: str | int, value: str | int, timestamp: str | int
) -> list[Column]:
    return [
        Column("user", user, "int"),
        Column("item", item, "int"),
        Column("value", value, "number"),
        Column("timestamp", timestamp, "s"),
    ]


def _raw(folder: Folder, ratings: pl.DataFrame, films: pl.DataFrame) -> Raw:
    """films: item, title, genres joined by "|". A film without a year in its title, or without a genre, has no value."""
    events = ratings.lazy().with_columns(
        pl.col("value").cast(pl.Float32), behavior=pl.lit("rating")
    )
    years = films.select("item", value=pl.col("title").str.extract(YEAR).cast(pl.Int64)).drop_nulls(
        "value"
    )
    genres = (
        films.select("item", value=pl.col("genres").str.split("|"))
        .explode("value")
        .filter(~pl.col("value").is_in(["", NO_GENRE]))
    )
    features = {
        "year": ItemFeature("categorical", years.lazy()),
        "genres": ItemFeature("multi_label", genres.lazy()),
    }
    return Raw(events, folder.files, features, folder.dropped)

"""MovieLens 1M, 100K and 20M: ratings of films, and the films' genres and years (from titles)."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from recexp.data.dataset import BadRows
from recexp.data.raw.columns import Column
from recexp.data.raw.folder import Folder
from recexp.data.readers import ItemFeature, Raw

# The last year in parentheses; of a range, the first year.
YEAR = r"(?s)^.*\(([0-9]{4})[-–]?(?:[0-9]{4})?\)"
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


def read_1m(raw_dir: str | Path, *, on_bad_rows: BadRows = "error") -> Raw:
    """``ratings.dat`` and ``movies.dat`` of MovieLens 1M."""
    folder = Folder(raw_dir, "GroupLens: MovieLens 1M Dataset (ml-1m.zip)", on_bad_rows)
    rating_columns = _rating_columns(0, 1, 2, 3)
    ratings = folder.delimited(
        "ratings.dat", rating_columns, header=False, separator="::", quote=None
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


def read_100k(raw_dir: str | Path, *, on_bad_rows: BadRows = "error") -> Raw:
    """``u.data`` and ``u.item`` of MovieLens 100K."""
    folder = Folder(raw_dir, "GroupLens: MovieLens 100K Dataset (ml-100k.zip)", on_bad_rows)
    rating_columns = _rating_columns(0, 1, 2, 3)
    ratings = folder.delimited("u.data", rating_columns, header=False, separator="\t", quote=None)
    flags = [Column(genre, 5 + i, choices=("0", "1")) for i, genre in enumerate(GENRES_100K)]
    columns = [Column("item", 0, "int"), Column("title", 1, "text"), *flags]
    films = folder.delimited(
        "u.item", columns, header=False, separator="|", quote=None, encoding="latin-1"
    )
    known = [genre for genre in GENRES_100K if genre != "unknown"]
    flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in known]
    genres = pl.concat_str(flagged, separator="|", ignore_nulls=True)
    return _raw(folder, ratings, films.with_columns(genres=genres))


def read_20m(raw_dir: str | Path, *, on_bad_rows: BadRows = "error") -> Raw:
    """``ratings.csv`` and ``movies.csv`` of MovieLens 20M (25M and 32M have the same layout)."""
    folder = Folder(raw_dir, "GroupLens: MovieLens 20M Dataset (ml-20m.zip)", on_bad_rows)
    rating_columns = _rating_columns("userId", "movieId", "rating", "timestamp")
    ratings = folder.delimited("ratings.csv", rating_columns, header=True)
    columns = [
        Column("item", "movieId", "int"),
        Column("title", "title", "text"),
        Column("genres", "genres", "text", nullable=True),
    ]
    films = folder.delimited("movies.csv", columns, header=True)
    return _raw(folder, ratings, films)


def _rating_columns(
    user: str | int, item: str | int, value: str | int, timestamp: str | int
) -> list[Column]:
    return [
        Column("user", user, "int"),
        Column("item", item, "int"),
        Column("value", value, "number"),
        Column("timestamp", timestamp, "s"),
    ]


def _raw(folder: Folder, ratings: pl.DataFrame, films: pl.DataFrame) -> Raw:
    """Ratings as events, and the features of the films.

    films: columns item, title, genres joined by "|". A film without a year in its title, or without
    a genre, has no value.
    """
    as_float32 = pl.col("value").cast(pl.Float32)
    events = ratings.lazy().with_columns(as_float32, behavior=pl.lit("rating"))
    year = pl.col("title").str.extract(YEAR).cast(pl.Int64)
    years = films.select("item", value=year).drop_nulls("value")
    names = films.select("item", value=pl.col("genres").str.split("|")).explode("value")
    genres = names.filter(~pl.col("value").is_in(["", NO_GENRE]))
    features = {
        "year": ItemFeature("categorical", years.lazy()),
        "genres": ItemFeature("multi_label", genres.lazy()),
    }
    return Raw(events, folder.files, features, folder.dropped)

"""The published layouts: ``write`` makes well-formed raw files; ``expect`` returns what must be
read from any files of the layout, well-formed or not.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from datetime import UTC, datetime

from tests.fuzz.files import Delimited, Records, Refused, attributes, sequences
from tests.fuzz.values import f32
from tests.fuzz.world import Expected, Files, Layout, World, number, some, word, written

# --- retailrocket

RR_EVENTS = ("view", "addtocart", "transaction")
RR_LOG = Delimited(
    {
        "user": ("visitorid", "int"),
        "item": ("itemid", "int"),
        "behavior": ("event", "id", {"choices": RR_EVENTS}),
        "ms": ("timestamp", "ms"),
    },
    header=("timestamp", "visitorid", "event", "itemid", "transactionid"),
)
RR_PROPERTY = Delimited(
    {"item": ("itemid", "int"), "value": ("value", "int"), "ms": ("timestamp", "ms")},
    header=("timestamp", "itemid", "property", "value"),
    only=("property", "categoryid"),
)
RR_TREE = Delimited(
    {"value": ("categoryid", "int"), "parent": ("parentid", "int", {"nullable": True})},
    header=("categoryid", "parentid"),
)
RR_PARTS = ("item_properties_part1.csv", "item_properties_part2.csv")


def write_retailrocket(rng: random.Random, world: World) -> Files:
    log = [
        (s * 1000 + 7, number(u), RR_EVENTS[b % 3], number(i), s if b == 2 else "")
        for u, i, b, s in world.events
    ]
    files = {"events.csv": written([RR_LOG.header, *log])}
    if rng.random() < 0.6:
        end = max(s for *_, s in world.events) * 1000 + 5000
        for name in RR_PARTS:
            rows = [
                (
                    rng.randrange(end),
                    number(rng.randrange(world.items)),
                    "categoryid",
                    rng.randrange(6),
                )
                for _ in range(8)
            ]
            rows += [
                (
                    rng.randrange(end),
                    10,
                    rng.choice(["790", "available"]),
                    rng.choice(["n1.000 5", "x y"]),
                )
                for _ in range(4)
            ]
            rng.shuffle(rows)
            files[name] = written([RR_PROPERTY.header, *rows])
        cycle = rng.random() < 0.2
        tree = [
            (value, rng.randrange(8) if cycle else rng.choice(["", *range(value + 1, 9)]))
            for value in range(8)
        ]
        files["category_tree.csv"] = written([RR_TREE.header, *tree])
    return files


def expect_retailrocket(files: Files) -> Expected:
    expected = Expected([])
    expected.events = [
        (r["user"], r["item"], r["behavior"], r["ms"])
        for r in expected.take("events.csv", RR_LOG.rows(files["events.csv"]))
    ]
    if RR_PARTS[0] in files:
        parts = [
            row for name in RR_PARTS for row in expected.take(name, RR_PROPERTY.rows(files[name]))
        ]
        expected.features["category"] = [(r["item"], r["value"], r["ms"]) for r in parts]
        tree = expected.take("category_tree.csv", RR_TREE.rows(files["category_tree.csv"]))
        expected.tree = [(r["value"], r["parent"]) for r in tree]
    return expected


# --- taobao

TB_EVENTS = ("pv", "fav", "cart", "buy")
TB_LOG = Delimited(
    {
        "user": (0, "int"),
        "item": (1, "int"),
        "category": (2, "int"),
        "behavior": (3, "id", {"choices": TB_EVENTS}),
        "ms": (4, "s"),
    }
)


def write_taobao(rng: random.Random, world: World) -> Files:
    return {
        "UserBehavior.csv": written(
            [(number(u), number(i), i % 3, TB_EVENTS[b], s) for u, i, b, s in world.events]
        )
    }


def expect_taobao(files: Files) -> Expected:
    expected = Expected([])
    rows = expected.take("UserBehavior.csv", TB_LOG.rows(files["UserBehavior.csv"]))
    expected.events = [(r["user"], r["item"], r["behavior"], r["ms"]) for r in rows]
    expected.features["category"] = list({r["item"]: r["category"] for r in rows}.items())
    return expected


# --- movielens

GENRES = [
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
]
GENRES += ["Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]
TITLES = [
    "Toy Story (1995)",
    "Heat",
    "M (1931)",
    "Été (1999–2003)",
    "(1984)",
    "A (1950) again (1960-) II",
    "Brazil (1985x)",
]
ML_LOG = {"user": (0, "int"), "item": (1, "int"), "value": (2, "number"), "ms": (3, "s")}
ML_LOGS = {
    "ratings.dat": Delimited(ML_LOG, "::", quote=False),
    "u.data": Delimited(ML_LOG, "\t", quote=False),
    "ratings.csv": Delimited(
        {
            "user": ("userId", "int"),
            "item": ("movieId", "int"),
            "value": ("rating", "number"),
            "ms": ("timestamp", "s"),
        },
        header=("userId", "movieId", "rating", "timestamp"),
    ),
}
NULLABLE = {"nullable": True}
ML_FILMS = {
    "movies.dat": Delimited(
        {"item": (0, "int"), "title": (1, "text"), "genres": (2, "text", NULLABLE)},
        "::",
        False,
        "latin-1",
    ),
    "u.item": Delimited(
        {"item": (0, "int"), "title": (1, "text")}
        | {g: (5 + i, "id", {"choices": ("0", "1")}) for i, g in enumerate(GENRES)},
        "|",
        False,
        "latin-1",
    ),
    "movies.csv": Delimited(
        {
            "item": ("movieId", "int"),
            "title": ("title", "text"),
            "genres": ("genres", "text", NULLABLE),
        },
        header=("movieId", "title", "genres"),
    ),
}


def write_movielens(log: str, films: str) -> Callable[[random.Random, World], Files]:
    def write(rng: random.Random, world: World) -> Files:
        form, film_form = ML_LOGS[log], ML_FILMS[films]
        rows = [
            (number(u), number(i), rng.choice([1, 2, 3.5, 5]), s) for u, i, _, s in world.events
        ]
        shop = []
        for i in range(world.items):
            title, genres = rng.choice(TITLES), some(rng, GENRES[1:]) or ["(no genres listed)"]
            if films == "u.item":
                shop.append(
                    [
                        number(i),
                        title,
                        "01-Jan-1995",
                        "",
                        "",
                        *(int(genre in genres) for genre in GENRES),
                    ]
                )
            else:
                shop.append([number(i), title, "|".join(genres)])
        encode = {"encoding": "latin-1"} if film_form.encoding == "latin-1" else {}
        shop = [[str(cell).replace("–", "-") for cell in row] for row in shop] if encode else shop
        head = [form.header] if form.header else []
        film_head = [film_form.header] if film_form.header else []
        return {
            log: written(head + rows, form.separator, form.quote),
            films: written(film_head + shop, film_form.separator, film_form.quote, **encode),
        }

    return write


def expect_movielens(log: str, films: str) -> Callable[[Files], Expected]:
    def expect(files: Files) -> Expected:
        expected = Expected([])
        rows = expected.take(log, ML_LOGS[log].rows(files[log]))
        expected.events = [(r["user"], r["item"], "rating", r["ms"], f32(r["value"])) for r in rows]
        year, genres = [], []
        for film in expected.take(films, ML_FILMS[films].rows(files[films])):
            if found := re.findall(r"\(([0-9]{4})[-–]?(?:[0-9]{4})?\)", film["title"]):
                year.append((film["item"], int(found[-1])))
            names = (
                [g for g in GENRES[1:] if film[g] == "1"]
                if films == "u.item"
                else (film["genres"] or "").split("|")
            )
            genres += [
                (film["item"], name) for name in names if name and name != "(no genres listed)"
            ]
        expected.features = {"year": year, "genres": genres}
        return expected

    return expect


# --- amazon

AZ_LOG = Delimited({"user": (0, "id"), "item": (1, "id"), "value": (2, "number"), "ms": (3, "s")})
AZ_REVIEWS = Records(
    {
        "user": ("reviewerID", "id"),
        "item": ("asin", "id"),
        "value": ("overall", "number"),
        "ms": ("unixReviewTime", "s"),
    }
)
AZ_META = Records(
    {
        "item": ("asin", "id"),
        "brand": ("brand", "text", NULLABLE),
        "price": ("price", "number", NULLABLE),
    },
    lists={"categories": 2},
)


def recorded(rng: random.Random, records: list[dict]) -> bytes:
    """One record per line, as JSON or as a Python literal."""
    write = rng.choice([repr, json.dumps, lambda record: json.dumps(record, ensure_ascii=False)])
    return "".join(write(record) + "\n" for record in records).encode()


def write_amazon(rng: random.Random, world: World) -> Files:
    rows = [(word(u), word(i), float(1 + b), s) for u, i, b, s in world.events]
    if rng.random() < 0.5:
        files = {"ratings_Beauty.csv": written(rows)}
    else:
        keys = ("reviewerID", "asin", "overall", "unixReviewTime")
        files = {
            "reviews_Beauty.json.gz": recorded(
                rng, [dict(zip(keys, row, strict=True)) | {"text": "it's\n\\d"} for row in rows]
            )
        }
    if rng.random() < 0.5:
        more = [
            {
                "asin": word(i),
                "categories": [some(rng), ["Beauty"]],
                "brand": rng.choice([None, "B", ""]),
            }
            for i in range(world.items)
        ]
        files["meta_Beauty.json.gz"] = recorded(
            rng,
            [
                m | ({"price": rng.choice([1, 2.5, 1e30])} if rng.random() < 0.5 else {})
                for m in more
            ],
        )
    return files


def expect_amazon(files: Files) -> Expected:
    expected = Expected([])
    name, form = next(
        (n, f)
        for n, f in (("ratings_Beauty.csv", AZ_LOG), ("reviews_Beauty.json.gz", AZ_REVIEWS))
        if n in files
    )
    rows = expected.take(name, form.rows(files[name]))
    expected.events = [(r["user"], r["item"], "rating", r["ms"], f32(r["value"])) for r in rows]
    if (name := "meta_Beauty.json.gz") in files:
        meta = expected.take(name, AZ_META.rows(files[name]))
        expected.features = {
            "category": [(r["item"], label) for r in meta for label in r["categories"]],
            "brand": [(r["item"], r["brand"]) for r in meta if r["brand"] is not None],
            "price": [(r["item"], r["price"]) for r in meta if r["price"] is not None],
        }
    return expected


# --- steam

ST_LOG = Records(
    {"user": ("username", "text"), "item": ("product_id", "id"), "ms": ("date", "iso")}
)
ST_GAMES = Records({"item": ("id", "id")}, lists={"genres": 1}, may_lack="id")


def day(seconds: int, form: str = "%Y-%m-%d") -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime(form)


def write_steam(rng: random.Random, world: World) -> Files:
    rows = [
        {"username": word(u), "product_id": str(i * 10), "date": day(s), "text": "\x85 gut"}
        for u, i, _, s in world.events
    ]
    files = {"steam_reviews.json.gz": recorded(rng, rows)}
    if rng.random() < 0.5:
        games = [{"genres": some(rng), "id": str(i * 10)} for i in range(world.items)] + [
            {"title": "no id"}
        ]
        files["steam_games.json.gz"] = recorded(rng, games)
    return files


def expect_steam(files: Files) -> Expected:
    expected = Expected([])
    rows = expected.take("steam_reviews.json.gz", ST_LOG.rows(files["steam_reviews.json.gz"]))
    expected.events = [(r["user"], r["item"], "review", r["ms"]) for r in rows]
    if (name := "steam_games.json.gz") in files:
        expected.features["genres"] = [
            (r["item"], label)
            for r in expected.take(name, ST_GAMES.rows(files[name]))
            for label in r["genres"]
        ]
    return expected


# --- recobell

RB_LOG = Delimited({"user": (3, "id"), "item": (4, "id"), "ms": (0, "iso")})
RB_SHOP = Delimited(
    {"item": (0, "id")} | {f"cat{i}": (1 + i, "text", NULLABLE) for i in range(1, 5)}
)
RB_FILES = {"view": "site_view_log.csv000", "order": "site_order_log.csv000"}


def write_recobell(rng: random.Random, world: World) -> Files:
    first = 1_470_614_400  # 2016-08-08, whose week is read
    rows = {name: [] for name in RB_FILES.values()}
    for n, (u, i, b, s) in enumerate(world.events):
        name = rows[list(RB_FILES.values())[n % 2 if n < 2 else b == 3]]
        name.append(
            (day(first - 20_000 + s % 640_000, "%Y-%m-%d %H:%M:%S"), "PW", "s1", word(u), word(i))
        )
    rows = {
        name: own or [("2016-08-09 12:00:00", "PW", "s", "a", "a")] for name, own in rows.items()
    }
    shop = [
        (word(i), i, *(rng.choice(["", "c1", "c2", "é"]) for _ in range(4)), "b")
        for i in range(world.items)
    ]
    return {
        name: written(own, all_quoted=True)
        for name, own in (rows | {"site_product.csv000": shop}).items()
    }


def expect_recobell(files: Files) -> Expected:
    expected = Expected([])
    for behavior, name in RB_FILES.items():
        expected.events += [
            (r["user"], r["item"], behavior, r["ms"])
            for r in expected.take(name, RB_LOG.rows(files[name]))
        ]
    expected.events = [
        event for event in expected.events if 1_470_614_400_000 <= event[3] < 1_471_219_200_000
    ]
    if not expected.events:
        raise Refused("no event in the week")
    shop = expected.take("site_product.csv000", RB_SHOP.rows(files["site_product.csv000"]))
    levels = [(r["item"], n, r[f"cat{n}"]) for r in shop for n in range(1, 5)]
    expected.features["category"] = [
        (item, f"{n}:{value}") for item, n, value in levels if value is not None
    ]
    return expected


# --- files without times

SEQUENCE = Delimited({"user": (0, "int"), "item": (1, "int")}, " ", quote=False)


def write_sequence(rng: random.Random, world: World) -> Files:
    return {
        "s.txt": written([(number(u), number(i)) for u, i, *_ in world.events], " ", quote=False)
    }


def expect_sequence(files: Files) -> Expected:
    expected = Expected([])
    rows = expected.take("s.txt", SEQUENCE.rows(files["s.txt"]))
    expected.events = [(r["user"], r["item"], "interaction", n) for n, r in enumerate(rows, 1)]
    return expected


def write_attributes(rng: random.Random, world: World) -> Files:
    users = sorted({u for u, *_ in world.events})
    lines = [
        " ".join(str(x) for x in [number(u), *(number(i) for v, i, *_ in world.events if v == u)])
        for u in users
    ]
    values = {str(number(i)): some(rng, list(range(9))) or [1] for i in range(world.items)}
    return {
        "Beauty.txt": "".join(line + "\n" for line in lines).encode(),
        "Beauty_item2attributes.json": json.dumps(values).encode(),
    }


def expect_attributes(files: Files) -> Expected:
    expected = Expected([])
    rows = expected.take("Beauty.txt", sequences(files["Beauty.txt"]))
    expected.events = [(r["user"], r["item"], "interaction", n) for n, r in enumerate(rows, 1)]
    name = "Beauty_item2attributes.json"
    expected.features["attribute"] = [
        (r["item"], r["value"]) for r in expected.take(name, attributes(files[name]))
    ]
    return expected


# --- any table

TABLE_EVENTS = ("view", "cart", "buy")
TABLE_HEADER = ("note", "who", "what", "how", "when", "stars")
TABLE_SHOP = Delimited(
    {
        "item": ("sku", "id"),
        "brand": ("brand", "text", NULLABLE),
        "tags": ("tags", "text", NULLABLE),
        "price": ("price", "number", NULLABLE),
    },
    header=("sku", "brand", "tags", "price"),
)


def table_form(unit: str, separator: str) -> Delimited:
    columns = {
        "user": ("who", "id"),
        "item": ("what", "id"),
        "behavior": ("how", "id"),
        "value": ("stars", "number", NULLABLE),
        "ms": ("when", unit),
    }
    return Delimited(columns, separator, len(separator) == 1, header=TABLE_HEADER)


def write_table(unit: str, separator: str) -> Callable[[random.Random, World], Files]:
    def write(rng: random.Random, world: World) -> Files:
        when = {
            "s": str,
            "ms": lambda s: str(s * 1000),
            "iso": lambda s: day(s, "%Y-%m-%d %H:%M:%S"),
        }[unit]
        name = word if len(separator) == 1 else number
        notes = ["", "ok", "x", "x"] + ["two\nlines"] * (len(separator) == 1 and rng.random() < 0.3)
        stars = ["", 1, 2.5]
        rows = [
            (rng.choice(notes), name(u), name(i), TABLE_EVENTS[b % 3], when(s), rng.choice(stars))
            for u, i, b, s in world.events
        ]
        shop = [
            (
                name(i),
                rng.choice(["", "B"]),
                "|".join(some(rng, ["red", "blue", "é"])),
                rng.choice(["", 1, 2.5]),
            )
            for i in range(world.items)
        ]
        return {
            "t.csv": written([TABLE_HEADER, *rows], separator, len(separator) == 1),
            "items.csv": written([TABLE_SHOP.header, *shop], separator, len(separator) == 1),
        }

    return write


def expect_table(unit: str, separator: str) -> Callable[[Files], Expected]:
    shop_form = Delimited(
        TABLE_SHOP.columns, separator, len(separator) == 1, header=TABLE_SHOP.header
    )

    def expect(files: Files) -> Expected:
        expected = Expected([])
        rows = expected.take("t.csv", table_form(unit, separator).rows(files["t.csv"]))
        value = lambda r: None if r["value"] is None else f32(r["value"])  # noqa: E731
        expected.events = [(r["user"], r["item"], r["behavior"], r["ms"], value(r)) for r in rows]
        shop = expected.take("items.csv", shop_form.rows(files["items.csv"]))
        expected.features = {
            name: [(r["item"], r[name]) for r in shop if r[name] is not None]
            for name in ("brand", "price")
        }
        tags = [
            (r["item"], label)
            for r in shop
            if r["tags"] is not None
            for label in r["tags"].split("|")
            if label
        ]
        expected.features["tags"] = tags
        return expected

    return expect


# --- any table, in several files and in JSON lines

PARTS_FORM = Delimited(
    {"user": (1, "id"), "item": (2, "id"), "behavior": (0, "id"), "ms": (3, "s")}, "\t"
)
LINES_FORM = Records(
    {"user": ("who", "id"), "item": ("what", "id"), "behavior": ("how", "id"), "ms": ("when", "ms")}
)


def write_parts(rng: random.Random, world: World) -> Files:
    rows = [(TABLE_EVENTS[b % 3], word(u), word(i), s) for u, i, b, s in world.events]
    cut = rng.randrange(len(rows))
    parts = {"part-10.tsv": rows[:cut], "part-2.tsv": rows[cut:]}
    return {name: written(part, "\t") for name, part in parts.items() if part}


def expect_parts(files: Files) -> Expected:
    expected = Expected([])
    good = []
    for name in sorted(files):
        rows = PARTS_FORM.rows(files[name])
        expected.bad[name] = rows.count(None)
        good += [row for row in rows if row is not None]
    if len({PARTS_FORM.width(content) for content in files.values()}) > 1 or not good:
        raise Refused("different columns, or no row in any file")
    expected.events = [(r["user"], r["item"], r["behavior"], r["ms"]) for r in good]
    return expected


def write_json_lines(rng: random.Random, world: World) -> Files:
    records = [
        {"how": TABLE_EVENTS[b % 3], "who": word(u), "when": s * 1000, "what": number(i)}
        for u, i, b, s in world.events
    ]
    return {"t.jsonl": recorded(rng, records)}


def expect_json_lines(files: Files) -> Expected:
    expected = Expected([])
    rows = expected.take("t.jsonl", LINES_FORM.rows(files["t.jsonl"]))
    expected.events = [(r["user"], r["item"], r["behavior"], r["ms"]) for r in rows]
    return expected


def _table(unit: str, separator: str) -> Layout:
    kinds = {"brand": "categorical", "tags": "multi_label", "price": "numeric"}
    options = {
        "file": "t.csv",
        "user": "who",
        "item": "what",
        "behavior": "how",
        "value": "stars",
        "timestamp": "when",
        "time_unit": unit,
    }
    options |= {
        "separator": separator,
        "features": {"file": "items.csv", "item": "sku", "columns": kinds},
    }
    return Layout(
        "table.read",
        TABLE_EVENTS,
        write_table(unit, separator),
        expect_table(unit, separator),
        options,
        kinds,
    )


def _movielens(reader: str, log: str, films: str) -> Layout:
    kinds = {"year": "categorical", "genres": "multi_label"}
    return Layout(
        f"movielens.{reader}",
        ("rating",),
        write_movielens(log, films),
        expect_movielens(log, films),
        kinds=kinds,
    )


AMAZON = {"category": "multi_label", "brand": "categorical", "price": "numeric"}
LAYOUTS = {
    "retailrocket": Layout(
        "retailrocket.read",
        RR_EVENTS,
        write_retailrocket,
        expect_retailrocket,
        kinds={"category": "multi_label"},
    ),
    "taobao": Layout(
        "taobao.read", TB_EVENTS, write_taobao, expect_taobao, kinds={"category": "categorical"}
    ),
    "ml_1m": _movielens("read_1m", "ratings.dat", "movies.dat"),
    "ml_100k": _movielens("read_100k", "u.data", "u.item"),
    "ml_20m": _movielens("read_20m", "ratings.csv", "movies.csv"),
    "amazon": Layout("amazon.read", ("rating",), write_amazon, expect_amazon, kinds=AMAZON),
    "steam": Layout(
        "steam.read", ("review",), write_steam, expect_steam, kinds={"genres": "multi_label"}
    ),
    "recobell": Layout(
        "recobell.read",
        ("view", "order"),
        write_recobell,
        expect_recobell,
        kinds={"category": "multi_label"},
    ),
    "sequence_file": Layout(
        "sequence_file.read", ("interaction",), write_sequence, expect_sequence, {"file": "s.txt"}
    ),
    "attribute_sequence": Layout(
        "attribute_sequence.read",
        ("interaction",),
        write_attributes,
        expect_attributes,
        kinds={"attribute": "multi_label"},
    ),
    "table": _table("s", ","),
    "table_ms": _table("ms", "\t"),
    "table_iso": _table("iso", ";"),
    "table_wide": _table("s", "::"),
    "table_parts": Layout(
        "table.read",
        TABLE_EVENTS,
        write_parts,
        expect_parts,
        {"file": "part-*.tsv", "header": False, "separator": "tab", "behavior": 0}
        | {"user": 1, "item": 2, "timestamp": 3},
    ),
    "table_json_lines": Layout(
        "table.read",
        TABLE_EVENTS,
        write_json_lines,
        expect_json_lines,
        {"file": "t.jsonl", "user": "who", "item": "what", "behavior": "how"}
        | {"timestamp": "when", "time_unit": "ms"},
    ),
}

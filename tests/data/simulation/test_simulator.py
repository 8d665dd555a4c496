"""The simulated shop:

RetailRocket's layout, the planted structure, and a folder that is whole or absent.
"""

import inspect
import os
import subprocess
import sys

import numpy as np
import polars as pl
import pytest

from recexp.data.readers import retailrocket, simulated_shop
from recexp.data.simulation import simulator
from recexp.data.simulation.simulator import SETTING_FILE, main, simulate
from recexp.errors import RecexpError

SMALL = dict(
    users=600,
    items=800,
    categories=30,
    sessions=10.0,
    session_length=5.0,
    cart_rate=0.25,
    purchase_rate=0.4,
)
FILES = [
    "category_tree.csv",
    "events.csv",
    "item_properties_part1.csv",
    "item_properties_part2.csv",
    SETTING_FILE,
]
START, END = 1_430_611_200_000, 1_442_620_800_000  # 2015-05-03 00:00 and 2015-09-19 00:00 UTC


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shop") / "a"
    simulate(folder, **SMALL, seed=3)
    return folder


@pytest.fixture(scope="module")
def events(shop):
    return pl.read_csv(shop / "events.csv")


@pytest.fixture(scope="module")
def leaf(shop):
    """Frame itemid -> leaf: the last category of every item."""
    parts = pl.concat([_properties(shop, 1), _properties(shop, 2)]).filter(
        pl.col("property") == "categoryid"
    )
    return (
        parts.sort("timestamp")
        .group_by("itemid")
        .agg(pl.col("value").last().cast(pl.Int64).alias("leaf"))
    )


@pytest.fixture(scope="module")
def views(events, leaf):
    return (
        events.filter(pl.col("event") == "view")
        .join(leaf, on="itemid", validate="m:1")
        .sort("visitorid", "timestamp")
    )


def _properties(folder, part):
    return pl.read_csv(
        folder / f"item_properties_part{part}.csv", schema_overrides={"value": pl.String}
    )


def _bytes(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_seed_decides_every_byte(shop, tmp_path):
    simulate(tmp_path / "same", **SMALL, seed=3)
    simulate(tmp_path / "other", **SMALL, seed=4)
    assert _bytes(tmp_path / "same") == _bytes(shop)
    assert all(_bytes(tmp_path / "other")[name] != _bytes(shop)[name] for name in FILES)


def test_layout_is_retailrockets(shop, events):
    assert sorted(os.listdir(shop)) == FILES
    assert (
        (shop / "events.csv")
        .read_text()
        .startswith("timestamp,visitorid,event,itemid,transactionid\n")
    )
    integer = dict.fromkeys(["timestamp", "visitorid", "itemid", "transactionid"], pl.Int64)
    assert dict(events.schema) == integer | {"event": pl.String}
    assert set(events["event"].unique()) == {"view", "addtocart", "transaction"}
    assert (events["transactionid"].is_not_null() == (events["event"] == "transaction")).all()
    assert events["timestamp"].is_sorted() and events["timestamp"].is_between(START, END).all()
    for part in (1, 2):
        properties = _properties(shop, part)
        assert properties.columns == ["timestamp", "itemid", "property", "value"]
        assert properties.null_count().sum_horizontal().item() == 0
        assert {"categoryid", "available"} < set(properties["property"].unique())
    tree = pl.read_csv(shop / "category_tree.csv")
    assert dict(tree.schema) == {"categoryid": pl.Int64, "parentid": pl.Int64}
    assert tree["categoryid"].is_unique().all() and 1 <= tree["parentid"].null_count() < 5
    assert set(tree["parentid"].drop_nulls()) < set(tree["categoryid"])


def test_every_item_has_a_leaf_and_some_categories_change(shop, events, leaf):
    tree = pl.read_csv(shop / "category_tree.csv")
    assert leaf.height == SMALL["items"] and leaf["leaf"].n_unique() == SMALL["categories"]
    assert set(leaf["leaf"]) <= set(tree["categoryid"]) - set(tree["parentid"].drop_nulls())
    assert set(events["itemid"]) <= set(leaf["itemid"])
    rows = pl.concat([_properties(shop, 1), _properties(shop, 2)]).filter(
        pl.col("property") == "categoryid"
    )
    distinct = rows.group_by("itemid").agg(pl.col("value").n_unique())["value"]
    assert 0.01 < (distinct > 1).mean() < 0.1


def test_the_retailrocket_reader_reads_it(tmp_path, shop, events):
    raw = simulated_shop.read(tmp_path, **SMALL, seed=3)
    assert raw.events.collect().height == events.height and not raw.dropped
    assert {p.name for p in raw.files} == set(FILES) - {SETTING_FILE}
    direct = retailrocket.read(shop)
    assert raw.events.collect().equals(direct.events.collect())
    assert (
        raw.item_features["category"]
        .frame.collect()
        .equals(direct.item_features["category"].frame.collect())
    )


def test_users_keep_to_few_categories(views):
    shuffled = views.with_columns(
        pl.Series("leaf", np.random.default_rng(0).permutation(views["leaf"].to_numpy()))
    )
    assert _concentration(views) > 3 * _concentration(shuffled)


def _concentration(views):
    """Probability that two views of one user, drawn with replacement, have the same category, over
    users with ten views or more.
    """
    count = (
        views.group_by("visitorid", "leaf")
        .len()
        .with_columns(n=pl.col("len").sum().over("visitorid"))
    )
    count = count.filter(pl.col("n") >= 10)
    return (
        count.group_by("visitorid")
        .agg(((pl.col("len") / pl.col("n")) ** 2).sum())
        .get_column("len")
        .mean()
    )


def test_neighbors_in_time_are_neighbors_in_category(views):
    # the control keeps every user's own categories, only their order is lost
    control = views.with_columns(pl.col("leaf").shuffle(seed=1).over("visitorid"))
    assert _persistence(views) > 0.85 and _persistence(views) > 1.5 * _persistence(control)


def _persistence(views):
    """Share of a user's consecutive views in one category."""
    return (
        views.select(pl.col("leaf").diff().over("visitorid").drop_nulls() == 0).to_series().mean()
    )


def test_the_next_item_depends_on_the_previous_beyond_its_category(views):
    """Within a category the next item depends on the previous one: predicting the most frequent
    successor is better than predicting the most frequent item.
    """
    following = pl.col("itemid", "leaf").shift(-1).over("visitorid")
    pair = views.with_columns(following.name.prefix("next_"))
    pair = pair.filter(
        (pl.col("leaf") == pl.col("next_leaf")) & (pl.col("itemid") != pl.col("next_itemid"))
    )
    half = pair.with_columns(train=pl.int_range(pl.len()) % 2 == 0)
    train, test = half.filter("train"), half.filter(~pl.col("train"))
    hit = {}
    for known in ("itemid", "leaf"):
        guess = train.group_by(known).agg(guess=pl.col("next_itemid").mode().sort().first())
        hit[known] = (
            test.join(guess, on=known)
            .select((pl.col("guess") == pl.col("next_itemid")).mean())
            .item()
        )
    assert hit["itemid"] > 2 * hit["leaf"]


def test_carts_follow_views_and_purchases_follow_carts(events):
    key = ["visitorid", "itemid"]
    kinds = {
        e: events.filter(pl.col("event") == e).select(*key, "timestamp")
        for e in ("view", "addtocart", "transaction")
    }
    for later, earlier in (("addtocart", "view"), ("transaction", "addtocart")):
        before = kinds[earlier].with_columns(before="timestamp")
        joined = kinds[later].join_asof(before, on="timestamp", by=key, check_sortedness=False)
        waited = joined["timestamp"] - joined["before"]
        assert waited.null_count() == 0 and waited.min() > 0 and waited.max() < 20_000
    # no other view of the user lies between: the funnel is one step of the sequence
    order = events.sort("visitorid", "timestamp").with_columns(
        previous=pl.col("itemid").shift().over("visitorid")
    )
    assert (
        order.filter(pl.col("event") != "view")
        .select((pl.col("previous") == pl.col("itemid")).all())
        .item()
    )


def test_conversion_rates_are_the_settings(events):
    view, cart, buy = (
        events.filter(pl.col("event") == e).height for e in ("view", "addtocart", "transaction")
    )
    assert cart / view == pytest.approx(0.25, rel=0.05) and buy / cart == pytest.approx(
        0.4, rel=0.08
    )


def test_what_is_carted_shows_the_users_liking_for_a_style(shop, events, views):
    """Per user and style, the conversion in the first half of the views predicts that of the second
    half.
    """
    parts = pl.concat([_properties(shop, 1), _properties(shop, 2)]).filter(
        pl.col("property") == "888"
    )
    style = parts.select("itemid", style=pl.col("value").str.split(" ").list.first())
    key = ["visitorid", "itemid", "timestamp"]
    carts = (
        events.filter(pl.col("event") == "addtocart")
        .select(*key, pl.lit(True).alias("cart"))
        .sort("timestamp")
    )
    options = dict(
        on="timestamp", by=key[:2], strategy="forward", tolerance=9_000, check_sortedness=False
    )
    table = views.sort("timestamp").join_asof(carts, **options)
    table = table.join(style, on="itemid").with_columns(
        pl.col("cart").fill_null(False).cast(pl.Float64)
    )
    table = table.with_columns(
        early=pl.int_range(pl.len()).over("visitorid") < pl.len().over("visitorid") // 2
    )
    rate = (
        table.group_by("visitorid", "style", "early")
        .agg(pl.col("cart").mean(), pl.len())
        .filter(pl.col("len") >= 3)
    )
    early, late = rate.filter("early"), rate.filter(~pl.col("early"))
    both = early.join(late, on=["visitorid", "style"])
    assert both.height > 100 and np.corrcoef(both["cart"], both["cart_right"])[0, 1] > 0.3


def test_popularity_is_skewed_with_a_long_tail(views):
    seen = views.group_by("itemid").len()["len"].sort().to_numpy()
    count = np.concatenate([np.zeros(SMALL["items"] - len(seen)), seen])
    gini = 2 * (np.arange(1, len(count) + 1) * count).sum() / (len(count) * count.sum()) - (
        len(count) + 1
    ) / len(count)
    assert gini > 0.4
    assert np.median(count) < 0.8 * count.mean() and count.max() > 5 * count.mean()


def test_ids_tell_nothing_about_categories(leaf):
    neighbors = leaf.sort("itemid")["leaf"].to_numpy()
    assert np.mean(neighbors[1:] == neighbors[:-1]) < 3 / SMALL["categories"]


@pytest.mark.parametrize(
    ("users", "sessions", "length"), [(200, 1.0, 1.0), (400, 3.0, 4.0), (1600, 3.0, 4.0)]
)
def test_counts_follow_the_setting(tmp_path, users, sessions, length):
    simulate(
        tmp_path / "s",
        users=users,
        items=300,
        categories=10,
        sessions=sessions,
        session_length=length,
    )
    events = pl.read_csv(tmp_path / "s" / "events.csv")
    views = events.filter(pl.col("event") == "view")
    assert views["visitorid"].n_unique() == users
    assert views.height == pytest.approx(users * sessions * length, rel=0.15)


def test_the_source_takes_exactly_the_settings_of_the_simulator():
    offered = set(inspect.signature(simulate).parameters) - {"out_dir"}
    assert (
        set(inspect.signature(simulated_shop.read).parameters) - {"raw_dir", "on_bad_rows"}
        == offered
    )


def test_every_setting_has_its_own_folder_and_is_written_once(tmp_path):
    simulated_shop.read(tmp_path, **SMALL, seed=0)
    (first,) = tmp_path.iterdir()
    written = (first / "events.csv").stat().st_mtime_ns
    simulated_shop.read(tmp_path, **SMALL, seed=0)
    assert [p.stat().st_mtime_ns for p in tmp_path.glob("*/events.csv")] == [written]
    simulated_shop.read(tmp_path, **(SMALL | {"cart_rate": 0.3}), seed=0)
    assert len(list(tmp_path.iterdir())) == 2


def _run(code, *args):
    """A process of its own (polars' threads do not survive a fork) that simulates SMALL into
    args[0] after running ``code``.
    """
    before = (
        "import os, sys, time; from pathlib import Path; "
        "from recexp.data.simulation import simulator"
    )
    code = f"{before}\n{code}\nsimulator.simulate(Path(sys.argv[1]), **{SMALL})"
    return subprocess.Popen([sys.executable, "-c", code, *map(str, args)])


def test_two_processes_at_once_leave_one_whole_shop(tmp_path):
    both_have_written = """
write = simulator._write
def write_then_wait(*args):
    write(*args)
    Path(sys.argv[2]).touch()
    while not Path(sys.argv[3]).exists():
        time.sleep(0.01)
simulator._write = write_then_wait
"""
    shop, a, b = tmp_path / "shops" / "shop", tmp_path / "a", tmp_path / "b"
    processes = [_run(both_have_written, shop, a, b), _run(both_have_written, shop, b, a)]
    assert [process.wait(300) for process in processes] == [0, 0]
    assert os.listdir(shop.parent) == ["shop"]  # the loser's files are gone
    simulate(tmp_path / "alone", **SMALL)
    assert _bytes(tmp_path / "alone") == _bytes(shop)


def test_a_killed_write_is_never_taken_for_whole(tmp_path):
    # the tree comes last: events and properties are on disk by then
    process = _run("simulator.tree = lambda shop: os.kill(os.getpid(), 9)", tmp_path / "shop")
    assert process.wait(300) == -9
    assert list(tmp_path.rglob("events.csv")) and not (tmp_path / "shop").exists()
    simulate(tmp_path / "shop", **SMALL)
    assert sorted(os.listdir(tmp_path / "shop")) == FILES


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full_disk(shop):
        raise OSError("no space left")

    monkeypatch.setattr(simulator, "tree", full_disk)
    with pytest.raises(RecexpError, match=r"cannot be written to .*shop: no space left"):
        simulate(tmp_path / "shop", **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "events.csv").write_text("precious")
    with pytest.raises(RecexpError, match="not a simulated shop"):
        simulate(tmp_path / "real", **SMALL)
    assert (tmp_path / "real" / "events.csv").read_text() == "precious"
    simulate(tmp_path / "shop", **SMALL)
    with pytest.raises(RecexpError, match="another setting"):
        simulate(tmp_path / "shop", **SMALL, seed=1)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"users": 0}, "users"),
        ({"users": 10.5}, "users"),
        ({"items": 50}, "categories"),
        ({"sessions": 0.5}, "sessions"),
        ({"session_length": "long"}, "session_length"),
        ({"cart_rate": 1.0}, "cart_rate"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_out_of_range_are_named(tmp_path, change, named):
    with pytest.raises(RecexpError, match=named):
        simulate(tmp_path / "shop", **(SMALL | change))
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, shop):
    options = [
        word for key, value in SMALL.items() for word in (f"--{key.replace('_', '-')}", str(value))
    ]
    main([*options, "--seed", "3", "--out", str(tmp_path / "shop")])
    assert _bytes(tmp_path / "shop") == _bytes(shop)
    with pytest.raises(SystemExit, match="another setting"):
        main([*options, "--seed", "4", "--out", str(tmp_path / "shop")])


@pytest.mark.slow
def test_retailrockets_own_scale(tmp_path):
    setting = dict(
        users=1_407_580, items=235_061, categories=1_300, sessions=1.25, session_length=1.51
    )
    simulate(tmp_path / "shop", **setting, cart_rate=0.026, purchase_rate=0.324)
    events = pl.read_csv(tmp_path / "shop" / "events.csv")
    count = dict(events["event"].value_counts().iter_rows())
    assert (
        events["visitorid"].n_unique() == 1_407_580
        and 150_000 < events["itemid"].n_unique() <= 235_061
    )
    assert events.height == pytest.approx(2_756_101, rel=0.02)
    assert count["view"] == pytest.approx(2_664_312, rel=0.02)
    assert count["addtocart"] == pytest.approx(69_332, rel=0.05)
    assert count["transaction"] == pytest.approx(22_457, rel=0.05)

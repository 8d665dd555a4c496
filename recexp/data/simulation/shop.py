"""What is planted in the simulated shop (``recexp.data.simulation.simulator`` writes it to files).

The ITE paper argues from each of these:

* long-term taste: a user is a Dirichlet mixture over some leaf categories, part of them siblings in
  the category tree;
* short-term interest: sessions keep to one category, often to that of the session before, and walk
  through its items in a latent order, so the next item lies near the previous one;
* a funnel view -> cart -> purchase whose conversion grows with the user's affinity to what is
  viewed: the weight of its category in the user's taste, and the user's liking for the item's
  style; a session's last view converts most. Style does not decide what is viewed, so explicit
  feedback says more than implicit;
* popularity: where a walk starts is Zipf-distributed within the category, so most items of a small
  shop are seen a few times.

Ids are random, so they tell nothing about the structure. All steps work on arrays of users,
sessions and events, without loops. Suffixes: U users, I interests of a user, S sessions, N items, C
leaf categories, T all categories of the tree; arrays over views carry none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from recexp.errors import RecexpError

# All times are in milliseconds. RetailRocket's window is 2015-05-03 03:00 to 2015-09-18 03:00 UTC.
START = 1_430_622_000_000
END = 1_442_545_200_000
MINUTE = 60_000
WEEK = 7 * 86_400_000
SNAPSHOT = 1_431_226_800_000  # the first of the weekly snapshots of item properties
# Times modulo the first number leave the second, which marks the content as simulated. No unit of
# time is a multiple of the first, so rounded times of real events do not all leave one remainder.
GRID = (101, 37)

FANOUT = 5  # children of an inner category
INTERESTS = 16  # leaf categories in a user's taste
CONCENTRATION = 1.5  # of the Dirichlet over them
SIBLING = 0.3  # chance that a further interest is a sibling of the first
EXPLORE = 0.05  # chance that an episode of interest has nothing to do with taste
SPREAD = 3.0  # of activity: shape of a gamma distribution, the lower the more unequal
PERSISTENCE = 0.75  # chance that a session goes on where the session before stopped
JUMP = 0.15  # chance that a view starts a new walk in the same category
# Steps of a walk in the category's latent order, and their probabilities.
STEPS = (-1, 1, 2, 3)
STEP_CHANCE = (0.15, 0.5, 0.25, 0.1)
STYLES = 8
# Weights on conversion: of the taste for the category, of the liking for the style, of being the
# last view of a session.
CATEGORY_PULL = 0.7
STYLE_PULL = 1.5
LAST_PULL = 2.0
MOVED = 0.05  # share of items whose category changes
TOGGLED = 0.3  # share of items whose availability changes


@dataclass(frozen=True)
class Catalogue:
    """Items in order of (leaf, latent order); leaf c owns items start[c]..start[c] + size[c].

    Categories 0..C-1 are the leaves.
    """

    item_id: np.ndarray  # int64 [N], external id
    leaf: np.ndarray  # int64 [N]
    style: np.ndarray  # int64 [N]
    # int64 [N]; at start[c] + r: place in the latent order of the item of popularity rank r.
    popular: np.ndarray
    start: np.ndarray  # int64 [C]
    size: np.ndarray  # int64 [C]
    weight: np.ndarray  # float64 [C], of a leaf in the users' tastes, sums to 1
    category_id: np.ndarray  # int64 [T], external id
    parent: np.ndarray  # int64 [T], -1 at a root


def catalogue(rng: np.random.Generator, items: int, categories: int) -> Catalogue:
    """Draw the shop. items, categories: numbers of items and of leaf categories."""
    weight = rng.permutation(np.arange(1, categories + 1) ** -0.5)
    weight /= weight.sum()
    size = 2 + rng.multinomial(items - 2 * categories, rng.dirichlet(np.full(categories, 3.0)))
    start = np.cumsum(size) - size
    leaf = np.repeat(np.arange(categories), size)
    popular = np.lexsort((rng.random(items), leaf)) - start[leaf]
    n_inner = -(-categories // FANOUT)
    n_roots = -(-n_inner // FANOUT)
    parent_of_leaf = categories + np.arange(categories) // FANOUT
    parent_of_inner = categories + n_inner + np.arange(n_inner) // FANOUT
    parent = np.concatenate([parent_of_leaf, parent_of_inner, np.full(n_roots, -1)])
    total = len(parent)
    return Catalogue(
        item_id=rng.permutation(2 * items)[:items],
        leaf=leaf,
        style=rng.integers(STYLES, size=items),
        popular=popular,
        start=start,
        size=size,
        weight=weight,
        category_id=rng.permutation(total + total // 50)[:total],
        parent=parent,
    )


def _leaves(rng: np.random.Generator, shop: Catalogue, shape: int | tuple[int, ...]) -> np.ndarray:
    """Leaves drawn by their weight."""
    drawn = np.searchsorted(np.cumsum(shop.weight), rng.random(shape), side="right")
    # Rounding may leave the last cumulative weight just below 1.
    return np.minimum(drawn, len(shop.weight) - 1)


def _taste(rng: np.random.Generator, shop: Catalogue, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Leaf and weight of every interest, both [U, I]."""
    leaf_UI = _leaves(rng, shop, (users, INTERESTS))
    sibling_UI = leaf_UI[:, :1] // FANOUT * FANOUT + rng.integers(FANOUT, size=leaf_UI.shape)
    use_UI = (rng.random(leaf_UI.shape) < SIBLING) & (sibling_UI < len(shop.weight))
    use_UI[:, 0] = False
    weight_UI = rng.standard_gamma(CONCENTRATION, leaf_UI.shape) + 1e-9
    leaf_UI = np.where(use_UI, sibling_UI, leaf_UI)
    return leaf_UI, weight_UI / weight_UI.sum(1, keepdims=True)


def _last_true(flag: np.ndarray) -> np.ndarray:
    """Index of the last True at or before every place; the first entry must be True."""
    return np.maximum.accumulate(np.where(flag, np.arange(len(flag)), 0))


def _first(run: np.ndarray) -> np.ndarray:
    """True where a run of equal values begins."""
    return np.diff(run, prepend=-1) != 0


@dataclass(frozen=True)
class _Sessions:
    """Sessions of all users, in the order of users."""

    user_S: np.ndarray  # int64
    leaf_S: np.ndarray  # int64, the category of the session
    weight_S: np.ndarray  # float64, of that category in the user's taste
    anew_S: np.ndarray  # bool: the interest is drawn anew; False: that of the session before


@dataclass(frozen=True)
class _Views:
    """Views of all sessions, in the order of sessions."""

    session: np.ndarray  # int64, 0..S-1
    user: np.ndarray  # int64
    item: np.ndarray  # int64, 0..N-1
    opens: np.ndarray  # bool: the first view of its session


def events(rng: np.random.Generator, shop: Catalogue, setting: Mapping[str, Any]) -> pl.DataFrame:
    """Views, carts and purchases of all users by time, with the columns of RetailRocket's file."""
    users = setting["users"]
    leaf_UI, weight_UI = _taste(rng, shop, users)
    liking_US = rng.standard_normal((users, STYLES), dtype=np.float32)  # here S stands for styles
    sessions = _sessions(rng, shop, leaf_UI, weight_UI, setting["sessions"])
    views = _views(rng, shop, sessions, setting["session_length"])

    weight = np.maximum(sessions.weight_S[views.session], EXPLORE)
    liking = liking_US[views.user, shop.style[views.item]]
    affinity = CATEGORY_PULL * np.log(weight) + STYLE_PULL * liking
    affinity += LAST_PULL * np.append(views.opens[1:], True)
    cart = np.flatnonzero(_convert(rng, affinity, setting["cart_rate"]))
    bought = cart[_convert(rng, affinity[cart], setting["purchase_rate"])]

    time = _view_times(rng, views.user, sessions.user_S, views.opens)
    # Views are at least 20 s apart, so that cart and purchase fall before the next view.
    cart_time = time[cart] + rng.integers(3_000, 9_000, len(cart))
    bought_time = time[bought] + rng.integers(9_000, 19_000, len(bought))
    # A session that buys has one order.
    buys_S = np.bincount(views.session[bought], minlength=len(sessions.user_S)) > 0
    order = (np.cumsum(buys_S) - 1)[views.session[bought]]
    tables = [
        _event_table(shop, views, "view", np.arange(len(time)), time, None),
        _event_table(shop, views, "addtocart", cart, cart_time, None),
        _event_table(shop, views, "transaction", bought, bought_time, order),
    ]
    by_time = pl.concat(tables).sort("timestamp", maintain_order=True)
    return by_time.select("timestamp", "visitorid", "event", "itemid", "transactionid")


def _event_table(
    shop: Catalogue,
    views: _Views,
    event: str,
    at: np.ndarray,
    time: np.ndarray,
    order: np.ndarray | None,
) -> pl.DataFrame:
    """Events of one kind. at: the views they belong to. order: numbers of the transactions."""
    columns = {"timestamp": time, "visitorid": views.user[at]}
    columns["itemid"] = shop.item_id[views.item[at]]
    modulus, remainder = GRID
    off_grid = (pl.col("timestamp") - remainder) % modulus
    orders = [None] * len(at) if order is None else order
    return pl.DataFrame(columns).with_columns(
        pl.lit(event).alias("event"),
        pl.col("timestamp") - off_grid,
        pl.Series("transactionid", orders, dtype=pl.Int64),
    )


def _sessions(
    rng: np.random.Generator,
    shop: Catalogue,
    leaf_UI: np.ndarray,
    weight_UI: np.ndarray,
    mean_sessions: float,
) -> _Sessions:
    """Draw the sessions: activity is heavy-tailed, an interest lasts over some sessions."""
    users = len(leaf_UI)
    count_U = 1 + rng.poisson(rng.gamma(SPREAD, (mean_sessions - 1) / SPREAD, users))
    user_S = np.repeat(np.arange(users), count_U)
    anew_S = _first(user_S) | (rng.random(len(user_S)) >= PERSISTENCE)
    cumulative_SI = np.cumsum(weight_UI, 1)[user_S, :-1]
    interest_S = (rng.random(len(user_S))[:, None] > cumulative_SI).sum(1)
    explore_S = rng.random(len(user_S)) < EXPLORE
    any_leaf_S = _leaves(rng, shop, len(user_S))
    leaf_S = np.where(explore_S, any_leaf_S, leaf_UI[user_S, interest_S])
    weight_S = np.where(explore_S, EXPLORE, weight_UI[user_S, interest_S])
    drawn_S = _last_true(anew_S)  # the session that drew this session's interest
    return _Sessions(user_S, leaf_S[drawn_S], weight_S[drawn_S], anew_S)


def _views(
    rng: np.random.Generator, shop: Catalogue, sessions: _Sessions, mean_length: float
) -> _Views:
    """Draw the views: walks through the latent order of the session's category.

    Steps add up, so a place is the start of its walk plus a difference of running sums.
    """
    n_sessions = len(sessions.user_S)
    length_S = np.minimum(rng.geometric(1 / mean_length, n_sessions), 500)
    session = np.repeat(np.arange(n_sessions), length_S)
    n_views = len(session)
    leaf = sessions.leaf_S[session]
    opens = _first(session)
    starts_walk = (opens & sessions.anew_S[session]) | (rng.random(n_views) < JUMP)
    # Log-uniform: Zipf with exponent 1.
    rank = ((shop.size[leaf] + 1) ** rng.random(n_views)).astype(np.int64) - 1
    rank = np.minimum(rank, shop.size[leaf] - 1)
    steps = np.cumsum(rng.choice(np.array(STEPS), n_views, p=STEP_CHANCE))
    start = _last_true(starts_walk)  # the view that started this view's walk
    start_place = shop.popular[shop.start[leaf] + rank][start]
    place = (start_place + steps - steps[start]) % shop.size[leaf]
    return _Views(session, sessions.user_S[session], shop.start[leaf] + place, opens)


def _convert(rng: np.random.Generator, affinity: np.ndarray, rate: float) -> np.ndarray:
    """Which of the affinities convert, bool. ``rate`` is the mean probability.

    The probability is a logistic function of affinity, shifted by bisection to reach the mean.
    """
    sample = affinity[:: len(affinity) // 100_000 + 1]
    low = -50.0
    high = 50.0
    for _ in range(40):
        middle = (low + high) / 2
        if sample.size and _sigmoid(sample + middle).mean() < rate:
            low = middle
        else:
            high = middle
    return rng.random(len(affinity)) < _sigmoid(affinity + low)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _view_times(
    rng: np.random.Generator, user: np.ndarray, user_S: np.ndarray, opens: np.ndarray
) -> np.ndarray:
    """Milliseconds of every view. A user's sessions lie at random, at least 30 minutes apart."""
    users = user_S[-1] + 1
    gap = np.where(opens, 30 * MINUTE, 20_000 + rng.exponential(MINUTE, len(user)))
    room_U = END - START - 30 * MINUTE - np.bincount(user, gap)
    if room_U.min() < 0:
        raise RecexpError(
            "simulated shop: a user's sessions do not fit into 138 days: "
            "lower sessions or session_length"
        )
    share_S = rng.standard_exponential(len(user_S))
    shares_U = np.bincount(user_S, share_S) + rng.standard_exponential(users)
    gap[opens] += (room_U / shares_U)[user_S] * share_S
    elapsed = np.cumsum(gap.astype(np.int64))
    first = np.flatnonzero(_first(user))
    before_U = np.concatenate([[0], elapsed[first[1:] - 1]])
    return START + elapsed - before_U[user]


def properties(rng: np.random.Generator, shop: Catalogue) -> pl.DataFrame:
    """Rows of all item properties in random order.

    Readable are "available" and "categoryid"; where an item's category changes, the last one is the
    true one. The others are hashed texts, as in RetailRocket's files.
    """
    items = len(shop.item_id)
    everything = np.arange(items)
    moved = np.flatnonzero(rng.random(items) < MOVED)
    leaf = shop.leaf.copy()
    leaf[moved] = rng.integers(len(shop.size), size=len(moved))
    toggled = np.flatnonzero(rng.random(items) < TOGGLED)
    available = (rng.random(items) < 0.8).astype(np.int64)
    price = pl.Series(np.exp(rng.normal(9, 1, items)).astype(np.int64) * 10).cast(pl.String)
    style = pl.Series(shop.style + 500_000).cast(pl.String)
    noise = pl.Series(rng.integers(1_000_000, size=items)).cast(pl.String)

    def rows(
        item: np.ndarray, property: str, value: np.ndarray | pl.Series, *, later: bool = False
    ) -> pl.DataFrame:
        week = rng.integers(1, 10, len(item)) if later else np.zeros(len(item), np.int64)
        columns = {
            "timestamp": SNAPSHOT + WEEK * week,
            "itemid": shop.item_id[item],
            "property": pl.repeat(property, len(item), eager=True),
            "value": pl.Series(value).cast(pl.String),
        }
        return pl.DataFrame(columns)

    table = pl.concat(
        [
            rows(everything, "categoryid", shop.category_id[leaf]),
            rows(moved, "categoryid", shop.category_id[shop.leaf[moved]], later=True),
            rows(everything, "available", available),
            rows(toggled, "available", 1 - available[toggled], later=True),
            rows(everything, "790", "n" + price + ".000"),
            rows(everything, "888", style + " n" + noise + ".000 " + noise.reverse()),
        ]
    )
    return table[rng.permutation(len(table))]


def tree(shop: Catalogue) -> pl.DataFrame:
    """The category tree: columns categoryid, parentid (null at a root)."""
    columns = {
        "categoryid": shop.category_id,
        "parentid": shop.category_id[shop.parent],
        "is_root": shop.parent < 0,
    }
    table = pl.DataFrame(columns)
    parent = pl.when(~pl.col("is_root")).then("parentid").alias("parentid")
    return table.select("categoryid", parent).sort("categoryid")

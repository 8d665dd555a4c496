"""What is planted in the simulated shop (``recexp.data.simulation.simulator`` writes it to files).

S000 argues from each of these:

* long-term taste: a user is a Dirichlet mixture over some leaf categories, part of them siblings in the category tree;
* short-term interest: sessions keep to one category, often to that of the session before, and walk through its items in a
  latent order, so the next item lies near the previous one;
* a funnel view -> cart -> purchase whose conversion grows with the user's affinity to what is viewed: the weight of its
  category in the user's taste, and the user's liking for the item's style; a session's last view converts most. Style does
  not decide what is viewed, so explicit feedback says more than implicit;
* popularity: where a walk starts is Zipf-distributed within the category, so most items of a small shop are seen a few times.

Ids are random, so they tell nothing about the structure. Everything is arrays over users, sessions and events: no loop over
any of them. Suffixes: U users, I interests of a user, S sessions; arrays over views carry none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from recexp.errors import RecexpError

START, END = (
    1_430_622_000_000,
    1_442_545_200_000,
)  # ms: 2015-05-03 03:00 to 2015-09-18 03:00 UTC, RetailRocket's window
SNAPSHOT, WEEK = 1_431_226_800_000, 7 * 86_400_000  # item properties are stated at weekly snapshots
MINUTE = 60_000
# Times in milliseconds modulo the first number leave the second: the content says that it is
# simulated. No unit of time is a multiple of the first, so that rounded times of real events do not
# all leave one remainder.
GRID = 101, 37

FANOUT = 5  # children of an inner category
INTERESTS = 16  # leaf categories in a user's taste
CONCENTRATION = 1.5  # of the Dirichlet over them
SIBLING = 0.3  # chance that a further interest is a sibling of the first
EXPLORE = 0.05  # chance that an episode of interest has nothing to do with taste
SPREAD = 3.0  # of activity: shape of a gamma distribution, the lower the more unequal
PERSISTENCE = 0.75  # chance that a session goes on where the session before stopped
JUMP = 0.15  # chance that a view starts a new walk in the same category
STEPS, STEP_CHANCE = (
    (-1, 1, 2, 3),
    (0.15, 0.5, 0.25, 0.1),
)  # of the walk, in the category's latent order
STYLES = 8
CATEGORY_PULL, STYLE_PULL, LAST_PULL = (
    0.7,
    1.5,
    2.0,
)  # on conversion: of the taste for category and style, of closing a session
MOVED, TOGGLED = 0.05, 0.3  # share of items whose category, availability changes


@dataclass(frozen=True)
class Catalogue:
    """Items in order of (leaf, latent order); leaf c owns start[c]..start[c] + size[c]. Leaves are the first categories."""

    item_id: np.ndarray  # external id per item
    leaf: np.ndarray  # leaf per item
    style: np.ndarray  # style per item
    popular: (
        np.ndarray
    )  # at start[c] + r: place in the latent order of the item of popularity rank r
    start: np.ndarray
    size: np.ndarray
    weight: np.ndarray  # of a leaf in the users' tastes, sums to 1
    category_id: np.ndarray  # external id per category
    parent: np.ndarray  # parent per category, -1 at a root


def catalogue(rng: np.random.Generator, items: int, categories: int) -> Catalogue:
    weight = rng.permutation(np.arange(1, categories + 1) ** -0.5)
    weight /= weight.sum()
    size = 2 + rng.multinomial(items - 2 * categories, rng.dirichlet(np.full(categories, 3.0)))
    start = np.cumsum(size) - size
    leaf = np.repeat(np.arange(categories), size)
    popular = np.lexsort((rng.random(items), leaf)) - start[leaf]
    inner = -(-categories // FANOUT)
    roots = -(-inner // FANOUT)
    parent = np.concatenate(
        [
            categories + np.arange(categories) // FANOUT,
            categories + inner + np.arange(inner) // FANOUT,
            np.full(roots, -1),
        ]
    )
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
    return np.minimum(
        drawn, len(shop.weight) - 1
    )  # rounding may leave the last cumulative weight just below 1


def _taste(rng: np.random.Generator, shop: Catalogue, users: int) -> tuple[np.ndarray, np.ndarray]:
    """Leaf and weight of every interest, both [users, INTERESTS]."""
    leaf = _leaves(rng, shop, (users, INTERESTS))
    sibling = leaf[:, :1] // FANOUT * FANOUT + rng.integers(FANOUT, size=leaf.shape)
    use = (rng.random(leaf.shape) < SIBLING) & (sibling < len(shop.weight))
    use[:, 0] = False
    weight = rng.standard_gamma(CONCENTRATION, leaf.shape) + 1e-9
    return np.where(use, sibling, leaf), weight / weight.sum(1, keepdims=True)


def _last_true(flag: np.ndarray) -> np.ndarray:
    """Index of the last True at or before every place; the first must be True."""
    return np.maximum.accumulate(np.where(flag, np.arange(len(flag)), 0))


def _first(run: np.ndarray) -> np.ndarray:
    """True where a run of equal values begins."""
    return np.diff(run, prepend=-1) != 0


def events(rng: np.random.Generator, shop: Catalogue, setting: dict) -> pl.DataFrame:
    users = setting["users"]
    leaf_UI, weight_UI = _taste(rng, shop, users)
    liking_US = rng.standard_normal((users, STYLES), dtype=np.float32)

    # Sessions: activity is heavy-tailed; an episode of interest lasts until a session draws its interest anew.
    count_U = 1 + rng.poisson(rng.gamma(SPREAD, (setting["sessions"] - 1) / SPREAD, users))
    user_S = np.repeat(np.arange(users), count_U)
    anew_S = _first(user_S) | (rng.random(len(user_S)) >= PERSISTENCE)
    interest_S = (rng.random(len(user_S))[:, None] > np.cumsum(weight_UI, 1)[user_S, :-1]).sum(1)
    explore_S = rng.random(len(user_S)) < EXPLORE
    leaf_S = np.where(explore_S, _leaves(rng, shop, len(user_S)), leaf_UI[user_S, interest_S])[
        _last_true(anew_S)
    ]
    weight_S = np.where(explore_S, EXPLORE, weight_UI[user_S, interest_S])[_last_true(anew_S)]

    # Views: a walk through the leaf's latent order. Steps add up: a place is its walk's start plus a difference of running sums.
    length_S = np.minimum(rng.geometric(1 / setting["session_length"], len(user_S)), 500)
    session = np.repeat(np.arange(len(user_S)), length_S)
    opens = _first(session)
    user, leaf = user_S[session], leaf_S[session]
    fresh = (opens & anew_S[session]) | (rng.random(len(session)) < JUMP)
    rank = ((shop.size[leaf] + 1) ** rng.random(len(session))).astype(
        np.int64
    ) - 1  # log-uniform: Zipf with exponent 1
    rank = np.minimum(rank, shop.size[leaf] - 1)
    walk = np.cumsum(rng.choice(np.array(STEPS), len(session), p=STEP_CHANCE))
    since = _last_true(fresh)
    place = (shop.popular[shop.start[leaf] + rank][since] + walk - walk[since]) % shop.size[leaf]
    item = shop.start[leaf] + place

    affinity = (
        CATEGORY_PULL * np.log(np.maximum(weight_S[session], EXPLORE))
        + STYLE_PULL * liking_US[user, shop.style[item]]
    )
    affinity += LAST_PULL * np.append(opens[1:], True)
    cart = np.flatnonzero(_convert(rng, affinity, setting["cart_rate"]))
    bought = cart[_convert(rng, affinity[cart], setting["purchase_rate"])]

    time = _view_times(rng, user, user_S, opens)
    # Views are at least 20 s apart, so that cart and purchase fall before the next view.
    rows = {
        "view": (np.arange(len(time)), time),
        "addtocart": (cart, time[cart] + rng.integers(3_000, 9_000, len(cart))),
        "transaction": (bought, time[bought] + rng.integers(9_000, 19_000, len(bought))),
    }
    order_S = (
        np.cumsum(np.bincount(session[bought], minlength=len(user_S)) > 0) - 1
    )  # one order per session that buys
    return (
        pl.concat(
            [
                pl.DataFrame(
                    {"timestamp": when, "visitorid": user[at], "itemid": shop.item_id[item[at]]}
                ).with_columns(
                    pl.lit(event).alias("event"),
                    pl.col("timestamp") - (pl.col("timestamp") - GRID[1]) % GRID[0],
                    pl.Series(
                        "transactionid",
                        order_S[session[at]] if event == "transaction" else [None] * len(at),
                        dtype=pl.Int64,
                    ),
                )
                for event, (at, when) in rows.items()
            ]
        )
        .sort("timestamp", maintain_order=True)
        .select("timestamp", "visitorid", "event", "itemid", "transactionid")
    )


def _convert(rng: np.random.Generator, affinity: np.ndarray, rate: float) -> np.ndarray:
    """Who converts: a logistic function of affinity, shifted until the mean probability is ``rate``."""
    sample = affinity[:: len(affinity) // 100_000 + 1]
    low, high = -50.0, 50.0
    for _ in range(40):  # bisection
        middle = (low + high) / 2
        low, high = (
            (middle, high)
            if sample.size and _sigmoid(sample + middle).mean() < rate
            else (low, middle)
        )
    return rng.random(len(affinity)) < _sigmoid(affinity + low)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _view_times(
    rng: np.random.Generator, user: np.ndarray, user_S: np.ndarray, opens: np.ndarray
) -> np.ndarray:
    """Milliseconds of every view: sessions lie at least 30 minutes apart, at random in the window."""
    users = user_S[-1] + 1
    gap = np.where(opens, 30 * MINUTE, 20_000 + rng.exponential(MINUTE, len(user)))
    room_U = END - START - 30 * MINUTE - np.bincount(user, gap)
    if room_U.min() < 0:
        raise RecexpError(
            "simulated shop: a user's sessions do not fit into 138 days: lower sessions or session_length"
        )
    share_S = rng.standard_exponential(len(user_S))
    gap[opens] += (room_U / (np.bincount(user_S, share_S) + rng.standard_exponential(users)))[
        user_S
    ] * share_S
    elapsed = np.cumsum(gap.astype(np.int64))
    first = np.flatnonzero(_first(user))
    before_U = np.concatenate([[0], elapsed[first[1:] - 1]])
    return START + elapsed - before_U[user]


def properties(rng: np.random.Generator, shop: Catalogue) -> pl.DataFrame:
    """Rows of all item properties in random order. Readable: available, and categoryid (where it moves, true in the end)."""
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
        return pl.DataFrame(
            {
                "timestamp": SNAPSHOT + WEEK * week,
                "itemid": shop.item_id[item],
                "property": pl.repeat(property, len(item), eager=True),
                "value": pl.Series(value).cast(pl.String),
            }
        )

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
    table = pl.DataFrame(
        {
            "categoryid": shop.category_id,
            "parentid": shop.category_id[shop.parent],
            "root": shop.parent < 0,
        }
    )
    parent = pl.when(~pl.col("root")).then("parentid").alias("parentid")
    return table.select("categoryid", parent).sort("categoryid")

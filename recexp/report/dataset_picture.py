"""One picture of data sets: lengths of users, popularity of items, events over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from numpy.typing import NDArray

from recexp.data.store import Store
from recexp.logs import printable
from recexp.report.dataset_table import END_OF_NUMBERS, MILLISECONDS_PER_DAY
from recexp.report.figures import COLORS, STYLE, Picture, as_picture

N_BINS = 60  # of the time axis

Numbers = NDArray[Any]


def dataset_picture(stores: Sequence[Store], names: Sequence[str]) -> Picture:
    """Three charts, a line per data set.

    - the share of users with at least so many events;
    - events of each item, items by popularity;
    - events per day, against the date or, of several data sets, the days since their first event.
      Without it where no data set has dates.

    Lengths and popularity are of all events. The third chart has the events that training,
    validation and test use: without merged and purged ones.
    """
    has_dates = [int(store.past.time.max()) >= END_OF_NUMBERS for store in stores]
    n_charts = 3 if any(has_dates) else 2
    told = []
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * n_charts, 3.2), layout="constrained")
        axes: list[Axes] = list(figure.subplots(1, n_charts))
        for n, (store, name) in enumerate(zip(stores, names, strict=True)):
            color = COLORS[n % len(COLORS)]
            length, share = lengths(store)
            label = printable(name).lstrip("_")  # matplotlib hides names that begin with it
            axes[0].step(length, share, where="post", color=color, label=label)
            count = popularity(store)
            axes[1].plot(np.arange(1, len(count) + 1), count, color=color)
            told.append(
                f"{name}: users have up to {length[-1]:,.0f} events, items up to {count[0]:,.0f}"
            )
            if has_dates[n]:
                _draw_times(axes[2], store, color, as_dates=len(stores) == 1)
        _label(axes[0], "events of a user", "share of users")
        _label(axes[1], "item, by popularity", "events")
        for ax in axes:
            ax.grid(alpha=0.25, linewidth=0.6)
        figure.legend(loc="outside lower center", ncols=4, frameon=False)
        return as_picture(figure, "data sets", "Data sets", f"{'; '.join(told)}.")


def _label(ax: Axes, x_label: str, y_label: str) -> None:
    """Texts and logarithmic scales. Ticks are plain numbers: texts are not parsed as math."""
    ax.set(xscale="log", yscale="log", xlabel=x_label, ylabel=y_label)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}")
        axis.set_minor_formatter(NullFormatter())


def _draw_times(ax: Axes, store: Store, color: str, *, as_dates: bool) -> None:
    """Events per day; of several data sets on a logarithmic scale, for their sizes differ."""
    middle, per_day = events_over_time(store)
    if as_dates:
        ax.step(middle.astype("datetime64[ms]"), per_day, where="mid", color=color)
        ax.set(xlabel="time", ylabel="events per day", ylim=(0, None))
        ax.tick_params(axis="x", rotation=30)
        return
    days = (middle - int(store.past.time.min())) / MILLISECONDS_PER_DAY
    ax.step(days, np.where(per_day > 0, per_day, np.nan), where="mid", color=color)
    _label(ax, "days since the first event", "events per day")
    ax.set(xscale="linear")


def lengths(store: Store) -> tuple[Numbers, Numbers]:
    """Numbers of events, ascending, and the share of users with at least so many."""
    pairs = store.all_pairs
    count_U = np.bincount(
        pairs.user.numpy(), weights=pairs.count.numpy(), minlength=store.schema.n_users
    )
    length, n_users = np.unique(count_U, return_counts=True)
    n_at_least = n_users[::-1].cumsum()[::-1]
    return length, n_at_least / n_users.sum()


def popularity(store: Store) -> Numbers:
    """Events of each item, the most popular one first."""
    pairs = store.all_pairs
    count_V = np.bincount(pairs.item.numpy(), weights=pairs.count.numpy(), minlength=store.schema.V)
    return np.sort(count_V[1:])[::-1]


def events_over_time(store: Store) -> tuple[Numbers, Numbers]:
    """The middles of equal stretches of time in milliseconds, int64, and events per day in each."""
    time = store.past.time.numpy()
    edges = np.linspace(time.min(), time.max() + 1, N_BINS + 1)
    count, _ = np.histogram(time, edges)
    middle = ((edges[1:] + edges[:-1]) / 2).astype(np.int64)
    return middle, count * MILLISECONDS_PER_DAY / (edges[1] - edges[0])

"""What the times of the events are like."""

from __future__ import annotations

from typing import Any

import numpy as np


def time_facts(user_E: np.ndarray, time_E: np.ndarray) -> dict[str, Any]:
    """The first and the last time in milliseconds, and the share of events that share their time.

    user_E, time_E: of all events, sorted by user and time. "tied" are events with another event of
    their user at the same time.
    """
    is_tied = (np.diff(user_E) == 0) & (np.diff(time_E) == 0)  # with the next event
    n_tied = int((np.append(is_tied, False) | np.append(False, is_tied)).sum())
    return {
        "first": int(time_E.min()),
        "last": int(time_E.max()),
        "tied": n_tied / len(time_E),
    }

"""The simulated shop: written on first use, then read as RetailRocket's raw files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from recexp.data.dataset import BadRows
from recexp.data.readers import Raw, retailrocket
from recexp.data.simulation.simulator import VERSION, Count, Mean, Rate, Seed, simulate


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: BadRows = "error",
    users: Count,
    items: Count,
    categories: Count,
    sessions: Mean,
    session_length: Mean,
    cart_rate: Rate,
    purchase_rate: Rate,
    seed: Seed,
) -> Raw:
    """Simulate the shop of these settings unless ``raw_dir`` holds it, and read it.

    The options are those of ``simulation.simulator.simulate``. Every setting has a folder of its
    own under ``raw_dir``. Several processes may ask for the same one at once.

    Raises:
        RecexpError: a setting is out of range, or as the RetailRocket reader.
    """
    setting = {
        "users": users,
        "items": items,
        "categories": categories,
        "sessions": sessions,
        "session_length": session_length,
        "cart_rate": cart_rate,
        "purchase_rate": purchase_rate,
        "seed": seed,
    }
    content = json.dumps([VERSION, setting], sort_keys=True).encode()
    digest = hashlib.sha256(content).hexdigest()[:10]
    folder = Path(raw_dir) / f"users{users}-items{items}-seed{seed}-{digest}"
    simulate(
        folder,
        users=users,
        items=items,
        categories=categories,
        sessions=sessions,
        session_length=session_length,
        cart_rate=cart_rate,
        purchase_rate=purchase_rate,
        seed=seed,
    )
    return retailrocket.read(folder, on_bad_rows=on_bad_rows)

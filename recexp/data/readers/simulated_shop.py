"""The simulated shop: written on first use, then read as RetailRocket's raw files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from recexp.data.readers import Raw, retailrocket
from recexp.data.simulation.simulator import VERSION, simulate


def read(
    raw_dir: str | Path,
    *,
    on_bad_rows: str = "error",
    users: int,
    items: int,
    categories: int,
    sessions: float,
    session_length: float,
    cart_rate: float,
    purchase_rate: float,
    seed: int,
) -> Raw:
    """Simulate the shop of this setting (see ``recexp.data.simulation.simulator.simulate``) unless ``raw_dir`` holds it, and read it.

    Every setting has a folder of its own under ``raw_dir``. Several processes may ask for the same one at once.
    Raises RecexpError for a setting out of range, and what the RetailRocket reader raises.
    """
    setting = {k: v for k, v in locals().items() if k not in ("raw_dir", "on_bad_rows")}
    digest = hashlib.sha256(json.dumps([VERSION, setting], sort_keys=True).encode()).hexdigest()[
        :10
    ]
    folder = Path(raw_dir) / f"users{users}-items{items}-seed{seed}-{digest}"
    simulate(folder, **setting)
    return retailrocket.read(folder, on_bad_rows=on_bad_rows)

"""Keys that were spelled otherwise in earlier versions.

Command lines and stored runs from before the renaming still work. Fingerprints of prepared data,
and with them protocol ids, are computed from the first spelling, so that they stay the same.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

# Earlier spelling -> spelling now.
RENAMED = {
    "behaviours": "behaviors",
    "value_behaviours": "value_behaviors",
    "n_behaviours": "n_behaviors",
    "neighbours": "neighbors",
    "regularisation": "regularization",
    "num_factors": "n_factors",
    "num_heads": "n_heads",
    "num_horizontal": "n_horizontal",
    "num_inner": "n_inner",
    "num_layers": "n_layers",
    "num_vertical": "n_vertical",
}
# The last part of an override's key, or a key inside a mapping: "model.num_factors=8", "{a: 1}".
_EARLIER = "|".join(sorted(RENAMED, key=len, reverse=True))
_KEY = re.compile(rf"(?<![\w-])({_EARLIER})(?=\s*[:=])")

log = logging.getLogger(__name__)


def with_new_keys(node: Any) -> Any:
    """A stored config, or a part of one, in today's spelling."""
    return _map_keys(node, lambda key: RENAMED.get(key, key))


def with_first_keys(node: Any) -> Any:
    """The node in the spelling that fingerprints are computed from."""
    first = {now: earlier for earlier, now in RENAMED.items()}
    return _map_keys(node, lambda key: first.get(key, key))


def with_new_words(words: Iterable[str]) -> list[str]:
    """Overrides of a command line in today's spelling."""
    # Options such as --help, and words without a value, are not overrides.
    return [_KEY.sub(lambda m: RENAMED[m[1]], word) if "=" in word else word for word in words]


def warn_of_renamed(words: Sequence[str]) -> None:
    """Log one warning that names the keys of the command line that were renamed."""
    found = dict.fromkeys(key for word in words if "=" in word for key in _KEY.findall(word))
    if found:
        pairs = ", ".join(f"{key} is now {RENAMED[key]}" for key in found)
        log.warning("renamed settings: %s", pairs)


def _map_keys(node: Any, new_key: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        return {
            new_key(key) if isinstance(key, str) else key: _map_keys(value, new_key)
            for key, value in node.items()
        }
    if isinstance(node, list):
        return [_map_keys(value, new_key) for value in node]
    return node

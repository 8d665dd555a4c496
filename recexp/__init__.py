"""recexp: train and honestly evaluate recommenders.

The public names are imported on first use, so that ``import recexp`` stays fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recexp.errors import RecexpError as RecexpError
    from recexp.runs.evaluate import evaluate as evaluate
    from recexp.runs.exported import Exported as Exported
    from recexp.runs.exported import load_exported as load_exported
    from recexp.runs.fit import fit as fit
    from recexp.runs.trained import Trained as Trained
    from recexp.runs.trained import load as load

__version__ = "0.1.0"

_PUBLIC = {
    "Exported": "recexp.runs.exported",
    "RecexpError": "recexp.errors",
    "Trained": "recexp.runs.trained",
    "evaluate": "recexp.runs.evaluate",
    "fit": "recexp.runs.fit",
    "load": "recexp.runs.trained",
    "load_exported": "recexp.runs.exported",
}
__all__ = [
    "Exported",
    "RecexpError",
    "Trained",
    "__version__",
    "evaluate",
    "fit",
    "load",
    "load_exported",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)

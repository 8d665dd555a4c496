"""Configuration: composed values are checked and become objects."""

from pathlib import Path

_HERE = Path(__file__).resolve().parent
# In a checkout, conf/ lies beside the package; in an installed wheel, inside it.
CONF = next(p for p in (_HERE.parent / "conf", _HERE.parents[1] / "conf") if p.is_dir())

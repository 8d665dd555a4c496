"""Checkpoints that are whole or absent."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from recexp.files import whole
from recexp.types import RecexpError


class WholeCheckpoints(TorchCheckpointIO):
    """Writes under a temporary name and renames; before reading, compares the archive's checksums.

    Raises RecexpError for a checkpoint that is missing, cut short or altered.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        for left_by_a_killed_process in path.parent.glob(f".{path.name}.*"):  # of the processes of a run only one writes
            left_by_a_killed_process.unlink(missing_ok=True)
        with whole(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        verify_checkpoint(Path(path))
        try:
            return super().load_checkpoint(path, *arguments, **options)
        except Exception as error:  # torch's reader trips over headers that no checksum covers in a dozen ways
            raise RecexpError(f"The checkpoint {path} is damaged, or none of ours: {error}") from error


def verify_checkpoint(path: Path) -> None:
    """Raise RecexpError unless the file is a whole archive whose contents have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise RecexpError(f"There is no checkpoint {path}.") from None
    except Exception as error:  # zipfile's, struct's, zlib's and codecs', according to where the damage is
        raise RecexpError(f"The checkpoint {path} is damaged ({error}): resume from another one.") from error
    if damaged:
        raise RecexpError(f"The checkpoint {path} is damaged (the checksum of {damaged} is wrong): resume from another one.")

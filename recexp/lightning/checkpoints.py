"""Checkpoints that are whole or absent."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from recexp.types import RecexpError


class WholeCheckpoints(TorchCheckpointIO):
    """Writes under a temporary name and renames; before reading, compares the archive's checksums.

    Raises RecexpError for a checkpoint that is missing, cut short or altered.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            super().save_checkpoint(checkpoint, temporary, storage_options)
            os.replace(temporary, path)
        except OSError as error:
            raise RecexpError(f"The checkpoint {path} cannot be written: {error.strerror or error}. What was there before is unharmed.") from error
        finally:
            temporary.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        verify_checkpoint(Path(path))
        return super().load_checkpoint(path, *arguments, **options)


def verify_checkpoint(path: Path) -> None:
    """Raise RecexpError unless the file is a whole archive whose contents have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise RecexpError(f"There is no checkpoint {path}.") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise RecexpError(f"The checkpoint {path} is damaged ({error}): resume from another one.") from error
    if damaged:
        raise RecexpError(f"The checkpoint {path} is damaged (the checksum of {damaged} is wrong): resume from another one.")

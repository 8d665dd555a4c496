"""Checkpoints that are whole or absent."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint as LightningModelCheckpoint

from recexp.errors import RecexpError
from recexp.io import atomic_write


class WholeCheckpoints(TorchCheckpointIO):
    """Writes under a temporary name and renames; before reading, compares the archive's checksums.

    Raises RecexpError for a checkpoint that is missing, cut short or altered.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        for left_by_a_killed_process in path.parent.glob(
            f".{path.name}.*"
        ):  # of the processes of a run only one writes
            left_by_a_killed_process.unlink(missing_ok=True)
        with atomic_write(path) as temporary:
            super().save_checkpoint(checkpoint, temporary, storage_options)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        verify_checkpoint(Path(path))
        try:
            return super().load_checkpoint(path, *arguments, **options)
        except (
            Exception
        ) as error:  # torch's reader trips over headers that no checksum covers in a dozen ways
            raise RecexpError(
                f"The checkpoint {path} is damaged, or none of ours: {error}"
            ) from error


class ModelCheckpoint(LightningModelCheckpoint):
    """Lightning's, which forgets its best value where a run is resumed into another directory.

    This one keeps it; the file itself comes along by ``adopt_best``.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        before, now = state_dict.get("dirpath"), self.dirpath
        if before and now and before != now:

            def moved(path: str) -> str:
                return str(Path(now) / Path(path).name) if path else path

            paths = ("best_model_path", "kth_best_model_path", "last_model_path")
            best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
            state_dict = state_dict | {name: moved(state_dict[name]) for name in paths}
            state_dict |= {"dirpath": now, "best_k_models": best}
        super().load_state_dict(state_dict)


def adopt_best(checkpoint: Path, content: dict[str, Any], folder: Path) -> None:
    """Copy ``best.ckpt`` from beside the checkpoint into ``folder``, where the run goes on.

    content: of the checkpoint. Raises RecexpError where its run had a best epoch whose weights
    are not there: they may be needed at the end.
    """
    best, target = checkpoint.parent / "best.ckpt", folder / "best.ckpt"
    if best.is_file():
        if not (target.exists() and best.samefile(target)):
            verify_checkpoint(best)
            folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(target) as temporary:
                shutil.copyfile(best, temporary)
        return
    states = content.get("callbacks", {}).values()
    if any(state.get("monitor") and state.get("best_k_models") for state in states):
        raise RecexpError(
            f"{best} is missing: it holds the weights of the best epoch before {checkpoint.name}, "
            "and the run cannot go on without it. Keep the two files together."
        )


def verify_checkpoint(path: Path) -> None:
    """Raise RecexpError unless the file is a whole archive whose contents have their checksums."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except FileNotFoundError:
        raise RecexpError(f"There is no checkpoint {path}.") from None
    except (
        Exception
    ) as error:  # zipfile's, struct's, zlib's and codecs', according to where the damage is
        raise RecexpError(
            f"The checkpoint {path} is damaged ({error}): resume from another one."
        ) from error
    if damaged:
        raise RecexpError(
            f"The checkpoint {path} is damaged (the checksum of {damaged} is wrong): resume from another one."
        )

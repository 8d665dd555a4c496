"""Checkpoints: written atomically, verified and read without executing anything of them."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO
from pytorch_lightning.callbacks import ModelCheckpoint as LightningModelCheckpoint
from torch import Tensor, nn

from recexp.errors import RecexpError
from recexp.io import atomic_write

Shapes = dict[str, tuple[int, ...]]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes under a temporary name and renames; before reading, compares the checksums.

    Raises RecexpError for a checkpoint that is missing, cut short or altered.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        path = Path(path)
        # Temporary files of a killed process. Of the processes of a run only one writes.
        for leftover in path.parent.glob(f".{path.name}.*"):
            leftover.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not Lightning's: it goes by way of a file in the system's temporary directory, which may
        # be full, and which then keeps that file. And not torch.save to the file itself: it hides
        # the system's error.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with atomic_write(path) as temporary:
            temporary.write_bytes(content.getbuffer())

    def load_checkpoint(self, path: str | Path, *arguments: Any, **options: Any) -> dict[str, Any]:
        verify_checkpoint(Path(path))
        try:
            return super().load_checkpoint(path, *arguments, **options)
        except Exception as error:  # headers have no checksum; torch fails on them in many ways
            raise RecexpError(
                f"The checkpoint {path} is damaged, or not one of recexp: {error}"
            ) from error


class ModelCheckpoint(LightningModelCheckpoint):
    """Lightning's, but a run resumed into another directory keeps the best value so far.

    ``adopt_best`` copies the file that belongs to it.
    """

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        old_folder = state_dict.get("dirpath")
        new_folder = self.dirpath
        if old_folder and new_folder and old_folder != new_folder:
            state_dict = _moved_paths(state_dict, str(new_folder))
        super().load_state_dict(state_dict)


def _moved_paths(state_dict: dict[str, Any], folder: str) -> dict[str, Any]:
    """The state of a ModelCheckpoint as if its files lay in ``folder``."""

    def moved(path: str) -> str:
        return str(Path(folder) / Path(path).name) if path else path

    names = ("best_model_path", "kth_best_model_path", "last_model_path")
    best = {moved(path): score for path, score in state_dict["best_k_models"].items()}
    paths = {name: moved(state_dict[name]) for name in names}
    return state_dict | paths | {"dirpath": folder, "best_k_models": best}


def best_row(rows: Sequence[Mapping[str, float]], monitor: str) -> Mapping[str, float] | None:
    """The row of best.ckpt's epoch; None where no epoch was validated.

    It is the first with the best value in float32, as Lightning compares.
    """
    scored = [row for row in rows if monitor in row]
    return max(scored, key=lambda row: torch.tensor(row[monitor]), default=None)


def best_beside(checkpoint: Path, content: dict[str, Any]) -> Path | None:
    """``best.ckpt`` beside the checkpoint; None where its run had no best epoch yet.

    content: of the checkpoint. Raises RecexpError where its run had a best epoch whose weights
    are not there or damaged: they may be needed at the end.
    """
    best = checkpoint.parent / "best.ckpt"
    if best.is_file():
        verify_checkpoint(best)
        return best
    states = content.get("callbacks", {}).values()
    if any(state.get("monitor") and state.get("best_k_models") for state in states):
        raise RecexpError(
            f"{best} is missing: it holds the weights of the best epoch before {checkpoint.name}, "
            "and the run cannot go on without it. Keep the two files together."
        )
    return None


def adopt_best(best: Path, folder: Path) -> None:
    """Copy ``best.ckpt`` into ``folder``, where the run goes on, unless it lies there."""
    target = folder / "best.ckpt"
    if target.exists() and best.samefile(target):
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(target) as temporary:
        shutil.copyfile(best, temporary)


def verify_checkpoint(path: Path) -> None:
    """Raise RecexpError unless the file is a complete archive with the right checksums.

    An archive that unfolds to more than its size is refused before anything is unpacked: torch
    stores its entries uncompressed.
    """
    try:
        if not path.is_file() and path.exists():
            raise RecexpError(f"The checkpoint {path} is not a regular file.")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
            if not is_stored or sum(e.file_size for e in entries) > path.stat().st_size:
                raise RecexpError(
                    f"{path} is no checkpoint of recexp: its archive is compressed. Nothing of it "
                    "was unpacked."
                )
            damaged = archive.testzip()
    except RecexpError:
        raise
    except FileNotFoundError:
        raise RecexpError(f"There is no checkpoint {path}.") from None
    except Exception as error:  # of zipfile, struct, zlib or codecs, depending on the damage
        raise RecexpError(
            f"The checkpoint {path} is damaged ({error}): resume from another one."
        ) from error
    if damaged:
        raise RecexpError(
            f"The checkpoint {path} is damaged (the checksum of {damaged} is wrong): resume from "
            "another one."
        )


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of a run: tensors and plain values.

    Raises RecexpError for a damaged file, and for one that would execute code. Nothing of such a
    file is executed.
    """
    verify_checkpoint(path)
    try:
        # Mapped: a process that needs some rows of a table reads no others.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch's reader fails in many ways
        raise RecexpError(
            f"{path} is no checkpoint of recexp: it holds more than tensors and plain values. "
            "Nothing of it was run."
        ) from error
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise RecexpError(f"{path} is no checkpoint of a run: it has no state_dict.")
    return content


def read_matching_checkpoint(
    path: Path, module: nn.Module, fingerprint: str | None = None
) -> dict[str, Any]:
    """The checkpoint's content.

    Raises RecexpError unless its weights are those of the module and, where ``fingerprint`` is
    given, it was trained on the data of this fingerprint.
    """
    content = read_checkpoint(path)
    saved = _shapes(content["state_dict"])
    expected = _shapes(module.state_dict())
    names = sorted(saved.keys() | expected.keys())
    differing = [name for name in names if saved.get(name) != expected.get(name)]
    if differing:
        name = differing[0]
        raise RecexpError(
            f"{path} does not fit this model and data: {name} {_says(saved, name)} in the "
            f"checkpoint and {_says(expected, name)} here ({len(differing)} weights differ). Use "
            "the model=, model.* and dataset= settings that it was trained with; its run's "
            "config.yaml has them."
        )
    trained_on = content.get("data_fingerprint")
    if fingerprint is not None and trained_on is not None and trained_on != fingerprint:
        raise RecexpError(
            f"{path} was trained on other data (fingerprint {trained_on}, here {fingerprint}): "
            "check dataset.* and protocol.split.*."
        )
    return content


def _shapes(state_dict: dict[str, Any]) -> Shapes:
    return {
        name: tuple(value.shape) for name, value in state_dict.items() if isinstance(value, Tensor)
    }


def _says(shapes: Shapes, name: str) -> str:
    return f"is {shapes[name]}" if name in shapes else "is not there"

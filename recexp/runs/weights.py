"""Weights of an exported model, put back into a trained one."""

from __future__ import annotations

from pathlib import Path

from recexp.contracts import Recommender
from recexp.errors import RecexpError
from recexp.runs.exported import check_format
from recexp.runs.result import RunResult


def read_weights(path: Path, model: Recommender, result: RunResult) -> None:
    """Copy the weights of a safetensors file into the model.

    Raises RecexpError where the file cannot be read, or its weights are of another model or of data
    other than the result's.
    """
    check_format("safetensors")
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            facts = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise RecexpError(f"{path} cannot be read as safetensors: {error}") from error
    own = model.state_dict()
    own_shapes = {name: x.shape for name, x in own.items()}
    found_shapes = {name: x.shape for name, x in found.items()}
    names = sorted(own.keys() | found.keys())
    differing = [name for name in names if own_shapes.get(name) != found_shapes.get(name)]
    if differing:
        raise RecexpError(
            f"{path} does not fit this {type(model).__name__}: {len(differing)} weights differ in "
            f"name or shape, such as {differing[0]}."
        )
    if facts.get("fingerprint") != str(result.data.fingerprint):
        raise RecexpError(
            f"{path} was trained on other data, whose rows are of other items: fingerprint "
            f"{facts.get('fingerprint')}, here {result.data.fingerprint}."
        )
    model.load_state_dict(found)

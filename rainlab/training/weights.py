"""Weights of finished trainings: made here (``runs/``), or shipped with the package as fp16 with checksums."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from torch import Tensor

from rainlab import runs
from rainlab.files import atomic_path, check_digest, digest
from rainlab.method.checkpoint import read_tensors, write_tensors

NAME = "weights.safetensors"  # in a run's folder; written last, it says that the training is finished
SHIPPED = Path(__file__).parents[1] / "weights"  # of final runs, part of the package
SUMS = "SHA256SUMS"  # their checksums, in the format of `sha256sum --check`


def weights_file(run_id: str) -> Path:
    """Where the weights of a training run lie: in ``runs/``, or shipped with the package.

    Raises:
        FileNotFoundError: neither, naming the command that makes them.
    """
    for path in (runs.folder() / run_id / NAME, SHIPPED / f"{run_id}.safetensors"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"weights of {run_id}: not in {runs.folder().name}/ and not shipped; train a preset's with"
        " `make train PRESET=…`, or name a preset whose weights are shipped: small, tiny, face, street"
    )


def weights_of(run_id: str) -> dict[str, Tensor]:
    """fp32 tensors by full parameter name, as far as that run trained them.

    Raises:
        FileNotFoundError: as in :func:`weights_file`. ValueError: the file is damaged, naming it and what to do.
    """
    path = weights_file(run_id)
    if path.parent == SHIPPED:
        check_digest(path, _sums().get(path.name, f"one in {SUMS}"), "get it again: git checkout")
    try:
        return {name: tensor.float() for name, tensor in read_tensors(path)[0].items()}
    except ValueError as error:
        raise ValueError(f"weights of {run_id}: {error}, or delete its run and call `make train`") from error


def ship(run_id: str, without: Collection[str] = ()) -> Path:
    """Copy a run's weights into the package as fp16, and note their checksum; returns the file.

    ``without``: names to leave out, of parameters that a later stage trained again: inference does without them.
    """
    path = SHIPPED / f"{run_id}.safetensors"
    kept = {name: tensor for name, tensor in weights_of(run_id).items() if name not in without}
    write_half(path, kept, {"run": run_id})
    sums = {name: sha for name, sha in _sums().items() if (SHIPPED / name).exists()} | {path.name: digest(path)}
    with atomic_path(SHIPPED / SUMS) as temporary:
        temporary.write_text("".join(f"{sha}  {name}\n" for name, sha in sorted(sums.items())), "utf-8")
    return path


def write_half(path: Path, tensors: dict[str, Tensor], note: dict[str, str]) -> None:
    """Write tensors as fp16 with a note, atomically."""
    write_tensors(path, {name: tensor.half() for name, tensor in tensors.items()}, note)


def _sums() -> dict[str, str]:
    """File name -> sha256 of what is shipped."""
    file = SHIPPED / SUMS
    lines = file.read_text("utf-8").splitlines() if file.is_file() else []
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}

"""Decoded images on disk, memory-mapped read-only, and never used where a bit of them is another."""

import os
import shutil
import uuid
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxmargin.lab import manifests

__all__ = ["SPLITS", "Split", "fill", "read", "root"]

SPLITS = ("train", "test")


class Split(NamedTuple):
    """One half of a data set, in the order of the official files."""

    images: np.ndarray  # uint8 [n, h, w, c]
    labels: np.ndarray  # int32 [n]


def root(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The folder of all caches."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxmargin"
    return Path(cache_dir or os.environ.get("JAXMARGIN_CACHE") or default).expanduser()


def read(folder: Path) -> dict[str, Split] | None:
    """The memory-mapped arrays; None where there are none, or they are damaged (which a warning says)."""
    if not folder.is_dir():
        return None
    try:
        manifests.check_folder(folder)
        return {split: Split(*(_open(folder / f"{split}_{kind}.npy") for kind in Split._fields)) for split in SPLITS}
    except manifests.DamagedError as error:
        why = error.why
    except (OSError, ValueError) as error:
        why = manifests.brief(error)
    warnings.warn(f"cache_dir: {folder} is damaged ({why}): decoding again", stacklevel=3)
    return None


def fill(folder: Path, splits: dict[str, Split]) -> dict[str, Split]:
    """Writes beside the folder and renames, so that a reader sees all or nothing; else keeps the arrays in memory."""
    scratch = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        scratch.mkdir(parents=True)
        for split, (images, labels) in splits.items():
            np.save(scratch / f"{split}_images.npy", images, allow_pickle=False)
            np.save(scratch / f"{split}_labels.npy", labels, allow_pickle=False)
        manifests.seal(scratch)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one
        scratch.replace(folder)
    except OSError as error:
        if not folder.is_dir():  # another process may have been faster
            remedy = "pass a writable cache_dir or set JAXMARGIN_CACHE, or each start decodes again"
            warnings.warn(f"cache_dir: {folder} cannot be written ({manifests.brief(error)}): {remedy}", stacklevel=3)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return read(folder) or splits


def _open(path: Path) -> np.ndarray:
    array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    return array

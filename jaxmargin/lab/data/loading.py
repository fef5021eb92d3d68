"""Data sets as whole uint8 arrays: digits (inside scikit-learn), MNIST and CIFAR-10 (through TFDS, without TensorFlow).

MNIST and CIFAR-10 are looked for in ``data_dir``, else ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``:

1. ``mnist/<version>``, a standard copy prepared by TFDS as array_record (a tfrecord copy needs TensorFlow: skipped);
2. ``jaxmargin_mnist/<version>``, a copy prepared by ``jaxmargin.lab.builders``;
3. where there is neither, the official files are downloaded, checked and prepared as 2, unless ``download=False``.

Images come in the order of the official files, whichever copy they are read from: TFDS stores a standard copy shuffled,
so an index set (``margin_points``, a validation split) would otherwise name other images on another machine.

Decoded arrays are cached under ``cache_dir``, else ``$JAXMARGIN_CACHE``, else ``$XDG_CACHE_HOME/jaxmargin``, else
``~/.cache/jaxmargin``, and memory-mapped read-only from then on. The cache is keyed by name, version, metadata and
shard sizes, and checked by SHA-256 at each start: a damaged one is decoded again, one that cannot be written costs a
warning and the time to decode.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from jaxmargin import checks
from jaxmargin.lab.data import cache
from jaxmargin.lab.data.cache import SPLITS, Split
from jaxmargin.lab.manifests import brief

__all__ = ["Dataset", "Split", "load", "margin_points", "scaled", "spread_points"]

Pixels = TypeVar("Pixels", np.ndarray, jax.Array)


class Dataset(NamedTuple):
    """A data set in memory (or memory-mapped, read-only)."""

    name: str
    train: Split
    test: Split
    num_classes: int
    scale: float  # the largest pixel value

    def inputs(self, split: str, chosen: slice | np.ndarray = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """What a classifier reads, and the classes.

        Args:
          split: "train" or "test".
          chosen: which of its examples.

        Returns:
          float32 inputs [n, h, w, c] in [0, 1], labels [n].
        """
        images, labels = getattr(self, split)
        return scaled(images[chosen], self.scale), np.asarray(labels[chosen])


def scaled(images: Pixels, scale: float, dtype: Any = np.float32) -> Pixels:
    """Pixels as what a network reads: the one place that scales images, on the host or inside of jit.

    Args:
      images: uint8 [..., h, w, c].
      scale: the largest pixel value.
      dtype: of the result.

    Returns:
      Of the same shape, in [0, 1].

    Example:
      >>> scaled(np.array([0, 4, 16], np.uint8), 16.0)
      array([0.  , 0.25, 1.  ], dtype=float32)
    """
    return images.astype(dtype) / scale


_SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
_REMEDY = "delete that folder to prepare it anew, or pass another data_dir (--data-dir DIR)"
_LAYOUT = "2"  # of the cache: raise it when what is stored changes


class _Prepared(NamedTuple):
    folder: Path  # <data_dir>/<name>/<version>
    shards: dict[str, list[Path]]
    sizes: dict[str, int]
    shuffled: bool
    fingerprint: str


def load(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    download: bool = True,
) -> Dataset:
    """Loads a data set whole, as unsigned bytes.

    Args:
      name: ``digits`` (1,437 train and 360 test images, 8 x 8 x 1, values 0 to 16, no network), ``mnist``
        (28 x 28 x 1) or ``cifar10`` (32 x 32 x 3).
      data_dir: folder that holds, or shall hold, prepared TFDS data sets; the default is in the module's docstring.
      cache_dir: folder for decoded arrays; likewise.
      download: whether a data set that is not in ``data_dir`` may be downloaded.

    Returns:
      Dataset with uint8 images [n, h, w, c] and int32 labels [n], as many as the prepared copy has.

    Raises:
      ValueError: an unknown name, or data that are damaged.
      FileNotFoundError: data, or a part of them, are missing and could not be downloaded.

    Reference:
      Wu and Yu 2019, appendix A; https://www.tensorflow.org/datasets/data_source.

    Example:
      >>> digits = load("digits")
      >>> digits.train.images.shape, digits.test.images.shape, digits.scale
      ((1437, 8, 8, 1), (360, 8, 8, 1), 16.0)
    """
    checks.one_of("name", name, ("digits", *_SHAPES))
    if name == "digits":
        return _load_digits()
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    prepared = _find(name, root) or _prepare(name, root, download)
    folder = cache.root(cache_dir) / prepared.folder.parent.name / f"{prepared.folder.name}-{prepared.fingerprint}"
    splits = cache.read(folder) or cache.fill(folder, _decode(name, prepared))
    return Dataset(name, splits["train"], splits["test"], num_classes=10, scale=255.0)


def spread_points(n: int, size: int) -> np.ndarray:
    """Which examples of a split stand for all of them: evenly spread, since the first ones need not be like the rest.

    Of MNIST's test images the first thousand are harder: of a standard MLP's, 43 % withstand an attack of l2 radius 1,
    of every tenth image 52 %.

    Args:
      n: number of examples in the split.
      size: how many to take; n where there are not so many.

    Returns:
      int64 indices, rising.

    Raises:
      ValueError: n or size is not a positive whole number.

    Example:
      >>> spread_points(10, 4).tolist()
      [0, 2, 5, 7]
    """
    checks.whole("n", n)
    checks.whole("size", size)
    size = min(n, size)
    return np.arange(size) * n // size


def margin_points(n: int, size: int, seed: int = 0) -> np.ndarray:
    """The paper's index sets: which examples of a split are measured, drawn without replacement.

    Equal to ``np.random.seed(seed); np.random.choice(n, size, replace=False)``, without touching the global state.

    Args:
      n: number of examples in the split.
      size: how many to draw, at most n.
      seed: of numpy's RandomState; the paper's is 0.

    Returns:
      int64 indices [size], all different, in drawn order.

    Raises:
      ValueError: n or size is not a positive whole number, or size exceeds n.

    Reference:
      Wu and Yu 2019, appendix A (500 points of a split).

    Example:
      >>> margin_points(10_000, 500)[:4].tolist()
      [9394, 898, 2398, 5906]
    """
    checks.whole("n", n)
    checks.whole("size", size)
    if size > n:
        raise ValueError(f"size={size} exceeds the n={n} examples of the split: pass a size of at most {n}")
    return np.random.RandomState(seed).choice(n, size, replace=False)


def _load_digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    images, labels = source.images[..., None].astype(np.uint8), source.target.astype(np.int32)
    parts = train_test_split(images, labels, test_size=360, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = parts
    return Dataset("digits", Split(train_images, train_labels), Split(test_images, test_labels), 10, 16.0)


# Finding and preparing -----------------------------------------------------------------------------------------------


def _find(name: str, root: Path) -> _Prepared | None:
    """The newest array_record copy below root, a standard one before one of ours."""
    for candidate in (name, f"jaxmargin_{name}"):
        paths = [path for path in (root / candidate).glob("*.*.*") if path.is_dir()]
        versions = [path for path in paths if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
        for folder in sorted(versions, key=lambda path: [int(part) for part in path.name.split(".")], reverse=True):
            if prepared := _inspect(folder):
                return prepared
    return None


def _inspect(folder: Path) -> _Prepared | None:
    """What the metadata declare, and whether all shards are there; None for a file format that needs TensorFlow."""
    try:
        text = (folder / "dataset_info.json").read_text()
        info = json.loads(text)
        if info.get("fileFormat") != "array_record":
            return None
        lengths = {split["name"]: [int(length) for length in split["shardLengths"]] for split in info["splits"]}
        shards = {split: sorted(folder.glob(f"*-{split}.array_record-*")) for split in SPLITS}
        missing = [split for split in SPLITS if len(shards[split]) != len(lengths[split]) or not shards[split]]
    except FileNotFoundError:
        raise FileNotFoundError(f"data_dir: {folder} is incomplete, dataset_info.json is missing: {_REMEDY}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"data_dir: {folder}/dataset_info.json is damaged: {_REMEDY}") from None
    if missing:
        raise FileNotFoundError(f"data_dir: {folder} is incomplete, shards of {missing[0]} are missing: {_REMEDY}")
    stamp = [_LAYOUT, text, *(f"{path.name} {path.stat().st_size}" for split in SPLITS for path in shards[split])]
    fingerprint = hashlib.sha256("\n".join(stamp).encode()).hexdigest()[:12]
    sizes = {split: sum(lengths[split]) for split in SPLITS}
    return _Prepared(folder, shards, sizes, not info.get("disableShuffling", False), fingerprint)


def _prepare(name: str, root: Path, download: bool) -> _Prepared:
    missing = f"{name} is not in {root} as array_record"
    remedy = f"pass data_dir (--data-dir DIR, or set TFDS_DATA_DIR), a folder that holds {name} prepared by TFDS"
    if not download:
        raise FileNotFoundError(f"{missing}: pass download=True, or {remedy}")
    from jaxmargin.lab.data import builders

    try:
        builders.prepare(name, root)
    except (ImportError, ValueError):
        raise
    except Exception as error:  # requests, urllib, TFDS and the file system each raise their own kinds
        if prepared := _find(name, root):  # another process was faster
            return prepared
        what = f"{missing} and could not be downloaded ({brief(error)})"
        raise FileNotFoundError(f"{what}: connect to the network, or {remedy}") from None
    prepared = _find(name, root)
    assert prepared is not None, f"{name} was prepared in {root} but is not found there"
    return prepared


# Decoding ------------------------------------------------------------------------------------------------------------


def _decode(name: str, prepared: _Prepared) -> dict[str, Split]:
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder_from_directory(prepared.folder)
        return {split: _decode_split(builder, name, split, prepared) for split in SPLITS}
    except ImportError:
        raise
    except Exception as error:  # array_record, protobuf, pillow and TFDS each raise their own kinds
        raise ValueError(f"data_dir: {prepared.folder} cannot be read ({brief(error)}): {_REMEDY}") from None


def _decode_split(builder: Any, name: str, split: str, prepared: _Prepared) -> Split:
    import PIL.Image
    import tensorflow_datasets as tfds
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from tqdm import tqdm

    n, held = prepared.sizes[split], len(ArrayRecordDataSource(prepared.shards[split]))
    if held != n:
        raise ValueError(f"{split} declares {n} examples and holds {held}")
    source = builder.as_data_source(split=split, decoders={"image": tfds.decode.SkipDecoding()})
    order = _official_index(split, n) if prepared.shuffled else range(n)
    images, labels = np.empty((n, *_SHAPES[name]), np.uint8), np.empty(n, np.int32)
    with tqdm(total=n, desc=f"decoding {name} {split}", unit=" images") as progress:
        for start in range(0, n, 1000):  # records fetched by the thousand come five times faster than one by one
            rows = range(start, min(start + 1000, n))
            for i, record in zip(rows, source.__getitems__(list(rows)), strict=True):
                pixels = np.asarray(PIL.Image.open(io.BytesIO(record["image"])))
                images[order[i]], labels[order[i]] = pixels.reshape(_SHAPES[name]), record["label"]
            progress.update(len(rows))
    return Split(images, labels)


def _official_index(split: str, n: int) -> Sequence[int]:
    """Where the j-th stored record of a standard copy stood in the official files.

    TFDS sorts by the MD5 of the split's name and the example's key; both data sets have the keys 0, 1, ..., n - 1.
    """
    return sorted(range(n), key=lambda i: hashlib.md5(f"{split}{i}".encode(), usedforsecurity=False).digest())

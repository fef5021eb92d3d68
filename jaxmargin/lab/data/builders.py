"""TFDS builders that prepare MNIST and CIFAR-10 from their official files without TensorFlow.

TFDS's own ``mnist`` and ``cifar10`` builders encode images and open files with TensorFlow. These encode with pillow,
read IDX and CIFAR's binary records with numpy, and leave the rest to TFDS: downloads, checksums, array_record shards,
metadata. They write under names of their own, ``<data_dir>/jaxmargin_mnist`` and ``<data_dir>/jaxmargin_cifar10``, so
that a standard copy is neither overwritten nor mistaken for ours; records keep the order of the official files.

Reference: https://www.tensorflow.org/datasets/add_dataset; A. Krizhevsky, "Learning multiple layers of features from
tiny images", 2009 (binary version); Y. LeCun et al., the MNIST database (IDX format).
"""

import contextlib
import gzip
import math
import tarfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError

__all__ = ["BUILDERS", "JaxmarginCifar10", "JaxmarginMnist", "parse_cifar", "parse_idx", "prepare"]


def parse_idx(raw: bytes) -> np.ndarray:
    """The array in an unpacked IDX file of unsigned bytes.

    Args:
      raw: the file: two zero bytes, type 8, the number of axes, each length as a big-endian uint32, then the values.

    Returns:
      uint8 array, [n] for labels and [n, h, w] for images.

    Raises:
      ValueError: not an IDX file of bytes, or not as long as its header says.

    Example:
      >>> parse_idx(bytes([0, 0, 8, 1, 0, 0, 0, 3, 7, 2, 1]))
      array([7, 2, 1], dtype=uint8)
    """
    if len(raw) < 4 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"raw starts with {raw[:4]!r}, not with the IDX header of unsigned bytes: download it again")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    values = np.frombuffer(raw[start:], np.uint8)
    if len(raw) < start or values.size != math.prod(shape):
        raise ValueError(f"raw holds {values.size} values where its IDX header says {shape}: download it again")
    return values.reshape(shape)


def parse_cifar(raw: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels in one batch of CIFAR-10's binary version.

    Args:
      raw: the file: rows of 3,073 bytes, a label and then 32 x 32 red, green and blue values.

    Returns:
      uint8 images [n, 32, 32, 3] and uint8 labels [n].

    Raises:
      ValueError: not a whole number of rows, or a label above 9.
    """
    if not raw or len(raw) % 3073:
        raise ValueError(f"raw holds {len(raw)} bytes, not a multiple of CIFAR-10's 3073-byte rows: download it again")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, 3073)
    labels, channels = rows[:, 0], rows[:, 1:].reshape(-1, 3, 32, 32)
    if labels.max() > 9:
        raise ValueError(f"raw holds label {labels.max()}, CIFAR-10 has 0 to 9: download it again")
    return channels.transpose(0, 2, 3, 1), labels


class JaxmarginMnist(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg, misc]
    """MNIST from its four IDX files."""

    VERSION = tfds.core.Version("1.0.0")
    URLS = tuple(
        f"https://storage.googleapis.com/cvdf-datasets/mnist/{split}-{kind}-ubyte.gz"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )

    def _info(self) -> Any:
        return _info(self, (28, 28, 1))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        files = dl_manager.download(list(self.URLS))
        return {"train": self._generate_examples(*files[:2]), "test": self._generate_examples(*files[2:])}

    def _generate_examples(self, images_path: Any, labels_path: Any) -> Iterator[tuple[int, dict[str, Any]]]:
        images, labels = (parse_idx(gzip.decompress(Path(path).read_bytes())) for path in (images_path, labels_path))
        if len(images) != len(labels):
            raise ValueError(f"{images_path} holds {len(images)} images but {labels_path} {len(labels)} labels")
        yield from enumerate(_records(images, labels))


class JaxmarginCifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[misc]
    """CIFAR-10 from its binary version (the other version is made of pickles)."""

    VERSION = tfds.core.Version("1.0.0")
    URLS = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)

    def _info(self) -> Any:
        return _info(self, (32, 32, 3))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        (archive,) = dl_manager.download(list(self.URLS))
        train = [f"data_batch_{i}.bin" for i in range(1, 6)]
        return {
            "train": self._generate_examples(archive, train),
            "test": self._generate_examples(archive, ["test_batch.bin"]),
        }

    def _generate_examples(self, archive: Any, members: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        with tarfile.open(archive, "r:gz") as tar:
            batches = [tar.extractfile(f"cifar-10-batches-bin/{member}").read() for member in members]  # type: ignore
        images, labels = parse_cifar(b"".join(batches))
        yield from enumerate(_records(images, labels))


BUILDERS: dict[str, Any] = {"mnist": JaxmarginMnist, "cifar10": JaxmarginCifar10}


def _info(builder: Any, shape: tuple[int, int, int]) -> Any:
    image, label = tfds.features.Image(shape=shape, encoding_format="png"), tfds.features.ClassLabel(num_classes=10)
    features = tfds.features.FeaturesDict({"image": image, "label": label})
    return tfds.core.DatasetInfo(builder=builder, features=features, disable_shuffling=True)


def _records(images: np.ndarray, labels: np.ndarray) -> Iterator[dict[str, Any]]:
    """Given a pillow image, TFDS's Image feature encodes without TensorFlow; given an array it would not."""
    for image, label in zip(images, labels, strict=True):
        pixels = np.ascontiguousarray(image)  # [h, w] or [h, w, 3]
        yield {"image": PIL.Image.fromarray(pixels), "label": int(label)}


def prepare(name: str, data_dir: Path) -> None:
    """Downloads the official files and writes ``<data_dir>/jaxmargin_<name>/<version>`` in array_record format.

    TFDS keeps downloads in ``<data_dir>/downloads`` and checks size and SHA-256 against the values it has registered.
    Official files laid in ``<data_dir>/downloads/manual`` are used in place of the network (and checked as well).

    Args:
      name: a key of ``BUILDERS``.
      data_dir: the folder of prepared data sets.

    Raises:
      ValueError: a file does not match its registered checksum, or cannot be parsed.
      OSError: no network, or data_dir cannot be written.
    """
    downloads = data_dir / "downloads"
    builder = BUILDERS[name](data_dir=data_dir)
    manual = [downloads / "manual" / url.rpartition("/")[2] for url in builder.URLS]
    if not any(path.exists() for path in manual) and not any((downloads / builder.name).rglob("*.INFO")):
        _check_reachable(builder.URLS[0])
    config = tfds.download.DownloadConfig(force_checksums_validation=True, try_download_gcs=False)
    try:
        builder.download_and_prepare(download_dir=downloads, download_config=config, file_format="array_record")
    except NonMatchingChecksumError as error:
        what = str(error).partition("\n")[0].rstrip(":")
        raise ValueError(f"data_dir: {what}: delete {downloads} and try again") from None


def _check_reachable(url: str) -> None:
    """Fails within seconds where there is no network; TFDS's ten retries take three minutes."""
    with contextlib.suppress(urllib.error.HTTPError):  # a server that answers is reachable; TFDS reports what it says
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=15).close()

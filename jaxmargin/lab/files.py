"""Results as files: records (.jsonl), cards (.json) and arrays (.npz).

Each is written whole or not at all and entered in the manifest of its folder; what is not as it was written is refused.
"""

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn, TypeVar

import jax
import numpy as np

from jaxmargin.lab.manifests import DamagedError, brief, read, write, write_bytes

__all__ = [
    "FORMATS", "Arrays", "DamagedError", "Record", "append_record", "copy", "plain", "read_arrays", "read_json",
    "read_records", "write_arrays", "write_bytes", "write_json", "write_records",
]  # fmt: skip

Arrays = dict[str, np.ndarray]
Record = dict[str, Any]
Content = TypeVar("Content")

FORMATS = (".json", ".jsonl", ".npz")  # what is entered in manifests
_LARGEST_TEXT, _LARGEST_ARRAYS = 2**26, 2**32  # bytes, unpacked


def copy(path: Path, to: Path) -> Path:
    """Copies a file that is intact.

    Args:
      path: the file.
      to: where; entered in the manifest there.

    Returns:
      to.

    Raises:
      DamagedError: it is not as it was written.
    """
    return write(to, read(path))


def write_json(path: Path, content: Any) -> Path:
    """Writes readable JSON; an infinite number becomes null.

    Args:
      path: where.
      content: dicts, lists, strings, numbers, numpy scalars.

    Returns:
      path.

    Raises:
      ValueError: a number is NaN; the message says where.
    """
    return write(path, (json.dumps(_plain_in(path, content), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Args:
      path: the file.

    Returns:
      Its content.

    Raises:
      DamagedError: it is not as it was written, or no JSON; its numbers are finite, its size and nesting bounded.
      FileNotFoundError: it is missing.
    """
    return _parsed(path, read(path, _LARGEST_TEXT), _loads)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes arrays as .npz; equal arrays give equal bytes.

    Args:
      path: where.
      arrays: by name.

    Returns:
      path.
    """
    buffer = io.BytesIO()
    plain: dict[str, Any] = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez_compressed(buffer, **plain)
    return write(path, buffer.getvalue())


def read_arrays(path: Path) -> Arrays:
    """Reads a .npz file into memory.

    Args:
      path: the file.

    Returns:
      The arrays by name.

    Raises:
      DamagedError: it is not as it was written, or no .npz file of plain arrays; sizes are looked at before unpacking.
      FileNotFoundError: it is missing.
    """
    return _parsed(path, read(path), _unpacked)


def append_record(path: Path, record: Record) -> None:
    """Adds one line to a .jsonl file.

    Args:
      path: the file; made if missing.
      record: flat keys and plain values.

    Raises:
      DamagedError: the file is not as it was written.
      ValueError: a number is NaN.
    """
    write(path, _lines(path) + _line(path, record))


def write_records(path: Path, records: Iterable[Record]) -> Path:
    """Writes a .jsonl file anew.

    Args:
      path: the file.
      records: its lines.

    Returns:
      path.

    Raises:
      ValueError: a number is NaN.
    """
    return write(path, b"".join(_line(path, record) for record in records))


def read_records(path: Path) -> list[Record]:
    """Reads a .jsonl file; a last line that was cut off while being written is left out.

    Args:
      path: the file; a missing one has no records.

    Returns:
      Its records.

    Raises:
      DamagedError: it is not as it was written, or is entered in the manifest and missing.
    """
    return [_parsed(path, line, _loads) for line in _lines(path).splitlines()]


def plain(value: Any, where: str = "") -> Any:
    """The value in JSON's own types: arrays and tuples as lists, infinity as None.

    Args:
      value: dicts, lists, tuples, arrays, numbers, strings.
      where: it stands, for messages.

    Returns:
      The value.

    Raises:
      ValueError: a number is NaN.

    >>> plain({"found": np.bool_(True), "distances": (0.5, math.inf)})
    {'found': True, 'distances': [0.5, None]}
    """
    if isinstance(value, Mapping):
        return {str(name): plain(item, f"{where}.{name}".strip(".")) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{number}]") for number, item in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return plain(value.tolist(), where)
    if isinstance(value, float) and math.isnan(value):
        raise ValueError(f"{where} is NaN, which is no result: look at what computed it")
    return None if isinstance(value, float) and math.isinf(value) else value


def _plain_in(path: Path, content: Any) -> Any:
    try:
        return plain(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _line(path: Path, record: Record) -> bytes:
    return (json.dumps(_plain_in(path, record), allow_nan=False) + "\n").encode()


def _lines(path: Path) -> bytes:
    """The whole lines of a file, none where it is missing."""
    try:
        return read(path, _LARGEST_TEXT, lambda content: content[: content.rfind(b"\n") + 1])
    except FileNotFoundError:
        return b""


def _parsed(path: Path, content: bytes, parse: Callable[[bytes], Content]) -> Content:
    """What some bytes hold; the json, zipfile and numpy modules each raise their own kinds where they hold nothing."""
    try:
        return parse(content)
    except Exception as error:
        raise DamagedError(path, brief(error)) from None


def _loads(content: bytes) -> Any:
    return json.loads(content, parse_constant=_refuse, parse_float=_finite)


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no result")


def _finite(digits: str) -> float:
    return value if math.isfinite(value := float(digits)) else _refuse(digits)


def _unpacked(content: bytes) -> Arrays:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > _LARGEST_ARRAYS:
            raise ValueError(f"it unpacks to more than {_LARGEST_ARRAYS:,} bytes")
        for member in members:
            with archive.open(member) as file:
                _check_header(file, member)
    with np.load(io.BytesIO(content), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def _check_header(file: IO[bytes], member: zipfile.ZipInfo) -> None:
    """Refuses an array whose header promises another size than it has: numpy makes room for it before it reads."""
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, _, dtype = readers[np.lib.format.read_magic(file)](file)
    if dtype.hasobject or math.prod(shape) * dtype.itemsize != member.file_size - file.tell():
        raise ValueError(f"{member.filename} is not an array of the size that it claims")

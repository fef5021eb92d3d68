"""Results as files: records (.jsonl), cards (.json) and arrays (.npz), each written whole or not at all."""

import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

__all__ = [
    "Arrays", "Record", "append_record", "cut_records", "plain", "read_arrays", "read_json", "read_records",
    "write_arrays", "write_bytes", "write_json", "write_records",
]  # fmt: skip

Arrays = dict[str, np.ndarray]
Record = dict[str, Any]


def write_bytes(path: Path, content: bytes) -> Path:
    """Writes a file whole or not at all.

    Args:
      path: where; its folder is made if missing.
      content: the bytes.

    Returns:
      path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def write_json(path: Path, content: Any) -> Path:
    """Writes readable JSON; a number that is not finite becomes null.

    Args:
      path: where.
      content: dicts, lists, strings, numbers, numpy scalars.

    Returns:
      path.
    """
    return write_bytes(path, (json.dumps(plain(content), indent=2, allow_nan=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Reads a JSON file."""
    return json.loads(path.read_text())


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
    return write_bytes(path, buffer.getvalue())


def read_arrays(path: Path) -> Arrays:
    """Reads a .npz file into memory."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def append_record(path: Path, record: Record) -> None:
    """Adds one line to a .jsonl file.

    Args:
      path: the file; made if missing.
      record: flat keys and plain values.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(_line(record))


def write_records(path: Path, records: Iterable[Record]) -> Path:
    """Writes a .jsonl file anew.

    Args:
      path: the file.
      records: its lines.

    Returns:
      path.
    """
    return write_bytes(path, "".join(map(_line, records)).encode())


def read_records(path: Path) -> list[Record]:
    """Reads a .jsonl file; a last line that was cut off while being written is left out.

    Args:
      path: the file; a missing one has no records.

    Returns:
      Its records.
    """
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def cut_records(path: Path, name: str, last: float) -> bool:
    """Drops the lines of a .jsonl file after some point, so that work can go on from there.

    Args:
      path: the file.
      name: of the number that rises from line to line, such as "epoch".
      last: lines with a larger one are dropped.

    Returns:
      Whether a line of that point itself is there.
    """
    records = [record for record in read_records(path) if record[name] <= last]
    write_records(path, records)
    return bool(records) and records[-1][name] == last


def _line(record: Record) -> str:
    return json.dumps(plain(record), allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """The value in JSON's own types: arrays and tuples as lists, numbers that are not finite as None."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value

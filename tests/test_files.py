"""Files: written whole or not at all, the same content gives the same bytes, a torn line is not read."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmargin.lab import files, manifests, provenance


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = files.write_json(tmp_path / "card.json", {"a": 1})
    monkeypatch.setattr(manifests.os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}


def test_infinity_which_json_cannot_hold_becomes_null(tmp_path):
    content = {"a": np.float32(1.5), "b": float("inf"), "c": jnp.arange(2), "d": (1, 2)}
    path = files.write_json(tmp_path / "x.json", content)
    assert json.loads(path.read_text()) == {"a": 1.5, "b": None, "c": [0, 1], "d": [1, 2]}


def test_nan_is_no_result_when_written_nor_when_read(tmp_path):
    path = tmp_path / "x.json"
    for content in ({"a": [1, {"b": float("nan")}]}, {"a": [1, {"b": jnp.float32(np.nan)}]}):
        with pytest.raises(ValueError, match=r"x\.json: a\[1\]\.b is NaN"):
            files.write_json(path, content)
        with pytest.raises(ValueError, match=r"x\.jsonl: a\[1\]\.b is NaN"):
            files.append_record(tmp_path / "x.jsonl", content)
    for word in ("NaN", "Infinity", "-Infinity", "1e999"):
        path.write_text(f'{{"clean_accuracy": {word}}}')
        with pytest.raises(files.DamagedError, match=f"{word} is no result"):
            files.read_json(path)


def test_equal_arrays_give_equal_bytes(tmp_path):
    arrays = {"x": np.arange(5.0), "y": np.eye(2)}
    paths = [files.write_arrays(tmp_path / name, arrays) for name in ("a.npz", "b.npz")]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_line_cut_off_while_being_written_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for epoch in (1, 2):
        files.append_record(path, {"epoch": epoch})
    with path.open("a") as file:
        file.write('{"epoch": 3, "trai')
    assert [record["epoch"] for record in files.read_records(path)] == [1, 2]
    assert files.read_records(tmp_path / "missing.jsonl") == []


def test_versions_name_everything_that_decides_a_number():
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "python", "jaxmargin"} == set(provenance.versions())

"""Damage: no flipped bit, missing file, link or lying header is read as a result, whatever kind of file it is in."""

import io
import os
import random
import subprocess
import threading
import zipfile

import jax
import numpy as np
import optax
import pytest
from helpers import flip, flipped

import jaxmargin as jm
from jaxmargin import models
from jaxmargin.lab import files, manifests
from jaxmargin.lab.checkpoints import Checkpoints
from jaxmargin.lab.measuring import measure
from jaxmargin.lab.training import init_state
from jaxmargin.lab.workspace import Workspace

FLIPS = 60

WRITERS = {
    "card.json": (lambda path: files.write_json(path, {"clean_accuracy": 0.964, "flags": [1, 2]}), files.read_json),
    "points.npz": (lambda path: files.write_arrays(path, {"margin": np.arange(9.0)}), files.read_arrays),
    "metrics.jsonl": (
        lambda path: [files.append_record(path, {"epoch": epoch, "test_error": 0.036}) for epoch in range(3)],
        files.read_records,
    ),
}


def bits(content, count=FLIPS):
    return random.Random(0).sample(range(8 * len(content)), count)


@pytest.mark.parametrize("name", WRITERS)
def test_a_flipped_bit_is_refused_and_names_the_file(tmp_path, name):
    write, read = WRITERS[name]
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    for bit in bits(whole):
        path.write_bytes(flipped(whole, bit))
        with pytest.raises(files.DamagedError, match=f"{name} is damaged"):
            read(path)
    path.write_bytes(whole)
    read(path)


def test_what_is_known_to_have_been_there_is_missed(tmp_path):
    path = files.write_json(tmp_path / "card.json", {})
    path.unlink()
    with pytest.raises(files.DamagedError, match="it is missing"):
        files.read_json(path)
    with pytest.raises(FileNotFoundError):
        files.read_json(tmp_path / "other.json")
    manifests.forget(path)
    with pytest.raises(FileNotFoundError):
        files.read_json(path)


def test_manifests_are_those_of_sha256sum(tmp_path):
    for name, (write, _) in WRITERS.items():
        write(tmp_path / name)
    said = subprocess.run(["sha256sum", "-c", manifests.NAME], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.splitlines() == ["card.json: OK", "metrics.jsonl: OK", "points.npz: OK"]


@pytest.mark.parametrize("killed_at", range(1, 7))
def test_a_write_cut_anywhere_leaves_a_file_that_is_as_it_was_or_as_it_shall_be(tmp_path, monkeypatch, killed_at):
    path, calls, replace = files.write_json(tmp_path / "stages.json", 1), [], os.replace

    def kill(*places):
        calls.append(places)
        if len(calls) == killed_at:
            raise SystemExit
        replace(*places)

    monkeypatch.setattr(manifests.os, "replace", kill)
    for content in (2, 3):
        try:
            files.write_json(path, content)
        except SystemExit:
            assert files.read_json(path) in (content - 1, content)
        else:
            assert files.read_json(path) == content
    assert len(calls) >= 4


def bomb():
    """A .npz of a few kilobytes that unpacks to four gigabytes and a bit: many names for the same packed zeros."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(2**16))
        archive.infolist()[0].file_size = 2**32 + 1
    return content.getvalue()


def lying(shape):
    """A .npz whose header promises more than there is."""
    array, content = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x.npy", array.getvalue() + bytes(16))
    return content.getvalue()


def pickled():
    content = io.BytesIO()
    np.savez(content, x=np.asarray([{}], object))
    return content.getvalue()


@pytest.mark.parametrize(
    "content", [b"", b"PK", bomb(), lying((10**15,)), lying((3,)), lying((-1,)), pickled()],
    ids=["empty", "torn", "bomb", "huge", "short", "negative", "pickle"],
)  # fmt: skip
def test_arrays_that_are_none_are_refused_before_room_is_made_for_them(tmp_path, content):
    path = tmp_path / "points.npz"
    path.write_bytes(content)
    with pytest.raises(files.DamagedError, match=r"points\.npz is damaged"):
        files.read_arrays(path)


@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[" * 10**5, b'{"a": ' * 10**5, b"9" * 5000])
def test_json_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "card.json"
    path.write_bytes(content)
    with pytest.raises(files.DamagedError, match=r"card\.json is damaged"):
        files.read_json(path)


def test_a_text_of_gigabytes_is_not_read(tmp_path):
    path = tmp_path / "card.json"
    path.touch()
    os.truncate(path, 2**33)  # a hole, which takes no room
    with pytest.raises(files.DamagedError, match="it has more than 67,108,864 bytes"):
        files.read_json(path)


def test_a_link_that_leaves_its_folder_is_not_followed(tmp_path):
    secret = files.write_json(tmp_path / "elsewhere" / "secret.json", {"key": 1})
    folder = tmp_path / "cards"
    folder.mkdir()
    (folder / "card.json").symlink_to(secret)
    with pytest.raises(files.DamagedError, match="a link that leaves its folder"):
        files.read_json(folder / "card.json")
    (tmp_path / "linked").symlink_to(secret.parent)  # a folder may lie on another disk
    assert files.read_json(tmp_path / "linked" / "secret.json") == {"key": 1}


def test_a_disk_that_is_full_is_said_with_the_name_of_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifests.Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*card\.json'"):
        manifests.write_bytes(tmp_path / "card.json", b"")


# Checkpoints ---------------------------------------------------------------------------------------------------------


def state(step=0):
    model = models.mlp((4, 4, 1), hidden=8)
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
    return init_state(model.init(jax.random.key(step)), optimizer, jax.random.key(1), 7)._replace(
        step=jax.numpy.int32(step)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    with Checkpoints(folder) as checkpoints:
        for epoch in (3, 4):
            checkpoints.save(epoch, state(epoch), [{"epoch": one} for one in range(1, epoch)])
    return folder


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_refused(saved):
    folder = saved / "4"
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert any(path.name == manifests.NAME for path in paths) and len(paths) > 4
    manifests.check_folder(folder)
    for path in paths:
        whole = path.read_bytes()
        for bit in bits(whole, min(12, 8 * len(whole))):
            path.write_bytes(flipped(whole, bit))
            with pytest.raises(files.DamagedError, match="4 is damaged"):
                manifests.check_folder(folder)
        path.write_bytes(whole)
    manifests.check_folder(folder)


@pytest.mark.parametrize("harm", ["flip", "missing", "new", "unfinished", "link", "linked"])
def test_the_intact_checkpoint_before_a_damaged_one_is_used_with_a_warning(saved, tmp_path, harm):
    copy = tmp_path / "checkpoints"
    subprocess.run(["cp", "-r", saved, copy], check=True)
    largest = max((path for path in (copy / "4").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    if harm == "flip":
        flip(largest)
    elif harm == "missing":
        largest.unlink()
    elif harm == "new":
        (copy / "4" / "more").touch()
    elif harm == "unfinished":
        (copy / "4" / manifests.NAME).unlink()
    elif harm == "link":
        largest.rename(tmp_path / "moved")
        largest.symlink_to(tmp_path / "moved")
    else:
        (copy / "4").rename(tmp_path / "moved")
        (copy / "4").symlink_to(tmp_path / "moved")
    with Checkpoints(copy) as checkpoints:
        with pytest.warns(UserWarning, match="checkpoints/4 is damaged .*: what was saved before it is used"):
            assert checkpoints.latest() == 3
        assert int(checkpoints.restore(3, state()).step) == 3
        assert checkpoints.records(3) == [{"epoch": 1}, {"epoch": 2}]
        checkpoints.save(4, state(4))  # in its place
        assert checkpoints.latest() == 4


# What can be made again ----------------------------------------------------------------------------------------------


def linear(w, x):
    return w @ x


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "torn": lambda path: os.truncate(path, path.stat().st_size // 2),
    "flipped": flip,
}


@pytest.mark.parametrize("suffix", [".npz", ".part"])
@pytest.mark.parametrize("harm", DAMAGE)
def test_what_can_be_measured_again_is_measured_again(tmp_path, suffix, harm):
    key_w, key_x = jax.random.split(jax.random.key(0))
    w, xs = jax.random.normal(key_w, (3, 5)), np.asarray(jax.random.normal(key_x, (40, 5)))
    run, key = jm.over_batch(jm.linear_margin, linear, batch_size=16), jax.random.key(2)
    path = tmp_path / "margins.npz"
    right = measure(run, w, key, xs, np.zeros(40, int), path=path, label="")
    files.write_arrays(path.with_suffix(".part"), {name: array[:16] for name, array in right.items()})
    if suffix == ".part":
        manifests.forget(path)
    DAMAGE[harm](path.with_suffix(suffix))
    with pytest.warns(UserWarning, match=f"margins{suffix} is damaged .* it is made again"):
        again = measure(run, w, key, xs, np.zeros(40, int), path=path, label="")
    for name, array in right.items():
        np.testing.assert_array_equal(again[name], array)
    assert {one.name for one in tmp_path.iterdir()} >= {"margins.npz"}


def halves(setup, params):
    return {"half": np.asarray(params / 2)}


@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_stage_is_made_again_and_damaged_times_are_counted_anew(tmp_path, harm):
    Workspace(tmp_path, "cell").run(halves, None, 3.0)
    for name in ("halves.npz", "stages.json"):
        DAMAGE[harm](tmp_path / name)
    with pytest.warns(UserWarning) as said:
        assert Workspace(tmp_path, "cell").run(halves, None, 3.0)["half"] == 1.5
    assert any("halves.npz is damaged" in str(one.message) for one in said)
    assert any("stages.json is damaged" in str(one.message) for one in said)
    assert Workspace(tmp_path, "cell").stages().keys() == {"halves"}


def test_what_is_being_written_can_be_read_all_the_while(tmp_path):
    path, lines = tmp_path / "metrics.jsonl", 200
    writer = threading.Thread(target=lambda: [files.append_record(path, {"epoch": one}) for one in range(lines)])
    writer.start()
    seen = [0]
    while writer.is_alive():
        seen.append(len(files.read_records(path)))
    writer.join()
    assert seen == sorted(seen) and len(files.read_records(path)) == lines

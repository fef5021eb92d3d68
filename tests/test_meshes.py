"""Several devices and hosts: however the work is divided, the same key gives the same bits."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jaxmargin as jm

SCRIPT = Path(__file__).with_name("meshes.py")


def start(*arguments, script=SCRIPT):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if script != SCRIPT:  # whose last bits are looked at
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    return subprocess.Popen(
        [sys.executable, script, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


def finish(*processes):
    for process in processes:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors[-3000:]


def read(path):
    with np.load(path) as file:
        return dict(file)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What meshes of 1 to 8 devices of one process found: "2x4-rivals-margin" and so on."""
    path = tmp_path_factory.mktemp("meshes") / "one.npz"
    finish(start(path))
    return read(path)


def by_mesh(found):
    """{what: {mesh: values}}"""
    sorted_out = {}
    for name, values in found.items():
        mesh, what = re.fullmatch(r"(\d+x\d+)-(.+)", name).groups()
        sorted_out.setdefault(what, {})[mesh] = values
    return sorted_out


@pytest.mark.slow
def test_inside_of_shard_map_with_its_checks_on_nothing_is_other(tmp_path):
    finish(start(script=SCRIPT.with_name("sharded.py")))


@pytest.mark.slow
def test_the_number_of_devices_changes_no_bit(found):
    measured = by_mesh(found)
    expected = {"rivals-margin", "exact-lipschitz", "rivals-remainder", "rivals-samples", "pgd-x_adv"}
    assert expected | {"radial-margin", "blocks-maxima"} <= set(measured)
    for what, meshes in measured.items():
        assert len(meshes) == (3 if what.startswith("rivals") else 2)
        for mesh, values in meshes.items():
            np.testing.assert_array_equal(values, meshes["1x1"], err_msg=f"{what} on {mesh}")
    assert len(set(measured["rivals-margin"]["8x1"])) == 9


@pytest.mark.slow
def test_a_mesh_gives_what_no_mesh_gives(found, tiny):
    from helpers import random_params

    rng = np.random.default_rng(0)
    xs, ys = rng.normal(size=(9, 4, 3)).astype(np.float32), rng.integers(0, 4, 9)
    options = dict(radius=2.0, num_samples=3000, chunk_size=100)
    run = jm.over_batch(jm.lipschitz_margin, tiny.model.apply, **options)
    margins = run(random_params(tiny.model), jax.random.key(0), xs, ys)
    for field, values in margins._asdict().items():
        np.testing.assert_array_equal(values, found[f"8x1-rivals-{field}"], err_msg=field)


@pytest.mark.slow
def test_two_processes_give_the_same_bits_as_one(found, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
    paths = [tmp_path / f"{process}.npz" for process in range(2)]
    finish(*[start(path, coordinator, process, 2) for process, path in enumerate(paths)])
    for path in paths:
        result = read(path)
        assert {"2x4-rivals-margin", "2x4-rivals-lipschitz", "8x1-pgd-x_adv"} <= set(result)
        for name, values in result.items():
            np.testing.assert_array_equal(values, found[name], err_msg=name)


def test_an_axis_that_means_nothing_is_refused():
    mesh = jax.make_mesh((1,), ("batch",))
    with pytest.raises(ValueError, match="axis 'batch'.*points and samples"):
        jm.over_batch(jm.lipschitz_margin, lambda w, x: w @ x, mesh=mesh)


def test_a_measure_without_samples_cannot_be_divided_along_them():
    mesh = jax.make_mesh((1, 1), ("points", "samples"))
    with pytest.raises(ValueError, match="axis 'samples'.*name its axes points"):
        jm.over_batch(jm.linear_margin, lambda w, x: w @ x, mesh=mesh)

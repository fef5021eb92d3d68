"""Checkpoints: what comes back is what was saved, bit for bit, key included; another shape is refused."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest

from jaxmargin import models
from jaxmargin.lab.checkpoints import Checkpoints
from jaxmargin.lab.training import init_state


def state(hidden=8, seed=0):
    model = models.mlp((4, 4, 1), hidden=hidden)
    optimizer = optax.sgd(0.1, momentum=0.9, nesterov=True)
    return init_state(model.init(jax.random.key(seed)), optimizer, jax.random.key(seed + 1), 7)


def test_the_state_comes_back_bit_for_bit_with_its_types(tmp_path):
    saved = state(seed=5)._replace(step=jax.numpy.int32(7))
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() is None
        checkpoints.save(3, saved)
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() == 3
        back = checkpoints.restore(3, state())
    assert jax.tree.structure(back) == jax.tree.structure(saved)
    data = [s._replace(key=jax.random.key_data(s.key)) for s in (saved, back)]
    jax.tree.map(np.testing.assert_array_equal, *data)
    assert jax.tree.map(lambda leaf: leaf.dtype, data[0]) == jax.tree.map(lambda leaf: leaf.dtype, data[1])


def test_what_another_device_saved_comes_back_where_fresh_states_are(tmp_path):
    """The suite has one device, and a run that goes on may have another one than the run that was cut."""
    elsewhere = jax.device_put(state(), jax.devices("cpu")[0])  # committed, as a device of several would be
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, elsewhere)
        back = checkpoints.restore(1, state())
    assert not any(leaf.committed for leaf in jax.tree.leaves(back) if leaf is not back.key)


ELSEWHERE = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 2)
from pathlib import Path
from test_checkpoints import Checkpoints, state
mesh = jax.sharding.Mesh(np.array(jax.devices()), ("both",))
parts = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
with Checkpoints(Path(sys.argv[1])) as checkpoints:
    checkpoints.save(1, jax.device_put(state(seed=5), jax.devices()[1]))
    checkpoints.save(2, jax.device_put(state(seed=6), parts))
"""


@pytest.mark.slow
def test_what_two_devices_saved_is_restored_on_one(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", ELSEWHERE, tmp_path / "c"], env=environment, check=True)
    with Checkpoints(tmp_path / "c") as checkpoints:
        for epoch, seed in ((1, 5), (2, 6)):
            back = checkpoints.restore(epoch, state())
            data = [s._replace(key=jax.random.key_data(s.key)) for s in (state(seed=seed), back)]
            jax.tree.map(np.testing.assert_array_equal, *data)
            assert {leaf.devices().pop().id for leaf in jax.tree.leaves(back)} == {0}


def test_only_the_last_states_are_kept(tmp_path):
    with Checkpoints(tmp_path / "c", keep=2) as checkpoints:
        for epoch in (1, 2, 3):
            checkpoints.save(epoch, state())
        assert sorted(int(path.name) for path in checkpoints.folder.iterdir() if path.name.isdigit()) == [2, 3]


def test_a_state_of_another_shape_is_refused(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state(hidden=8))
        with pytest.raises(ValueError, match="another shape or dtype"):
            checkpoints.restore(1, state(hidden=9))


def test_an_interrupted_save_is_not_a_checkpoint(tmp_path):
    with Checkpoints(tmp_path / "c") as checkpoints:
        checkpoints.save(1, state())
        torn = checkpoints.folder / "2.orbax-checkpoint-tmp"
        torn.mkdir()
    with Checkpoints(tmp_path / "c") as checkpoints:
        assert checkpoints.latest() == 1

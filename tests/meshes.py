"""Measures the same points on meshes of several shapes and writes what came out; ``test_meshes`` runs it.

usage: python meshes.py OUT.npz [COORDINATOR PROCESS COUNT]
"""

import sys

import jax
import numpy as np


def main(out, coordinator=None, process=0, count=1):
    jax.config.update("jax_num_cpu_devices", 8 // int(count))
    if coordinator:
        jax.distributed.initialize(coordinator, int(count), int(process))
    from helpers import random_params

    import jaxmargin as jm
    from jaxmargin import models

    model = models.mlp((4, 3), 4, hidden=16)
    rng = np.random.default_rng(0)
    xs, ys = rng.normal(size=(9, 4, 3)).astype(np.float32), rng.integers(0, 4, 9)
    params = random_params(model)
    shapes = [(8, 1), (2, 4)]
    if not coordinator:
        shapes += [(1, 1)]
    found = {}
    for points, samples in shapes:
        devices = np.array(jax.devices()).reshape(int(count), -1)[:, : points * samples // int(count)]
        mesh = jax.sharding.Mesh(devices.reshape(points, samples), ("points", "samples"))
        whole = (points, samples) in ((1, 1), (2, 4))
        modes = [False, True] if whole else [False]
        if coordinator:  # each program is compiled by each process: one measure along each axis is enough
            modes = [False] if samples > 1 else []
        for exact in modes:
            options = dict(radius=2.0, num_samples=3000, chunk_size=100, exact=exact, batch_size=4)
            run = jm.over_batch(jm.lipschitz_margin, model.apply, mesh=mesh, **options)
            for field, value in run(params, jax.random.key(0), xs, ys)._asdict().items():
                found[f"{points}x{samples}-{'exact' if exact else 'rivals'}-{field}"] = np.asarray(value)
        if whole and not coordinator:
            options = dict(radius=2.0, chunk_size=100, batch_size=4, mesh=mesh)
            near = jm.over_batch(jm.radial_margin, model.apply, num_samples=3000, **options)
            blocks = jm.over_batch(jm.block_maxima, model.apply, num_blocks=2, block_size=1500, **options)
            found[f"{points}x{samples}-radial-margin"] = np.asarray(near(params, jax.random.key(0), xs, ys).margin)
            found[f"{points}x{samples}-blocks-maxima"] = np.asarray(blocks(params, jax.random.key(0), xs, ys).maxima)
        if samples == 1:
            options = dict(epsilon=0.5, step_size=0.1, num_steps=5)
            line = jax.sharding.Mesh(mesh.devices[:, 0], ("points",))
            attack = jm.over_batch(jm.pgd, model.apply, batch_size=1, mesh=line, **options)
            many = np.tile(xs, (40, 1, 1)), np.tile(ys, 40)  # rows for three devices
            found[f"{points}x1-pgd-x_adv"] = np.asarray(attack(params, jax.random.key(0), *many).x_adv)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

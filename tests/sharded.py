"""Measures inside of shard_map, which checks what varies over its axes; ``test_meshes`` runs it with two devices."""

import jax
import numpy as np

import jaxmargin as jm

PARTS = jax.sharding.PartitionSpec("points")
MEASURES = {
    "lipschitz_margin": dict(num_samples=64), "fmn": dict(num_steps=3),
    "pgd": dict(epsilon=0.5, num_steps=3, step_size=0.1, restarts=2, keep="best"),
}  # fmt: skip


def apply_fn(w, x):
    return jax.numpy.tanh(w @ x)


def main():
    jax.config.update("jax_num_cpu_devices", 2)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("points",))
    rng = np.random.default_rng(0)
    w, xs, ys = rng.normal(size=(3, 5)).astype("f"), rng.normal(size=(8, 5)).astype("f"), np.arange(8) % 3
    for name, options in MEASURES.items():
        run = jm.over_batch(getattr(jm, name), apply_fn, batch_size=2, **options)

        def measured(w, xs, ys, run=run):
            return run(w, jax.random.key(3), xs, ys)

        specs = dict(in_specs=(jax.sharding.PartitionSpec(), PARTS, PARTS), out_specs=PARTS)
        found = jax.jit(jax.shard_map(measured, mesh=mesh, **specs))(w, xs, ys)
        halves = [measured(w, xs[at : at + 4], ys[at : at + 4]) for at in (0, 4)]
        right = jax.tree.map(lambda *parts: np.concatenate(parts), *halves)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, right)


if __name__ == "__main__":
    main()

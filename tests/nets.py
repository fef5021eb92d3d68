"""Random tiny ReLU networks: what enumeration and sampling say about a point of each, and their parameters."""

import functools

import exact
import jax
import numpy as np

import jaxmargin as jm

RADIUS = 1.0


def relu_net(params, x):
    hidden, hidden_bias, output, output_bias = params
    return output @ jax.nn.relu(hidden @ x + hidden_bias) + output_bias


class Nets:
    """Random tiny ReLU networks of one number of classes: what enumeration and sampling say about a point of each."""

    def __init__(self, num_classes, n=75):
        rng = np.random.default_rng(num_classes)
        self.nets = [exact.random_net(rng, 1 + i % 6, num_classes) for i in range(n)]
        self.xs = np.float64(np.float32(rng.uniform(-1, 1, (n, 2))))
        pairs = list(zip(self.nets, self.xs, strict=True))
        self.constants = np.array([exact.constants(net, x, RADIUS) for net, x in pairs])
        self.bounds = np.array([exact.bound(net, x, RADIUS) for net, x in pairs])
        self.distances = np.array([exact.distance(net, x) for net, x in pairs])
        self.logits = np.array([net.logits(x[None])[0] for net, x in pairs])

    @functools.cache  # noqa: B019
    def sampled(self, num_samples, measure=jm.lipschitz_margin, **options):
        """The package's Margins of all points, with labels that call every prediction right.

        The classes that nets were padded with have no constants here, but do count as rivals.
        """
        found = sampled(self.nets, self.xs, self.logits.argmax(1), num_samples, measure, **options)
        return found._replace(lipschitz=found.lipschitz[:, : self.logits.shape[1]])


def sampled(nets, xs, ys, num_samples, measure=jm.lipschitz_margin, **options):
    """The package's Margins of points [n, 2], each of a network of its own; of padded classes too."""
    sizes = dict(radius=RADIUS, num_samples=num_samples, chunk_size=min(num_samples, 64))
    params = [np.float32(np.stack(leaves)) for leaves in zip(*map(padded, nets), strict=True)]
    keys = jax.random.split(jax.random.key(0), len(nets))
    return sampler(measure, **(dict(exact=True) | sizes | options))(params, keys, np.float32(xs), ys)


def padded(net):
    """Of 6 hidden units, those added without inputs or outputs, and of 5 classes, those added far out of reach."""
    w, b, v, a = net
    units, classes = 6 - len(w), 5 - len(v)
    v = np.pad(v, ((0, classes), (0, units)))
    return np.pad(w, ((0, units), (0, 0))), np.pad(b, (0, units)), v, np.pad(a, (0, classes), constant_values=-1e3)


@functools.cache
def sampler(measure, **options):
    """(params, keys, xs, ys) -> Margins: one program for all numbers of classes."""

    def one(params, key, x, y):
        return measure(functools.partial(relu_net, params), key, x, y, **options)

    return jax.jit(jax.vmap(one))


@functools.cache
def nets_of(num_classes):
    return Nets(num_classes)


def params_of(net):
    """A network as parameters of ``models.mlp((2,), c)``."""
    layers = (net.hidden, net.hidden_bias), (net.output, net.output_bias)
    return {
        f"Dense_{i}": {"kernel": np.float32(weights.T), "bias": np.float32(bias)}
        for i, (weights, bias) in enumerate(layers)
    }


def stacked(nets):
    """Parameters of several networks of one shape, each leaf [n, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(params_of, nets))

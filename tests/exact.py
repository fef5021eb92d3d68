"""Exact distances and slopes of tiny ReLU networks f(z) = V relu(W z + b) + a in 2-D or 3-D, enumerated in float64.

The activation pattern of the hidden layer cuts the space into cells, and f is affine in each. Every pattern is listed,
also those that no point has: their planes only add candidates, which are checked one by one.
"""

import itertools
from typing import NamedTuple

import numpy as np

_SLACK = 1e-9  # what float64 loses where planes meet


class Net(NamedTuple):
    """Weights of one network: W [h, d], b [h], V [c, h], a [c]."""

    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray

    def logits(self, points):
        """f at points [m, d], as [m, c]."""
        return np.maximum(points @ self.hidden.T + self.hidden_bias, 0) @ self.output.T + self.output_bias


def random_net(rng, hidden, num_classes, dimension=2):
    """A network with biases, its values held exactly by float32."""
    shapes = (hidden, dimension), (hidden,), (num_classes, hidden), (num_classes,)
    return Net(*(np.asarray(np.float32(rng.normal(size=shape)), np.float64) for shape in shapes))


def patterns(net):
    """All activation patterns, [2^h, h] of 0 and 1."""
    return np.array(list(itertools.product([0, 1], repeat=len(net.hidden))))


def distance(net, x):
    """The l2 distance from x to the nearest point where another class scores as high as the predicted one.

    The set where class k catches up is a polytope in each cell, bounded by the cell's planes and the plane f_p = f_k.
    Its point nearest to x is the foot of x on a plane or where some of them meet; the nearest of these in it is exact.
    """
    p = np.argmax(net.logits(x[None])[0])
    active = patterns(net)
    gradients = np.einsum("ch,ph,hd->pcd", net.output, active, net.hidden)
    offsets = np.einsum("ch,ph,h->pc", net.output, active, net.hidden_bias) + net.output_bias  # [patterns, c]
    normals = np.delete(gradients[:, p, None] - gradients, p, 1).reshape(-1, len(x))  # [patterns (c - 1), d]
    constants = np.delete(offsets[:, p, None] - offsets, p, 1).reshape(-1)
    points = _candidates(x, net.hidden, net.hidden_bias, normals, constants)
    logits = net.logits(points)  # [m, c]
    reached = np.delete(logits, p, 1).max(1) >= logits[:, p] - _SLACK
    return np.linalg.norm(points[reached] - x, axis=1).min(initial=np.inf)


def cells(net, x):
    """The cells of the plane: (l2 distances [m] from x, gradients [m, c, 2] of f there)."""
    points = np.vstack([x, _candidates(x, net.hidden, net.hidden_bias)])
    values = points @ net.hidden.T + net.hidden_bias  # [m, h]
    lengths = np.linalg.norm(points - x, axis=1)
    active = patterns(net)
    inside = (np.where(active[:, None], values, -values) >= -_SLACK).all(2)  # [patterns, m]
    distances = np.where(inside, lengths, np.inf).min(1)
    gradients = np.einsum("ch,ph,hd->pcd", net.output, active, net.hidden)
    return distances[np.isfinite(distances)], gradients[np.isfinite(distances)]


def constants(net, x, radius):
    """[c] exact Lipschitz constants of f_p - f_k on the l2 ball B(x, radius): the steepest cell that meets the ball."""
    p = np.argmax(net.logits(x[None])[0])
    distances, gradients = cells(net, x)
    met = gradients[distances < radius]
    return np.linalg.norm(met[:, p, None] - met, axis=2).max(0)


def bound(net, x, radius):
    """min{ min_{k != p} (f_p - f_k)(x) / L_k, radius } with the exact constants."""
    logits, slopes = net.logits(x[None])[0], constants(net, x, radius)
    p = np.argmax(logits)
    gaps, slopes = logits[p] - np.delete(logits, p), np.delete(slopes, p)
    ratios = np.divide(gaps, slopes, out=np.full_like(gaps, np.inf), where=slopes > 0)
    return min(ratios.min(), radius)


def radial_bound(net, x, radius):
    """max over R <= radius of ``bound``: the constants change only where the ball meets another cell."""
    logits, (distances, gradients) = net.logits(x[None])[0], cells(net, x)
    p, order = np.argmax(logits), np.argsort(distances)
    starts, gradients = distances[order], gradients[order]
    ends = np.minimum(np.append(starts[1:], np.inf), radius)
    largest = np.maximum.accumulate(np.linalg.norm(gradients[:, p, None] - gradients, axis=2), 0)  # [m, c]
    gaps, slopes = np.broadcast_to(logits[p] - logits, largest.shape), largest
    ratios = np.divide(gaps, slopes, out=np.full_like(slopes, np.inf), where=slopes > 0)
    return np.minimum(np.delete(ratios, p, 1).min(1), ends)[starts < radius].max()


def _candidates(x, normals, offsets, faces=None, heights=None):
    """The feet of x on the planes n z + o = 0, and on whatever two or more of them have in common.

    With faces f z + h = 0 also on each of these and on what one of them and some of the planes have in common.
    """
    feet = []
    for count in range(min(len(x), len(normals)) + 1):
        chosen = np.array(list(itertools.combinations(range(len(normals)), count)), int)  # [m, count]
        planes, missing = normals[chosen], offsets[chosen]  # [m, count, d], [m, count]
        if count:
            feet.append(_feet(x, planes, missing))
        if faces is not None and count < len(x):
            n, m = len(faces), len(chosen)
            planes = np.concatenate([np.tile(planes, (n, 1, 1)), np.repeat(faces, m, 0)[:, None]], 1)
            feet.append(_feet(x, planes, np.column_stack([np.tile(missing, (n, 1)), np.repeat(heights, m)])))
    return np.vstack(feet)


def _feet(x, planes, offsets):
    """The points nearest to x of the intersections of ``planes`` [m, count, d], where they meet in one."""
    gram = planes @ planes.swapaxes(1, 2)  # [m, count, count]
    meet = np.linalg.det(gram) > 1e-12 * np.prod(np.einsum("mii->mi", gram), 1)
    planes, gram, missing = planes[meet], gram[meet], (planes @ x + offsets)[meet]
    return x - np.einsum("mkd,mk->md", planes, np.linalg.solve(gram, missing[..., None])[..., 0])

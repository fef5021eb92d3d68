"""Exact distances and slopes of tiny ReLU networks f(z) = V relu(W z + b) + a in the plane, by enumeration in float64.

The activation pattern of the hidden layer cuts the plane into cells, and f is affine in each. Every pattern is listed,
also those that no point has: their lines only add candidates, which are checked one by one.
"""

import itertools
from typing import NamedTuple

import numpy as np

_SLACK = 1e-9  # what float64 loses where two lines meet


class Net(NamedTuple):
    """Weights of one network: W [h, 2], b [h], V [c, h], a [c]."""

    hidden: np.ndarray
    hidden_bias: np.ndarray
    output: np.ndarray
    output_bias: np.ndarray

    def logits(self, points):
        """f at points [m, 2], as [m, c]."""
        return np.maximum(points @ self.hidden.T + self.hidden_bias, 0) @ self.output.T + self.output_bias


def random_net(rng, hidden, num_classes):
    """A network with biases, its values held exactly by float32."""
    shapes = (hidden, 2), (hidden,), (num_classes, hidden), (num_classes,)
    return Net(*(np.float64(np.float32(rng.normal(size=shape))) for shape in shapes))


def patterns(net):
    """All activation patterns, [2^h, h] of 0 and 1."""
    return np.array(list(itertools.product([0, 1], repeat=len(net.hidden))))


def distance(net, x):
    """The l2 distance from x to the nearest point where another class scores as high as the predicted one.

    The set where class k catches up is a polygon in each cell, bounded by the cell's lines and one line f_p = f_k. Its
    point nearest to x is a foot of x on one of the lines or a corner; the nearest of these that lies in it is exact.
    """
    p = np.argmax(net.logits(x[None])[0])
    best = np.inf
    for pattern in patterns(net):
        gradients = (net.output * pattern) @ net.hidden  # [c, 2]
        offsets = (net.output * pattern) @ net.hidden_bias + net.output_bias  # [c]
        for k in set(range(len(offsets))) - {p}:
            normals = np.vstack([net.hidden, gradients[p] - gradients[k]])
            points = _candidates(x, normals, np.append(net.hidden_bias, offsets[p] - offsets[k]))
            logits = net.logits(points)  # [m, c]
            reached = np.delete(logits, p, 1).max(1) >= logits[:, p] - _SLACK
            best = min(best, np.linalg.norm(points[reached] - x, axis=1).min(initial=np.inf))
    return best


def constants(net, x, radius):
    """[c] exact Lipschitz constants of f_p - f_k on the l2 ball B(x, radius): the steepest cell that meets the ball."""
    p = np.argmax(net.logits(x[None])[0])
    largest = np.zeros(len(net.output))
    points = np.vstack([x, _candidates(x, net.hidden, net.hidden_bias)])
    values = points @ net.hidden.T + net.hidden_bias  # [m, h]
    lengths = np.linalg.norm(points - x, axis=1)
    for pattern in patterns(net):
        inside = (np.where(pattern, values, -values) >= -_SLACK).all(1)
        if lengths[inside].min(initial=np.inf) < radius:
            gradients = (net.output * pattern) @ net.hidden
            largest = np.maximum(largest, np.linalg.norm(gradients[p] - gradients, axis=1))
    return largest


def bound(net, x, radius):
    """min{ min_{k != p} (f_p - f_k)(x) / L_k, radius } with the exact constants."""
    logits, slopes = net.logits(x[None])[0], constants(net, x, radius)
    p = np.argmax(logits)
    gaps, slopes = logits[p] - np.delete(logits, p), np.delete(slopes, p)
    ratios = np.divide(gaps, slopes, out=np.full_like(gaps, np.inf), where=slopes > 0)
    return min(ratios.min(), radius)


def _candidates(x, normals, offsets):
    """The feet of x on the lines n z + o = 0, and the points where two of them meet."""
    square = (normals**2).sum(1)
    lines = square > 0
    normals, offsets, square = normals[lines], offsets[lines], square[lines]
    feet = x - ((normals @ x + offsets) / square)[:, None] * normals
    i, j = np.triu_indices(len(normals), 1)
    determinant = normals[i, 0] * normals[j, 1] - normals[i, 1] * normals[j, 0]
    i, j, determinant = (array[determinant != 0] for array in (i, j, determinant))
    first = normals[i, 1] * offsets[j] - normals[j, 1] * offsets[i]
    second = normals[j, 0] * offsets[i] - normals[i, 0] * offsets[j]
    return np.vstack([feet, np.stack([first, second], 1) / determinant[:, None]])

"""Two classes of a data set as a task, and the hyperplanes that descent is held against: the SVMs, the front.

Every margin is exact: ``y (w.x + b) / |w|``, in double precision.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

import jaxmargin as jm
from jaxmargin.lab.data.loading import Dataset, Split, scaled
from runs.case_study.front import Front, pareto_front, spaced
from runs.case_study.svm import Direction, hard_margin_svm, linear_margins, mean_difference

__all__ = [
    "Classifier",
    "Task",
    "apart",
    "apply_fn",
    "at",
    "classifier",
    "front_of",
    "package_difference",
    "references",
    "scikit_learn_distance",
    "signed_rows",
    "two_classes",
]

Array = NDArray[np.float64]


class Task(NamedTuple):
    """Two classes of a data set: points in [0, 1] and labels -1 (the first class) or +1 (the second)."""

    train_xs: Array  # [n, p]
    train_ys: Array  # [n]
    test_xs: Array  # [m, p]
    test_ys: Array  # [m]


class Classifier(NamedTuple):
    """A row of the study: a label, the classifier (w, b), and its exact margins on both splits."""

    label: str
    direction: Direction
    train: Array
    test: Array


def two_classes(dataset: Dataset, classes: tuple[int, int]) -> Task:
    """Picks two classes and scales their pixels to [0, 1].

    Args:
      dataset: From ``jaxmargin.lab.data.load``.
      classes: The class called -1 and the class called +1.

    Returns:
      The ``Task``, with images flattened to p numbers in double precision.

    Raises:
      ValueError: For the same class twice, or one that the data set does not have.
    """
    first, second = classes
    if first == second:
        raise ValueError(f"classes={first} {second} are the same: pass two that differ, such as --classes 0 1")
    if not all(0 <= label < dataset.num_classes for label in classes):
        raise ValueError(f"classes={first} {second}: {dataset.name} has the classes 0 to {dataset.num_classes - 1}")

    def part(split: Split) -> tuple[Array, Array]:
        chosen = np.isin(split.labels, classes)
        xs = scaled(split.images[chosen], dataset.scale, np.float64).reshape(int(chosen.sum()), -1)
        return xs, np.where(split.labels[chosen] == second, 1.0, -1.0)

    return Task(*part(dataset.train), *part(dataset.test))


def signed_rows(xs: Array, ys: Array) -> Array:
    """The rows z = y (x, 1) [n, p + 1]."""
    return ys[:, None] * np.hstack([xs, np.ones((len(xs), 1))])


def apply_fn(params: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """The two logits (-s/2, s/2) of the classifier s = w.x + b, for the measurements of the package."""
    w, b = params
    logit = x @ w + b
    return jnp.stack([-logit, logit]) / 2


def classifier(label: str, direction: Direction, task: Task) -> Classifier:
    """A row of the study, with its margins from the closed form in double precision."""
    train, test = linear_margins(*direction, *task[:2]), linear_margins(*direction, *task[2:])
    return Classifier(label, direction, train, test)


def at(label: str, v: NDArray[np.float32], task: Task) -> Classifier:
    """The row of a descent at v = (w, b)."""
    return classifier(label, Direction(v[:-1].astype(np.float64), float(v[-1])), task)


def references(task: Task) -> tuple[dict[str, Classifier], dict[str, Any]]:
    """The two SVMs and the mean difference.

    Args:
      task: The points.

    Returns:
      Rows by name ("penalised", "free", "mean"), and the ``KKT`` residuals and support sizes of the SVMs, flat.

    Raises:
      NotSeparableError: For classes that no hyperplane separates.
    """
    rows: dict[str, Classifier] = {}
    checks: dict[str, Any] = {}
    biases: tuple[Literal["penalised", "free"], ...] = ("penalised", "free")
    for bias in biases:
        svm = hard_margin_svm(*task[:2], bias=bias)
        rows[bias] = classifier(f"SVM, bias {bias}", Direction(svm.w, svm.b), task)
        checks |= {f"svm_{bias}_{name}": value for name, value in svm.kkt._asdict().items()}
        checks[f"svm_{bias}_support"] = len(svm.support)
    rows["mean"] = classifier("mean difference", mean_difference(*task[:2]), task)
    return rows, checks


def scikit_learn_distance(task: Task, svm: Classifier) -> float:
    """The distance between the directions of a free-bias SVM and of scikit-learn's, |w/|w| - w'/|w'||."""
    from sklearn.svm import SVC

    return apart(svm.direction.w, SVC(kernel="linear", C=1e6, tol=1e-7).fit(*task[:2]).coef_[0])


def package_difference(task: Task, rows: Iterable[Classifier]) -> float:
    """The largest difference on the test points between the closed form and the package's ``linear_margin``."""
    measure = jm.over_batch(jm.linear_margin, apply_fn, norm=jm.l2)
    xs, ys = jnp.asarray(task.test_xs, jnp.float32), jnp.asarray(task.test_ys > 0, jnp.int32)
    largest = 0.0
    for row in rows:
        size = np.linalg.norm(row.direction.w)  # lengths near 1 suit single precision
        params = jnp.asarray(row.direction.w / size, jnp.float32), jnp.float32(row.direction.b / size)
        margins = np.asarray(measure(params, jax.random.key(0), xs, ys).margin)
        largest = max(largest, float(np.abs(margins - row.test).max()))
    return largest


def front_of(task: Task, rows: Mapping[str, Classifier], num_points: int) -> tuple[Front, dict[str, float]]:
    """The exact front over the range of the rows' minimum margins, and its average at each of them.

    Args:
      task: The points.
      rows: Classifiers, one of them ``"free"``, the free-bias SVM.
      num_points: Points of the front beside those of the rows.

    Returns:
      The ``Front``, and for each row the largest average that a classifier with its minimum margin can have.
    """
    largest = rows["free"].train.min()
    minimums = {name: min(float(row.train.min()), largest) for name, row in rows.items()}
    wanted = np.union1d(spaced(min(minimums.values()), largest, num_points), list(minimums.values()))
    front = pareto_front(*task[:2], minimums=wanted)
    return front, {name: float(front.average[np.searchsorted(wanted, m)]) for name, m in minimums.items()}


def apart(w: Array, other: Array) -> float:
    """The distance of two directions, |w/|w| - o/|o||."""
    return float(np.linalg.norm(w / np.linalg.norm(w) - other / np.linalg.norm(other)))

"""What a trained classifier of the MMA study, or an ensemble of them, is measured by; files keep what is finished."""

import functools
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.attacks import minimum_norm
from jaxmargin.brackets import contradicts
from jaxmargin.lab import files
from jaxmargin.lab.data.loading import Dataset, margin_points
from jaxmargin.lab.resuming import Stopwatch
from jaxmargin.lab.robustness import BOX, bounds, broken_in_the_worst_case
from jaxmargin.lab.stages import Arrays, lifted, measure
from jaxmargin.lab.training import evaluator
from jaxmargin.lipschitz import lipschitz_margin
from jaxmargin.losses import logit_margin, soft_logit_margin
from jaxmargin.margins import Margins
from jaxmargin.norms import l2
from runs.mma.cell import NORMS, RobustCell

__all__ = ["MOMENTS", "STAGES", "Evaluation", "mean_distance"]

# Shares of the training after which distances are measured, for Figure 4.
MOMENTS = (0.1, 0.4, 0.7, 1.0)
STAGES = ("distance", "worst", "margin", "bounds", "plane")  # each has its own random numbers
# The grid of a loss landscape has so many places a side, and reaches so many times the largest epsilon.
_GRID, _REACH = 41, 2.0


@functools.cache
def _heights(apply_fn: Callable[[Any, jax.Array], jax.Array]) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """(params, xs [m, *d], y) -> the soft margin loss and the logit margin at each, [m] both."""

    def one(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = apply_fn(params, x)
        return -soft_logit_margin(logits, y), logit_margin(logits, y)

    return jax.jit(lambda params, xs, y: jax.lax.map(lambda x: one(params, x, y), xs, batch_size=_GRID))


def mean_distance(distance: np.ndarray) -> float:
    """The mean of the distances found.

    Args:
      distance: [n], infinite where nothing was found.

    Returns:
      A number; NaN where nothing was found at all.
    """
    finite = distance[np.isfinite(distance)]
    return float(finite.mean()) if len(finite) else math.nan


class Evaluation:
    """The measures of one classifier; they find in the folder what an earlier run left.

    Args:
      cell: its settings.
      data: its data set.
      folder: keeps everything.
      apply_fn: (params, x [*d]) -> logits [c].
      clock: gets the stages.
      keys: one for each of STAGES.
    """

    def __init__(
        self,
        cell: RobustCell,
        data: Dataset,
        folder: Path,
        apply_fn: Callable[[Any, jax.Array], jax.Array],
        clock: Stopwatch,
        keys: dict[str, jax.Array],
    ) -> None:
        self.cell, self.data, self.folder, self.apply_fn = cell, data, folder, apply_fn
        self.clock, self.keys, self.norm = clock, keys, NORMS[cell.norm]
        self.nearest = lifted(minimum_norm, apply_fn, norm=self.norm, num_steps=cell.nearest_steps, box=BOX)
        self.attacked = self._inputs(slice(cell.attack_points))
        self.index = margin_points(len(data.test.labels), cell.points)

    def _inputs(self, chosen: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = self.data.test
        return np.asarray(images[chosen], np.float32) / self.data.scale, np.asarray(labels[chosen])

    def distances(self, params: Any, share: float) -> np.ndarray:
        """Distances of the attacked images to the nearest misclassified input in the box, 0 where wrong, [n]."""
        key = jax.random.fold_in(self.keys["distance"], round(100 * share))
        with self.clock.stage("distance"):
            return measure(
                self.nearest, params, key, *self.attacked, path=self._moment(share),
                label=f"{self.cell.name} distances at {share:.0%}", fields=("distance",),
            )["distance"]  # fmt: skip

    def _moment(self, share: float) -> Path:
        return self.folder / f"moment-{share:g}.npz"

    def arrays(self, params: Any) -> Arrays:
        """Everything that is kept point by point."""
        shares = [share for share in MOMENTS if self._moment(share).exists()] or [MOMENTS[-1]]
        found = [self.distances(params, share) for share in shares]
        with self.clock.stage("worst_case"):
            broken = broken_in_the_worst_case(
                self.apply_fn, params, self.keys["worst"], *self.attacked, epsilons=self.cell.epsilons,
                num_steps=self.cell.worst_case_steps, before=found[-1][:, None] <= np.asarray(self.cell.epsilons),
                folder=self.folder, label=self.cell.name, norm=self.norm,
            )  # fmt: skip
        return {
            "moments": np.asarray(shares), "distance": np.stack(found), "broken": broken,
            **self._brackets(params), **self._landscape(params, found[-1]),
        }  # fmt: skip

    def _brackets(self, params: Any) -> Arrays:
        """Estimated, certified and attacked distances of the same test points, none of which knows the box."""
        cell = self.cell
        xs, ys = self._inputs(self.index)
        sampled: dict[str, Any] = dict(norm=self.norm, radius=cell.radius, num_samples=cell.num_samples, batch_size=1)
        estimate = lifted(lipschitz_margin, self.apply_fn, **sampled)
        with self.clock.stage("margins"):
            margins = measure(
                estimate, params, self.keys["margin"], xs, ys,
                path=self.folder / "margins.npz", label=f"{cell.name} margins", fields=Margins._fields,
            )  # fmt: skip
        with self.clock.stage("bounds"):
            found = bounds(
                self.apply_fn, params, self.keys["bounds"], xs, margins["predicted"], radius=cell.radius,
                num_steps=cell.nearest_steps, folder=self.folder, label=cell.name, norm=self.norm,
            )  # fmt: skip
        return {"index": self.index, "margin": margins["margin"], **found}

    def _landscape(self, params: Any, distance: np.ndarray) -> Arrays:
        """Loss and margin in a plane through the first image that is right: along its attack, and at random."""
        chosen = np.flatnonzero((distance > 0) & np.isfinite(distance))[:1]
        if not len(chosen):
            return {}
        x, y = (array[chosen] for array in self.attacked)
        with self.clock.stage("landscape"), jax.default_matmul_precision("float32"):
            nearest = self.nearest(params, jax.random.fold_in(self.keys["plane"], 0), x, y)
            if not nearest.found[0]:
                return {}
            along = nearest.x_adv[0] - x[0]
            other = jax.random.normal(jax.random.fold_in(self.keys["plane"], 1), along.shape)
            along = along / l2.size(along)
            other = other - jnp.vdot(other, along) * along
            ends = _REACH * self.cell.epsilons[-1] * np.linspace(-1, 1, _GRID)
            lengths = np.asarray(ends, np.float32)[:, None, None, None]
            first, second = (lengths * (vector / self.norm.size(vector))[None] for vector in (along, other))
            places = (x[None] + first[:, None] + second[None]).reshape(-1, *along.shape)
            heights = _heights(self.apply_fn)(params, places, y[0])
        loss, margin = (np.asarray(height).reshape(_GRID, _GRID) for height in heights)
        return {"plane_image": chosen, "plane_ends": ends, "plane_loss": loss, "plane_margin": margin}

    def card(self, params: Any, arrays: Arrays) -> dict[str, Any]:
        """The result card."""
        cell, data = self.cell, self.data
        _, error = evaluator(self.apply_fn, scale=data.scale)(params, *map(jnp.asarray, data.test))
        robust = (1 - arrays["broken"].mean(0)).tolist()
        clean = 1 - float(error)
        distance = arrays["distance"][-1]
        estimated, attacked = np.abs(arrays["margin"]), arrays["attacked"]
        shows_layers = getattr(self.apply_fn, "layers", None) is not None  # without them nothing can be certified
        return asdict(cell) | {
            "n_train": len(data.train.labels) - cell.validation,
            "n_test": len(data.test.labels),
            "n_attack": len(self.attacked[1]),
            "n_margin": cell.points,
            "clean_accuracy": clean,
            "robust_accuracy": robust,
            "average_robust_accuracy": float(np.mean(robust)),
            "average_accuracy": float(np.mean([clean, *robust])),
            "average_distance": mean_distance(distance),
            "distance_quartiles": np.quantile(distance, (0.25, 0.5, 0.75), method="inverted_cdf").tolist(),
            "not_found": int(np.sum(~np.isfinite(distance))),
            "average_margin": float(np.mean(estimated)),
            "average_certified": float(np.mean(arrays["certified"])) if shows_layers else None,
            "average_attacked": float(np.mean(attacked)),
            "contradicted_fraction": float(np.mean(contradicts(estimated, attacked))),
            "device": files.device_name(),
            "versions": files.versions(),
            "seconds": self.clock.seconds(),
        }

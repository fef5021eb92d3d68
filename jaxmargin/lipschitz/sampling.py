"""How a ball is sampled: the options that measures hand on, and chunks of samples that keep a device busy."""

from typing import NamedTuple

import jax

from jaxmargin import checks
from jaxmargin.norms import Norm, l2
from jaxmargin.types import Box
from jaxmargin.xla_cpu import on_cpu
from jaxmargin.xla_cpu.rows import stable_rows

__all__ = ["Sampling", "default_chunk_size"]

# Entries of a chunk of samples held at once when the caller names no chunk_size: 64 MiB of float32.
_CHUNK_ENTRIES = 2**24


class Sampling(NamedTuple):
    """How balls are sampled, made once from the options of a measure.

    Attributes:
      norm: the norm that measures the ball; gradients are measured by its dual.
      radius: of the ball, in units of the input.
      num_samples: number of points in each ball.
      chunk_size: points held in memory at once, a divisor of num_samples; None chooses one.
      box: (low, high) clips the points to valid inputs; None samples the whole ball.
      precision: of matrix products and convolutions, as in ``jax.default_matmul_precision``.
      exact: whether all classes see all samples.
      tolerance: in units of the input; sampling stops where the margin is not expected to fall by more. None goes on.
      axis_name: of a mapped axis whose devices share the samples among them.
    """

    norm: Norm = l2
    radius: float | jax.Array = 5.0
    num_samples: int = 51_200
    chunk_size: int | None = None
    box: Box | None = None
    precision: str = "float32"
    exact: bool = False
    tolerance: float | None = None
    axis_name: str | None = None

    def rows(self, entries: int) -> tuple[int, int]:
        """Samples looked at together, and the fewest that ever are, for inputs of so many entries.

        Chunks of fewer points than ``stable_rows`` are filled up with repeated ones.

        Raises:
          ValueError: an option that is none.
        """
        checks.positive("radius", self.radius)
        checks.whole("num_samples", self.num_samples)
        checks.box(self.box)
        checks.precision(self.precision)
        if self.tolerance is not None:
            checks.positive("tolerance", self.tolerance)
        chunk_size = default_chunk_size(self.num_samples, entries) if self.chunk_size is None else self.chunk_size
        checks.whole("chunk_size", chunk_size)
        checks.divisible("num_samples", self.num_samples, "chunk_size", chunk_size)
        least = stable_rows(entries) if stable_rows(entries) * entries <= _CHUNK_ENTRIES else 1
        return max(chunk_size, least), least


def default_chunk_size(num_samples: int, entries: int, *, name: str = "num_samples") -> int:
    """The largest divisor of num_samples that keeps the device busy and its samples, ``entries`` each, small.

    Args:
      num_samples: number of samples.
      entries: numbers in one sample, the size of the input.
      name: what the caller's argument is called.

    Returns:
      A divisor of num_samples: at most 256 on a CPU, whose caches are small, and 1,024 elsewhere.

    Raises:
      ValueError: num_samples is (nearly) prime, so that only tiny chunks would divide it.

    >>> default_chunk_size(51_200, 784) % 64
    0
    """
    rows = 256 if on_cpu() else 1024
    most = max(1, min(rows, _CHUNK_ENTRIES // entries, num_samples))
    size = next(size for size in range(most, 0, -1) if num_samples % size == 0)
    if size < most / 8:
        raise ValueError(
            f"{name}={num_samples} has no divisor between {-(-most // 8)} and {most} to be a chunk_size: pass"
            f" {name}={-(-num_samples // most) * most}"
        )
    return size

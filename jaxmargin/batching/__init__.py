"""Many examples: the one place that maps a measure over them, in chunks, on one device or several, and compiles it."""

from jaxmargin.batching.measurement import Measurement, over_batch

__all__ = ["Measurement", "over_batch"]

"""The data sets, as arrays in the order of the official files."""

from jaxmargin.lab.data.loading import Dataset, Split, load, margin_points, scaled, spread_points

__all__ = ["Dataset", "Split", "load", "margin_points", "scaled", "spread_points"]

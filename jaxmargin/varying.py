"""Inside of ``jax.shard_map`` a value knows the axes it varies over, and a loop or a branch has to begin with them."""

import functools
from typing import Any, TypeVar

import jax

__all__ = ["axes_of", "varying"]

Tree = TypeVar("Tree")


def axes_of(*trees: Any) -> frozenset[str]:
    """The axes of shard_map over which any leaf varies; none outside of it.

    Args:
      *trees: of arrays or of their avals.

    Returns:
      The names of the axes.
    """
    return frozenset().union(*(_axes(leaf) for leaf in jax.tree.leaves(trees)))


def varying(tree: Tree, axes: frozenset[str]) -> Tree:
    """The same values, of which shard_map believes that they vary over some axes.

    Args:
      tree: of arrays.
      axes: from ``axes_of`` what they will become.

    Returns:
      The tree, itself where there are no axes.
    """
    if not axes:
        return tree

    pcast: Any = getattr(jax.lax, "pcast", None)  # before jax 0.8: pvary
    cast = functools.partial(pcast, to="varying") if pcast else getattr(jax.lax, "pvary")  # noqa: B009

    def mark(leaf: Any) -> Any:
        missing = tuple(sorted(axes - _axes(leaf)))
        try:
            return cast(leaf, missing) if missing else leaf
        except ValueError:  # under vmap a leaf may not show the axes that it has
            return leaf

    marked: Tree = jax.tree.map(mark, tree)
    return marked


def _axes(leaf: Any) -> frozenset[str]:
    kind: Any = leaf if isinstance(leaf, jax.core.ShapedArray | jax.ShapeDtypeStruct) else jax.typeof(leaf)
    kind = getattr(kind, "manual_axis_type", kind)
    found: frozenset[str] = getattr(kind, "varying", None) or getattr(kind, "vma", None) or frozenset()
    return found

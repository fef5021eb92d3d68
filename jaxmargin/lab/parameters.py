"""Parameters of a network as .npz files that numpy opens: one array a leaf, named by its path in the tree."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmargin.lab import files

__all__ = ["read_params", "write_params"]


def write_params(path: Path, params: Any) -> Path:
    """Writes a tree of arrays.

    Args:
      path: the .npz file.
      params: the tree.

    Returns:
      path.
    """
    return files.write_arrays(path, {name: np.asarray(leaf) for name, leaf in _named(params)})


def read_params(path: Path, like: Any) -> Any:
    """Reads a tree of arrays back.

    Args:
      path: the .npz file.
      like: a tree of the same structure and shapes, such as ``jax.eval_shape(model.init, key)``.

    Returns:
      The tree.

    Raises:
      ValueError: the file holds other names or shapes.
    """
    arrays, expected = files.read_arrays(path), dict(_named(like))
    if {name: array.shape for name, array in arrays.items()} != {name: leaf.shape for name, leaf in expected.items()}:
        raise ValueError(f"{path} holds the parameters of another network: remove it")
    return jax.tree.unflatten(jax.tree.structure(like), [jnp.asarray(arrays[name]) for name in expected])


def _named(tree: Any) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]

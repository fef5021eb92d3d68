"""Checkpoints of a training state: the only file that knows Orbax."""

import shutil
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxmargin.lab import files, manifests
from jaxmargin.lab.files import Record
from jaxmargin.lab.training import TrainState

__all__ = ["Checkpoints"]


_RECORDS = "records.jsonl"


class Checkpoints:
    """The last states of one training run, by epoch, in one folder, and what was logged before each.

    A save is there whole or not at all; one that is no longer what was saved is found out before it is read.

    Args:
      folder: where they lie; made if missing.
      keep: how many to keep.
    """

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder = folder.absolute()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, enable_async_checkpointing=False, cleanup_tmp_directories=True
        )
        handler = ocp.StandardCheckpointHandler()
        self._manager = ocp.CheckpointManager(self.folder, options=options, item_handlers=handler)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *error: object) -> None:
        self._manager.close()

    def latest(self) -> int | None:
        """The last epoch whose state is intact, or None; a damaged one is removed, and a warning names it."""
        for epoch in sorted(self._manager.all_steps(), reverse=True):
            try:
                manifests.check_folder(self.path(epoch))
                return int(epoch)
            except manifests.DamagedError as error:
                warnings.warn(f"{error.path} is damaged ({error.why}): what was saved before it is used", stacklevel=2)
            self._remove(epoch)
        return None

    def path(self, epoch: int) -> Path:
        """The folder of one epoch's state."""
        return self.folder / str(epoch)

    def save(self, epoch: int, state: TrainState, records: Iterable[Record] = ()) -> None:
        """Saves the state after an epoch.

        Args:
          epoch: counted from 1.
          state: the training state.
          records: what was logged before.
        """
        self._manager.save(epoch, args=ocp.args.StandardSave(_with_key_data(state)), force=True)
        files.write_records(self.path(epoch) / _RECORDS, records)
        manifests.seal(self.path(epoch))

    def go_back(self, epoch: int) -> None:
        """Removes what was saved after an epoch."""
        for later in self._manager.all_steps():
            if later > epoch:
                self._remove(later)

    def records(self, epoch: int) -> list[Record]:
        """What was logged before a saved epoch."""
        return files.read_records(self.path(epoch) / _RECORDS)

    def restore(self, epoch: int, like: TrainState) -> TrainState:
        """Reads a state back.

        Args:
          epoch: a saved epoch.
          like: a state of the same structure, shapes and dtypes.

        Returns:
          The saved state.

        Raises:
          ValueError: what was saved has other shapes or dtypes.
        """
        target = jax.tree.map(_host, jax.eval_shape(_with_key_data, like))
        # Orbax casts and pads silently, so what lies there is held against what is expected before it is read.
        if _signature(self._manager.item_metadata(epoch).tree) != _signature(target):
            raise ValueError(f"{self.path(epoch)} holds a state of another shape or dtype: remove it")
        saved: TrainState = self._manager.restore(epoch, args=ocp.args.StandardRestore(target))
        # Where fresh states are, and as free to move: another place would compile every program again.
        saved = jax.device_put(saved)
        return saved._replace(key=jax.random.wrap_key_data(saved.key))

    def _remove(self, epoch: int) -> None:
        path = self.path(epoch)
        if path.is_symlink():
            path.unlink()
        else:
            shutil.rmtree(path)
        self._manager.reload()


def _host(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
    """An array of numpy, which is read whatever devices wrote it."""
    return np.empty(leaf.shape, leaf.dtype)


def _signature(tree: Any) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of all leaves, in an order that does not depend on how the tree is nested."""
    return sorted((tuple(leaf.shape), str(leaf.dtype)) for leaf in jax.tree.leaves(tree) if hasattr(leaf, "shape"))


def _with_key_data(state: TrainState) -> TrainState:
    """Typed keys as the integers inside them, which is what is written."""
    return state._replace(key=jax.random.key_data(state.key))

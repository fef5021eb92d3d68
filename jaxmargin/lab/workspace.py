"""The folder of one cell: what its stages made, each kept and timed, and the lines logged while it trained."""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxmargin.batching.measurement import Measurement
from jaxmargin.lab import files, manifests, provenance
from jaxmargin.lab.cards import THEN, Stage
from jaxmargin.lab.files import Arrays
from jaxmargin.lab.measuring import if_intact, measure

__all__ = ["Workspace"]

SetupOf = TypeVar("SetupOf")


class Workspace:
    """Keeps everything that a cell has finished, so that a run that was cut, at any moment, continues where it was.

    ``NAME.npz`` is the result of a stage, ``measures/NAME.npz`` that of one measure within a stage, ``stages.json``
    what the stages took, over all the pieces the run was cut into, ``metrics.jsonl`` what training logged, and
    ``params.npz`` what it ended with.

    Args:
      folder: where all of it lies.
      label: names the cell in messages and on progress bars.
    """

    def __init__(self, folder: Path, label: str) -> None:
        self.folder, self.label = folder, label
        self.metrics, self.params = folder / "metrics.jsonl", folder / "params.npz"

    def run(self, stage: Callable[[SetupOf, Any], Arrays], setup: SetupOf, params: Any) -> Arrays:
        """The arrays of a stage: made and timed once, and only read from then on.

        Args:
          stage: (setup, params) -> arrays; its name names the file and the time.
          setup: what the stages of the cell start from.
          params: of the trained classifier.

        Returns:
          The arrays by name.
        """
        path = self.folder / f"{stage.__name__}.npz"
        if (kept := if_intact(path)) is not None:
            return kept
        with self.timed(stage.__name__):
            arrays = stage(setup, params)
        files.write_arrays(path, arrays)
        return arrays

    def measure(
        self,
        run: Measurement[Any],
        params: Any,
        key: jax.Array,
        xs: np.ndarray,
        ys: np.ndarray,
        *,
        name: str | None,
        said: str,
        fields: tuple[str, ...] | None = None,
        **values: float,
    ) -> Arrays:
        """Measures examples, or reads what was measured under that name; a cut measurement continues.

        Args:
          run: a measure lifted by ``over_batch``.
          params: parameters of the classifier.
          key: a PRNG key.
          xs: [n, *d] inputs.
          ys: [n] classes.
          name: of the measure; None keeps nothing.
          said: what the progress bar says.
          fields: of the measure's result, the ones to keep; None keeps all.
          **values: options of the measure that were left open.

        Returns:
          The fields by name, arrays of length n.
        """
        path = self.measured(name) if name else None
        label = f"{self.label} {said}"
        return measure(run, params, key, xs, ys, path=path, label=label, fields=fields, **values)

    def measured(self, name: str) -> Path:
        """The file of a measure, which is there once it is finished."""
        return self.folder / "measures" / f"{name}.npz"

    def check(self, name: str) -> None:
        """Refuses a measure whose file is missing (FileNotFoundError) or damaged (DamagedError)."""
        manifests.read(self.measured(name))

    def stages(self) -> dict[str, Stage]:
        """What each stage took so far."""
        path = self.folder / "stages.json"
        try:
            return files.read_json(path) if path.exists() else {}
        except files.DamagedError as error:
            warnings.warn(f"{path} is damaged ({error.why}): what stages take is counted from here on", stacklevel=2)
            return {}

    def moved(self) -> list[str]:
        """What is no longer as it was when earlier stages ran, in words: device, versions or commit."""
        words: dict[str, None] = {}
        for stage in self.stages().values():
            there = _by_name(stage)
            for name, value in _by_name(_here()).items():
                before = there.get(name)
                if before and value and value not in before.split(THEN):
                    words[f"{name} {before} (now {value})"] = None
        return [*words]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Adds the time until the end of the ``with`` block to a stage, and says where it was spent.

        Args:
          name: of the stage.
        """
        start = time.monotonic()
        try:
            yield
        finally:
            stages = self.stages()
            before = stages.get(name, {"seconds": 0.0, "device": None, "versions": None})
            now = _here()
            stages[name] = {
                "seconds": round(before["seconds"] + time.monotonic() - start, 3),
                "device": _also(before["device"], now["device"]),
                "versions": {
                    package: _also((before["versions"] or {}).get(package), version) or version
                    for package, version in now["versions"].items()
                },
                "commit": _also(before.get("commit"), now["commit"]),
            }
            files.write_json(self.folder / "stages.json", stages)


def _here() -> dict[str, Any]:
    return dict(device=provenance.device_name(), versions=provenance.versions(), commit=provenance.commit())


def _by_name(where: Mapping[str, Any]) -> dict[str, str | None]:
    """Device, commit and each package's version."""
    return {"device": where["device"], "commit": where.get("commit"), **(where["versions"] or {})}


def _also(before: str | None, now: str | None) -> str | None:
    """Both, in order, where a stage was cut and went on elsewhere."""
    if before is None or now is None or now in before.split(THEN):
        return before or now
    return f"{before}{THEN}{now}"

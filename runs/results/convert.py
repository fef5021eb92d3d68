"""Gives the files of a workdir the names of today: ``python -m runs.results.convert out/paper-digits``.

Names of schema 1 said two things at once: ``average_margin`` was signed in metrics.jsonl and unsigned in cards, and
``robust_accuracy`` was under the published attack in one study and in the worst case in another. Numbers stay what they
are, to the last digit; what was not recorded then (the commit, and the device and versions of a single stage) is null.
"""

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxmargin.lab import command_line, files
from jaxmargin.lab.cards import SCHEMA

__all__ = ["convert", "main"]

Names = Mapping[str, str]

STAGES: Names = {"attack": "published", "distance": "nearest"}
PAPER_CARD: Names = {
    "robust_accuracy": "robust_accuracy_published", "worst_case_accuracy": "robust_accuracy_worst",
    "average_margin": "average_distance", "average_margin_signed": "average_margin",
    "train_average_margin": "train_average_distance", "train_average_margin_signed": "train_average_margin",
}  # fmt: skip
MMA_CARD: Names = {
    "robust_accuracy": "robust_accuracy_worst", "average_robust_accuracy": "average_robust_accuracy_worst",
    "average_distance": "average_nearest", "distance_quartiles": "nearest_quartiles",
    "average_margin": "average_distance",
}  # fmt: skip
PUBLISHED = {
    "paper": {"robust_accuracy": "robust_accuracy_published", "average_margin": "average_distance"},
    "mma": {"robust_accuracy": "robust_accuracy_published", "average_distance": "average_nearest"},
}
RECORDS: Names = {
    "train_average_margin_unsigned": "train_average_distance", "test_average_margin_unsigned": "test_average_distance",
    "average_distance": "average_nearest",
}  # fmt: skip
ARRAYS = {
    "paper": {"test_certified": "certified", "test_attacked": "attacked"},
    "mma": {"distance": "nearest", "broken": "found_worst"},
}
# What cells keep while they run: a pattern, and the place of today.
MEASURES = {
    r"attack(\.npz|\.part)": r"published\1", r"worst-(.*)": r"worst_case-\1", r"moment-(.*)": r"nearest-\1",
    r"((?:margins|certified|attacked)[-\d\w]*\.(?:npz|part))": r"\1",
}  # fmt: skip


def convert(folder: Path) -> int:
    """Converts a workdir, or a folder of results; what is converted already is left alone.

    Args:
      folder: the workdir, with cells or, as of runs.ablations, with workdirs of its own.

    Returns:
      How many cards were converted.
    """
    _enter(folder)
    paths = [*folder.rglob("cards/*.json"), *folder.rglob("result.json")]
    old = [path for path in sorted(paths) if "schema" not in files.read_json(path)]
    for path in old:
        if (points := path.with_suffix(".npz")).exists():
            names = ARRAYS[_study(files.read_json(path))]
            files.write_arrays(points, _renamed(files.read_arrays(points), names))
        _write(path, _card)
    for path in folder.rglob("metrics.jsonl"):
        files.write_records(path, [_record(record) for record in files.read_records(path)])
    for path in folder.rglob("seconds.json"):
        _write(path, _stages).rename(path.with_name("stages.json"))
        _move_measures(path.parent)
    for path in folder.rglob("settings.json"):
        _write(path, lambda settings: {"schema": SCHEMA} | settings)
    for path in folder.rglob("ranking.md"):
        said = path.read_text().replace("| average margin |", "| average distance |")
        files.write_bytes(path, said.encode())
        if not path.with_name("result.json").exists():  # which says of what study a folder is
            files.write_json(path.with_name("result.json"), _question(path.parent))
    return len(old)


def _enter(folder: Path) -> None:
    """Enters what has no line yet in the manifests, as it is."""
    for suffix in files.FORMATS:
        for path in folder.rglob(f"*{suffix}"):
            if "checkpoints" not in path.relative_to(folder).parts:
                files.copy(path, path)


def _write(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    return files.write_json(path, change(files.read_json(path)))


def _study(card: Mapping[str, Any]) -> str:
    return str(card.get("study", "mma" if "norm" in card else "paper"))


def _card(card: dict[str, Any]) -> dict[str, Any]:
    study, rest = _study(card), dict(card)
    spent, device, versions = (rest.pop(name) for name in ("seconds", "device", "versions"))
    total = {"seconds": spent.pop("total")} if "total" in spent else {}
    rest = _renamed(rest, {"paper": PAPER_CARD, "mma": MMA_CARD}.get(study, {}))
    if rest.get("paper"):
        rest["paper"] = _renamed(rest["paper"], PUBLISHED[study])
    unknown = {"average_margin": None} if study == "mma" else {}
    head = {"study": study, "schema": SCHEMA, "commit": None, "device": device, "versions": versions}
    return head | {"stages": _stages(spent)} | {k: v for k, v in rest.items() if k != "study"} | unknown | total


def _question(folder: Path) -> dict[str, Any]:
    """The card of the question that a folder answers; all variants have one data set, unknown where all diverged."""
    data = [files.read_json(path)["dataset"] for path in sorted(folder.glob("*/cards/*.json"))]
    unknown = {"commit": None, "device": None, "versions": None}
    return {"study": "paper", "schema": SCHEMA, **unknown, "stages": {}, "dataset": data[0] if data else None}


def _stages(seconds: Mapping[str, float]) -> dict[str, Any]:
    return {
        STAGES.get(name, name): {"seconds": spent, "device": None, "versions": None} for name, spent in seconds.items()
    }


def _record(record: dict[str, Any]) -> dict[str, Any]:
    """A line of metrics.jsonl; the signed margins had the name of today."""
    return _renamed(record, RECORDS)


def _renamed(content: Mapping[str, Any], names: Names) -> dict[str, Any]:
    return {names.get(name, name): value for name, value in content.items()}


def _move_measures(cell: Path) -> None:
    """Moves what a cell's stages keep to where those of today look for it."""
    for path in sorted(cell.iterdir()):
        for pattern, place in MEASURES.items():
            if match := re.fullmatch(pattern, path.name):
                (cell / "measures").mkdir(exist_ok=True)
                shutil.move(path, cell / "measures" / match.expand(place))
                break


def main(arguments: list[str] | None = None) -> int:
    """Converts the workdirs named."""
    names = sys.argv[1:] if arguments is None else arguments

    def job() -> None:
        for name in names:
            print(f"{name}: {convert(Path(name))} cards converted")

    return command_line.exit_code(job)


if __name__ == "__main__":
    command_line.end(main())

"""Whether a bit that flips on disk can change a result: ``python -m benchmarks.damage --flips 1000``.

Flips single bits of a finished workdir of ``runs.paper`` and of one that was cut, in its checkpoints, cards, points,
metrics, parameters, stages, measures and manifests, and goes on with each. Every flip must be refused with the name of
the file, be mended (what is damaged is made again, to the same bytes, and a warning names it), or be one of a file that
nothing needs any more. Beside it stands how many of them ``sha256sum -c`` sees by itself. The exit code is 1 where one
changed a result.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from jaxmargin import checks
from jaxmargin.lab import command_line, data, manifests
from jaxmargin.lab.cells import Setup, Study, run_cell
from jaxmargin.lab.compilation import keep_compiled
from jaxmargin.lab.data.loading import Dataset, Split
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.publishing import read_finished
from jaxmargin.lab.report import markdown_table
from jaxmargin.lab.settings import claimed
from runs.paper import presets
from runs.paper.cell import Cell
from runs.paper.stages import STUDY
from runs.paper.tables import place

__all__ = ["Options", "main"]

CELL = replace(
    presets.cell("digits", "mlp", "std", preset="released"), epochs=12, points=4, num_samples=64, attack_points=20,
    attack_steps=5, worst_case_steps=5, nearest_steps=10, epsilons=(0.5, 1.0),
)  # fmt: skip
# What became of a flip.
REFUSED, MENDED, UNREAD, WRONG = "refused", "mended", "not needed", "WRONG"
SEEN = "seen by sha256sum"


@dataclass(frozen=True)
class Options:
    """Flips bits of workdirs and goes on with what is left."""

    flips: int = 1000
    """How many."""
    seed: int = 0
    """Of their places."""


def run(workdir: Path, images: Dataset, study: Study[Cell] = STUDY) -> list[bytes]:
    """Runs the cell to its end, and gives back everything that must not depend on what happened on the way."""
    with claimed(workdir, {CELL.name: asdict(CELL)}):
        run_cell(study, CELL, images, workdir)
        ((card, arrays, records),) = read_finished(workdir, place)
    said = {name: value for name, value in card.items() if name not in ("stages", "commit")}
    kept = (workdir / "cells" / CELL.name / "params.npz", workdir / "cards" / f"{CELL.name}.npz")
    points = [f"{name}: {array.tobytes().hex()}" for name, array in arrays.items()]
    return [json.dumps([said, records, points]).encode(), *(path.read_bytes() for path in kept)]


def cut(workdir: Path, images: Dataset) -> None:
    """Runs the cell until its certificates."""

    def interrupted(setup: Setup[Cell], params: Any) -> NoReturn:
        raise KeyboardInterrupt

    study = STUDY._replace(stages=(*STUDY.stages[:-1], interrupted))
    try:
        run(workdir, images, study)
    except KeyboardInterrupt:
        return


def flip(path: Path, rng: random.Random) -> None:
    """Flips one bit of a file."""
    content = bytearray(path.read_bytes())
    bit = rng.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def kind_of(name: Path) -> str:
    """What a file is, in a word."""
    for folder in ("checkpoints", "measures", "cards"):
        if folder in name.parts:
            return f"{folder}/*{'' if folder == 'checkpoints' else name.suffix or '/' + name.name}"
    return name.name


def outcome(workdir: Path, path: Path, right: list[bytes], images: Dataset) -> str:
    """What becomes of a run whose file was damaged."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = run(workdir, images)
        except ValueError as error:
            return REFUSED if path.name in str(error) else WRONG
    if found != right:
        return WRONG
    return MENDED if any("damaged" in str(one.message) for one in said) else UNREAD


def seen_by_sha256sum(workdir: Path) -> bool:
    """Whether a manifest and its files disagree."""
    check = ["sha256sum", "--check", "--strict", "--status", manifests.NAME]
    return any(subprocess.run(check, cwd=path.parent, check=False).returncode for path in workdir.rglob(check[-1]))


def main() -> int:
    """Prints the table and returns the exit code."""
    options = command_line.parse(Options, None, prog="python -m benchmarks.damage")
    checks.whole("flips", options.flips)
    whole, rng, start = data.load("digits"), random.Random(options.seed), time.monotonic()
    train, test = (Split(split.images[:n], split.labels[:n]) for split, n in ((whole.train, 200), (whole.test, 50)))
    images = whole._replace(train=train, test=test)
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    with tempfile.TemporaryDirectory() as folder:
        finished, unfinished, victim = (Path(folder) / name for name in ("finished", "cut", "victim"))
        right = run(finished, images)
        cut(unfinished, images)
        for number in tqdm(range(options.flips), unit="flip"):
            base = (finished, unfinished)[number % 2]
            groups: dict[str, list[Path]] = defaultdict(list)
            for path in sorted(base.rglob("*")):
                if path.is_file() and path.stat().st_size:
                    groups[kind_of(path.relative_to(base))].append(path)
            kind = rng.choice(sorted(groups))
            name = rng.choice(groups[kind]).relative_to(base)
            shutil.copytree(base, victim)
            flip(victim / name, rng)
            counts[kind][SEEN] += seen_by_sha256sum(victim)
            seen = outcome(victim, victim / name, right, images)
            if seen == WRONG:
                print(f"{base.name}/{name}: {seen}", file=sys.stderr)
            counts[kind][seen] += 1
            shutil.rmtree(victim)
    outcomes = (REFUSED, MENDED, UNREAD, WRONG)
    rows: list[dict[str, Any]] = [
        {"file": kind, "flips": seen.total() - seen[SEEN], **{name: seen[name] for name in (*outcomes, SEEN)}}
        for kind, seen in sorted(counts.items())
    ]
    rows.append({"file": "all", **{name: sum(row[name] for row in rows) for name in list(rows[0])[1:]}})
    print(f"{device_name()}, {time.monotonic() - start:.0f} s\n\n{markdown_table(rows)}")
    return int(any(seen[WRONG] for seen in counts.values()))


if __name__ == "__main__":
    keep_compiled()
    sys.exit(main())

"""Whether a run that is killed at any moment ends as one that is not: ``python -m benchmarks.kills --kills 50``.

Starts one cell of ``runs.paper`` on the digits, kills it at a random moment (by SIGKILL, with ``--term`` by SIGTERM),
goes on with it, and holds the table, the points, the parameters, the metrics and the card, apart from what its stages
took, against those of a run that nobody stopped. By SIGTERM it must also be gone within ten seconds, with exit code 143
and one line on how to continue. The exit code is 1 where that is not so.
"""

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from jaxmargin import checks
from jaxmargin.lab import command_line, files
from jaxmargin.lab.interruptions import SAID
from jaxmargin.lab.provenance import device_name
from jaxmargin.lab.report import markdown_table

__all__ = ["Options", "main"]

NAME = "digits-mlp-std-seed0"
QUICK = ["--models", "mlp", "--methods", "std", "--epochs", "40", "--num-samples", "64", "--points", "8"]
QUICK += ["--attack-steps", "20", "--attack-points", "200", "--worst-case-steps", "10", "--epsilons", "0.5", "1"]
# The last file of a stage, from the last stage on.
STAGES = {
    "publishing": f"cards/{NAME}.json", "certificates": f"cells/{NAME}/margins.npz",
    "attack": f"cells/{NAME}/params.npz", "tracking and training": "settings.json",
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Kills runs and goes on with them."""

    kills: int = 50
    """How many."""
    seed: int = 0
    """Of the moments."""
    term: bool = False
    """By SIGTERM, not by SIGKILL."""


def start(workdir: Path) -> subprocess.Popen[str]:
    """The job in a process of its own."""
    command = [sys.executable, "-m", "runs.paper", *QUICK, "--workdir", str(workdir)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def results(workdir: Path) -> list[bytes]:
    """Everything that must not depend on what happened on the way."""
    card = files.read_json(workdir / "cards" / f"{NAME}.json")
    card.pop("stages")
    kept = [f"cells/{NAME}/params.npz", f"cells/{NAME}/metrics.jsonl", f"cards/{NAME}.npz", "metrics.jsonl", "table.md"]
    return [(workdir / path).read_bytes() for path in kept] + [json.dumps(card).encode()]


def finish(workdir: Path) -> str:
    """Runs the job to its end; its errors, "" for none."""
    process = start(workdir)
    _, errors = process.communicate()
    return errors if process.returncode else ""


def stop(process: subprocess.Popen[str], number: int) -> str:
    """Stops the job; what was wrong with how it went, "" for nothing."""
    begun = time.monotonic()
    process.send_signal(number)
    _, errors = process.communicate()
    if number == signal.SIGKILL or process.returncode == 0:  # it had ended before
        return ""
    took, said = time.monotonic() - begun, errors.replace("\r", "\n").splitlines()
    if process.returncode != 128 + number or took > 10 or said.count(SAID) != 1 or "Traceback" in errors:
        return f"exit code {process.returncode} after {took:.1f} s: {errors[-300:]}"
    return ""


def main() -> int:
    """Prints the table and returns the exit code."""
    options = command_line.parse(Options, None, prog="python -m benchmarks.kills")
    checks.whole("kills", options.kills)
    number = signal.SIGTERM if options.term else signal.SIGKILL
    rng, killed, survived, bad = random.Random(options.seed), Counter[str](), Counter[str](), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        for place in ("warm", "straight"):  # the first one compiles
            if errors := finish(folder / place):
                raise RuntimeError(errors)
        right, report = results(folder / "straight"), folder / "straight" / "report.html"
        took = report.stat().st_mtime - (folder / "straight" / "settings.json").stat().st_mtime
        for one in tqdm(range(options.kills), unit="kill"):
            workdir = folder / str(one)
            process = start(workdir)
            while not (workdir / "settings.json").exists():
                time.sleep(0.005)
            time.sleep(rng.uniform(0, took))
            stage = next(stage for stage, path in STAGES.items() if (workdir / path).exists())
            wrong = stop(process, number) or finish(workdir)
            killed[stage] += 1
            survived[stage] += not wrong and results(workdir) == right
            bad += [wrong] if wrong else []
    rows = [{"killed while": stage, "kills": killed[stage], "survived": survived[stage]} for stage in reversed(STAGES)]
    rows.append({"killed while": "all", "kills": killed.total(), "survived": survived.total()})
    print(f"{device_name()}, {number.name} within {took:.1f} s\n\n{markdown_table(rows)}")
    print(*bad, sep="\n", file=sys.stderr)
    return int(survived != killed)


if __name__ == "__main__":
    sys.exit(main())

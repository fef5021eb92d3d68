"""What a user's type checker says of measures and what they return."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

USER = """
import jax
import jaxmargin as jm

def apply_fn(params: jax.Array, x: jax.Array) -> jax.Array:
    return params @ x

def report(w: jax.Array, xs: jax.Array, ys: jax.Array) -> None:
    margins = jm.over_batch(jm.lipschitz_margin, apply_fn, radius=5.0)(w, jax.random.key(0), xs, ys)
    attack = jm.over_batch(jm.pgd, apply_fn)(w, jax.random.key(0), xs, ys, epsilon=0.5)
    print(jm.summarize(margins).average, margins.margin, attack.found)
"""


def complaints(folder, program):
    path = folder / "user.py"
    path.write_text(program)
    command = [sys.executable, "-m", "mypy", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return [line for line in run.stdout.splitlines() if "error" in line and "user.py" in line]


def test_a_field_that_a_result_does_not_have_is_an_error(tmp_path):
    assert not complaints(tmp_path, USER)
    (line,) = complaints(tmp_path, USER.replace("margins.margin", "margins.margn"))
    assert '"Margins" has no attribute "margn"' in line


def test_what_is_no_classifier_is_an_error(tmp_path):
    assert complaints(tmp_path, USER.replace("params: jax.Array, x: jax.Array", "params: jax.Array"))

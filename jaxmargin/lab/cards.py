"""Result cards: what one cell of a study measured, one JSON file each, and what several of them have in common."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from jaxmargin.lab import files, provenance

__all__ = [
    "SCHEMA", "THEN", "Card", "Provenance", "Stage", "conditions", "devices", "hours", "origin", "path_of", "read",
    "said", "versions",
]  # fmt: skip

# Of the names in cards, metrics.jsonl and stages.json. Cards without one are of the first, whose names were others.
SCHEMA = 2
THEN = ", then "  # between what a stage was begun with and what it went on with


class Stage(TypedDict):
    """What a stage took: seconds, over all its pieces, and where; None where that was not recorded (schema 1).

    Where it was cut and went on elsewhere, device, versions and commit name both: "jax 0.10.1, then 0.10.2".
    """

    seconds: float
    device: str | None
    versions: dict[str, str] | None
    commit: NotRequired[str | None]


class Provenance(TypedDict):
    """Where a card comes from."""

    study: str  # the folder below runs/
    schema: int
    commit: str | None  # of the code that finished the cell; None where it was no git checkout
    device: str  # that finished it
    versions: dict[str, str]
    stages: dict[str, Stage]


class Card(Provenance):
    """What the cards of all studies say of a cell, beside its settings; accuracies are in [0, 1].

    A margin is signed, a distance is not: a study's ``average_margin`` is the mean of the signed margins of the test
    points that are measured, and ``average_distance`` that of their absolute values, whether exact or estimated.
    ``average_certified`` and ``average_attacked`` are of the same points, a proven lower and a found upper bound.
    """

    dataset: str
    model: str
    method: str
    seed: int
    epsilons: list[float]
    radius: float
    points: int
    attack_points: int
    attack_steps: int
    worst_case_steps: int
    nearest_steps: int
    num_samples: int  # 0 for exact margins
    batch_size: int
    n_train: int
    n_test: int
    n_attack: int  # test images under attack
    n_margin: int  # points whose margins are measured
    clean_accuracy: float
    robust_accuracy_worst: list[float]  # at each epsilon, in the worst case over attacks
    average_distance: float
    average_certified: float | None  # None where nothing can be certified
    average_attacked: float | None  # None where it is infinite
    contradicted_fraction: float
    paper: dict[str, Any] | None  # what was published of the cell, under the names of the card


def origin(study: str, stages: Mapping[str, Stage]) -> Provenance:
    """The provenance of a card that is written now.

    Args:
      study: the name of its folder below runs/.
      stages: what its stages took.

    Returns:
      Provenance.
    """
    return {
        "study": study, "schema": SCHEMA, "commit": provenance.commit(), "device": provenance.device_name(),
        "versions": dict(provenance.versions()), "stages": dict(stages),
    }  # fmt: skip


def path_of(workdir: Path, name: str) -> Path:
    """The file of a cell's card; its points lie beside it, with the suffix .npz."""
    return workdir / "cards" / f"{name}.json"


def read(path: Path) -> Any:
    """Reads a card.

    Args:
      path: the file.

    Returns:
      Its content, of the TypedDict of its study.

    Raises:
      ValueError: it is of another schema; the message has the remedy.
    """
    card = files.read_json(path)
    if (schema := card.get("schema", 1)) != SCHEMA:
        raise ValueError(f"{path} has names of schema {schema}, not {SCHEMA}: python -m runs.results.convert WORKDIR")
    return card


def versions(cards: Iterable[Provenance]) -> list[Mapping[str, str]]:
    """The versions that some cards were made with, those of each of their stages among them."""
    stages = [stage["versions"] for card in cards for stage in card["stages"].values()]
    return [*(card["versions"] for card in cards), *(found for found in stages if found)]


def said(versions: Iterable[Mapping[str, str]]) -> str:
    """Versions in words, all that occur.

    >>> said([{"jax": "0.10.2", "numpy": "2.4"}, {"jax": "0.10.2, then 0.11.0", "numpy": "2.4"}])
    'jax 0.10.2 and 0.11.0, numpy 2.4'
    """
    seen: dict[str, set[str]] = {}
    for one in versions:
        for name, version in one.items():
            seen.setdefault(name, set()).update(version.split(THEN))
    return ", ".join(f"{name} {' and '.join(sorted(found))}" for name, found in seen.items())


def devices(cards: Iterable[Provenance]) -> str:
    """The devices of all stages of some cards."""
    stages = [stage["device"] for card in cards for stage in card["stages"].values()]
    found = [*(card["device"] for card in cards), *(device for device in stages if device)]
    return ", ".join(sorted({one for device in found for one in device.split(THEN)}))


def hours(cards: Iterable[Provenance]) -> str:
    """The hours of all stages of some cards."""
    return f"{sum(stage['seconds'] for card in cards for stage in card['stages'].values()) / 3600:.1f}"


def conditions(cards: Iterable[Provenance]) -> str:
    """Where some cards were measured, with which versions, and in how many hours."""
    cards = list(cards)
    return f"{devices(cards)}; {said(versions(cards))}; {hours(cards)} hours in all."

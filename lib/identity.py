"""What a run's weights depend on: the training parameters of its recipe, the training images, the code that trains."""

import filecmp
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from lib.reading import stored_run
from lib.recipe import PROJECT, Recipe, checked

CODE = (  # files and folders of lib
    "recipe.py", "runs.py", "training.py", "fitting.py", "objective.py", "optimisation.py", "selection.py",
    "losses.py", "models", "data/manifest.py", "data/dataset.py", "data/pixels.py",
)  # fmt: skip


@cache  # the code that a process runs is what it has read
def code_hashes() -> dict[str, str]:
    """File -> hash of its text, of the code that the weights depend on."""
    paths = [PROJECT / "lib" / name for name in CODE]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    return {file.relative_to(PROJECT).as_posix(): digest(file.read_text(encoding="utf-8").encode()) for file in files}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def identity(recipe: Recipe) -> dict[str, Any]:
    """Hashes, besides the recipe: of the rows that it trains and validates on, of how their classes and channels are
    read, of the file that its weights start from (none: None), of the code."""
    from lib.data import load_description, manifest_hash, prepare  # with torch: the pipeline only asks for the code

    rows, card = prepare(recipe.dataset, limit=recipe.limit), load_description(recipe.dataset)
    reading = repr((card.classes, card.channels, card.mean, card.std))
    return {
        "data": manifest_hash(rows[rows["split"] != "test"]),
        "card": digest(reading.encode()),
        "start": digest(recipe.weights_file.read_bytes()) if recipe.weights_file else None,
        "code": code_hashes(),
    }


def differing(mine: Recipe, theirs: Recipe) -> dict[str, tuple[Any, Any]]:
    """Training parameter -> its values in two recipes, where they differ."""
    own, other = mine.training, theirs.training
    return {key: (own[key], other[key]) for key in own if own[key] != other[key]}


def differences(recipe: Recipe, folder: Path, now: dict[str, Any]) -> dict[str, str]:
    """How a folder's run was trained otherwise, in words, by parameter or by key of `identity`; empty: it was not.

    A finished run of an adopted checkpoint is compared by its parameters alone.
    """
    try:
        stored = stored_run(folder)
        found = differing(recipe, checked(stored["recipe"], f"{folder.name}/recipe.json"))
    except ValueError as error:
        return {"recipe.json": str(error)}
    said = {key: f"{key}: {mine} (trained with {theirs})" for key, (mine, theirs) in found.items()}
    own = folder / "best.safetensors"
    if recipe.weights_from and own.is_file():
        source = recipe.replace(name=recipe.weights_from).run_dir / own.name
        if source.is_file() and not filecmp.cmp(source, own, shallow=False):
            said["weights_from"] = f"weights_from: {recipe.weights_from} has other weights now"
    if "adopted" in stored and own.is_file():
        return said
    for key, what in {
        "data": "images, labels or masks of the training data changed",
        "card": "classes, channels, mean or std of the data set changed",
        "start": f"the file {recipe.weights} changed",
    }.items():
        if now[key] not in (None, stored.get(key)):
            said[key] = what
    code = stored["code"] if isinstance(stored.get("code"), dict) else {}
    if files := sorted(file for file in {**now["code"], **code} if now["code"].get(file) != code.get(file)):
        said["code"] = f"code changed: {', '.join(files)}"
    return said

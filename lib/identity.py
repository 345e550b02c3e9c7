"""What a run's weights depend on: the training parameters of its recipe, the training images, the code that trains."""

import filecmp
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from lib import PROJECT
from lib.recipe import Recipe, checked, stored_run

CODE = (  # files and folders of lib
    "recipe.py", "run.py", "train.py", "phase.py", "losses.py", "models",
    "data/manifest.py", "data/dataset.py", "data/pixels.py", "data/sampling.py",
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
    from lib.data import load_description, manifest_hash, ready  # with torch: the pipeline only asks for the code

    rows, card = ready(recipe.dataset, limit=recipe.limit), load_description(recipe.dataset)
    return {
        "data": manifest_hash(rows[rows["split"] != "test"]),
        "card": digest(repr((card.classes, card.channels, card.mean, card.std)).encode()),
        "start": digest(recipe.weights_file.read_bytes()) if recipe.weights_file else None,
        "code": code_hashes(),
    }


def differences(recipe: Recipe, folder: Path, now: dict[str, Any]) -> dict[str, str]:
    """How a folder's run was trained otherwise, in words, by parameter or by key of `identity`; empty: it was not. A
    finished run of an adopted checkpoint is compared by its parameters alone."""
    try:
        stored = stored_run(folder)
        theirs = checked(stored["recipe"], f"{folder.name}/recipe.json").training
    except ValueError as error:
        return {"recipe.json": str(error)}
    said = {k: f"{k}: {v} (trained with {theirs[k]})" for k, v in recipe.training.items() if v != theirs[k]}
    finished = (own := folder / "best.safetensors").is_file()
    if recipe.weights_from and finished:
        source = recipe.replace(name=recipe.weights_from).run_dir / own.name
        if source.is_file() and not filecmp.cmp(source, own, shallow=False):
            said["weights_from"] = f"weights_from: {recipe.weights_from} has other weights now"
    if finished and "adopted" in stored:
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

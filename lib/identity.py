"""What a run's weights depend on: the training parameters of its recipe, the training images, the code that trains."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from lib import PROJECT
from lib.recipe import Recipe, checked, stored_run

CODE = ("recipe.py", "run.py", "train.py", "phase.py", "losses.py", "models/*.py", "metrics/classification.py",
        "data/manifest.py", "data/dataset.py", "data/pixels.py", "data/sampling.py")  # fmt: skip


@cache  # the code that a process runs is what it has read
def code_hashes() -> dict[str, str]:
    """File -> hash of its text, of the code that the weights depend on."""
    files = [file for name in CODE for file in sorted((PROJECT / "lib").glob(name))]
    return {file.relative_to(PROJECT).as_posix(): digest(file.read_text(encoding="utf-8").encode()) for file in files}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def identity(recipe: Recipe) -> dict[str, Any]:
    """Hashes, besides the recipe: of the rows that it trains and validates on and of how their classes and channels are
    read, of the file that its weights start from or are taken from (none: None), of the code."""
    from lib.data import load_description, manifest_hash, ready  # with torch: the pipeline only asks for the code

    rows, card = ready(recipe.dataset, limit=recipe.limit), load_description(recipe.dataset)
    taken = recipe.weights_from and recipe.replace(name=recipe.weights_from).run_dir / "best.safetensors"
    start = taken or recipe.weights_file
    data = manifest_hash(rows[rows["split"] != "test"]), card.classes, card.channels, card.mean, card.std
    return {
        "data": digest(repr(data).encode()),
        "start": digest(start.read_bytes()) if start and start.is_file() else None,
        "code": code_hashes(),
    }


def earlier(recipe: Recipe, folder: Path, now: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """What a folder's recipe.json says (empty: no run), and how its weights came about otherwise than the recipe's, of
    the identity `now`: key -> words. What it does not say, as of a checkpoint from elsewhere, is not compared."""
    try:
        stored = stored_run(folder)
        theirs = checked(stored["recipe"], f"{folder.name}/recipe.json").training
    except FileNotFoundError:
        return {}, {}
    except ValueError as error:
        return {}, {"recipe.json": str(error)}
    said = {k: f"{k}: {v} (trained with {theirs[k]})" for k, v in recipe.training.items() if v != theirs[k]}
    start = f"the weights of {recipe.weights_from}" if recipe.weights_from else f"the file {recipe.weights}"
    what = {"data": "the training data (images, labels, masks or card)", "start": start}
    said |= {k: f"{what[k]} changed" for k in what if now[k] not in (None, stored.get(k, now[k]))}
    code = stored.get("code", now["code"])
    if files := sorted(file for file in {**now["code"], **code} if now["code"].get(file) != code.get(file)):
        said["code"] = f"code changed: {', '.join(files)}"
    return stored, said

"""The experiments of a folder: every recipe, and every point of every sweep; what the pipeline runs."""

from pathlib import Path
from typing import Any

from lib import PROJECT
from lib.recipe import Recipe, read_yaml

DEMO = PROJECT / "notebooks/recipes/demo.yaml"  # that of the notebooks alone


def experiments(folder: str | Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """name -> (YAML, changes over it) of every recipe of a folder and of every point of its sweeps/*.yaml.

    A sweep names its `base` recipe, a `parameter`, its `values` (numbers, words, lists with a value per phase; or sets
    of parameters by name, `{NAME: {...}}`), and what else is `set` at every point; the points are called SWEEP-VALUE,
    and one that is trained as another takes its weights. Paths are from the project's root where they lie in it.
    ValueError naming the file where a recipe or a point is not valid, is not called as its file or as another is, or
    names a twin or a run to take weights from that is not among them or cannot be it.
    """
    folder = PROJECT / folder
    found: dict[str, tuple[Path, dict[str, Any]]] = {}
    for path in sorted(set(folder.glob("*.yaml")) - {DEMO}):  # from the root: the same wherever the project is
        found[path.stem] = (path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path), {}
    recipes = {name: Recipe.load(path) for name, (path, _) in found.items()}
    for path in sorted(folder.glob("sweeps/*.yaml")):
        for name, point in points(path).items():
            base = point.pop("base")
            if base not in found or found[base][1]:
                raise ValueError(f"{path}: base: expected a recipe of {folder}, got {base!r}")
            if name in found:
                raise ValueError(f"{path}: {name} is the name of another recipe, {found[name][0]}")
            found[name] = (found[base][0], point)
            try:
                recipe = Recipe.load(*found[name])
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from None
            same = [other for other, known in recipes.items() if known.training == recipe.training]
            point |= {"weights_from": same[0]} if same else {}
            recipes[name] = Recipe.load(*found[name])
    for name, recipe in recipes.items():
        try:
            check(name, recipe, recipes)
        except ValueError as error:
            raise ValueError(f"{found[name][0]}: {error}") from None
    return found


def check(name: str, recipe: Recipe, recipes: dict[str, Recipe]) -> None:
    """ValueError where a recipe is called otherwise than `name`, or where those that it names are not, or cannot be."""
    if recipe.name != name:
        raise ValueError(f"name: expected {name!r} as the file is called, got {recipe.name!r}")
    for key in ("twin", "weights_from"):
        if (other := getattr(recipe, key)) and other not in recipes:
            raise ValueError(f"{key}: no recipe {other!r} in its folder")
    if recipe.twin and recipe.method != "blackbox":
        recipe.check_twin(recipes[recipe.twin])
    source = recipes[recipe.weights_from] if recipe.weights_from else recipe
    if differ := [key for key, value in recipe.training.items() if value != source.training[key]]:
        raise ValueError(f"weights_from: {source.name} is trained with another {', '.join(differ)}")


def points(path: Path) -> dict[str, dict[str, Any]]:
    """name -> what a point of a sweep's YAML changes, and its `base`."""
    sweep = read_yaml(path)
    if not {"base", "parameter", "values"} <= set(sweep) <= {"base", "parameter", "values", "set"}:
        raise ValueError(f"{path}: expected base, parameter, values and, if need be, set, got {', '.join(sweep)}")
    values, parameter, found = sweep["values"], sweep["parameter"], {}
    if not isinstance(values, list | dict) or not values:
        raise ValueError(f"{path}: values: expected a list, or sets of parameters by name, got {values!r}")
    if not isinstance(sweep.get("set") or {}, dict):
        raise ValueError(f"{path}: set: expected lines `name: value`, got {sweep['set']!r}")
    for place, value in enumerate(values):
        changes = values[value] or {} if isinstance(values, dict) else {parameter: value}
        parts = value if isinstance(value, list) else [value]
        said = "-".join(f"{part:g}" if isinstance(part, int | float) else str(part) for part in parts)
        place = float(value if isinstance(value, int | float) else place)
        about = {"name": path.stem, "parameter": parameter, "value": said, "place": place}
        name = f"{path.stem}-{said}"
        found[name] = {"base": sweep["base"], **(sweep.get("set") or {}), **changes, "sweep": about, "name": name}
    return found

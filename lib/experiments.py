"""The experiments of a folder: every recipe, and every point of every sweep; what the pipeline runs."""

from pathlib import Path
from typing import Any

from lib.reading import read_yaml
from lib.recipe import PROJECT, Recipe


def experiments(folder: str | Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """name -> (YAML, changes over it) of every recipe of a folder and of every point of its sweeps/*.yaml.

    A sweep names its `base` recipe, a `parameter`, its `values`, and what else is `set` at every point; the points are
    called SWEEP-VALUE. ValueError naming the file where a recipe is not valid, not called as its file, or names a twin
    or a run to take weights from that is not among them.
    """
    folder = PROJECT / folder
    recipes = [path for path in sorted(folder.glob("*.yaml")) if path.stem != "demo"]  # that of the notebooks alone
    found: dict[str, tuple[Path, dict[str, Any]]] = {path.stem: (path, {}) for path in recipes}
    for path in sorted(folder.glob("sweeps/*.yaml")):
        sweep = read_yaml(path)
        if not {"base", "parameter", "values"} <= set(sweep) <= {"base", "parameter", "values", "set"}:
            raise ValueError(f"{path}: expected base, parameter, values and, if need be, set, got {', '.join(sweep)}")
        if sweep["base"] not in found:
            raise ValueError(f"{path}: base: expected a recipe of {folder}, got {sweep['base']!r}")
        for value in sweep["values"]:
            name = f"{path.stem}-{value:g}"
            point = {"name": name, sweep["parameter"]: value}
            point["sweep"] = {"name": path.stem, "parameter": sweep["parameter"]}
            found[name] = (found[sweep["base"]][0], {**sweep.get("set", {}), **point})
    for name, (path, changes) in found.items():
        recipe = Recipe.load(path, changes)
        if recipe.name != name:
            raise ValueError(f"{path}: name: expected {name!r} as the file is called, got {recipe.name!r}")
        for key in ("twin", "weights_from"):
            if (other := getattr(recipe, key)) and other not in found:
                raise ValueError(f"{path}: {key}: no recipe {other!r} in {folder}")
    return found

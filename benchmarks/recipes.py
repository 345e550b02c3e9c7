"""A dry run of recipes: each is read, its model built, and one training step of every phase done on random pixels.

    python -m benchmarks.recipes notebooks/recipes/paper             all recipes of a folder, or single files
    python -m benchmarks.recipes --batch 1 notebooks/recipes/paper   with a smaller batch than the recipes' own

Needs the data sets' descriptions, not their images, and no pretrained weights. Exit code 1 if a recipe fails.
"""

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torchvision import tv_tensors

from benchmarks.memory import peak_mb
from lib import PROJECT
from lib.data import augmentation
from lib.data.sampling import class_weights
from lib.phase import PhaseModule
from lib.recipe import Recipe
from lib.run import Run, build_model

COLUMNS = ("recipe", "phase", "batch", "pixels", "million parameters", "trained", "peak MB", "seconds per step")


def random_batch(recipe: Recipe, run: Run, size: int) -> dict[str, torch.Tensor]:
    """`size` samples as the recipe's data set gives them: noise of the right size, every class in turn, half a mask."""
    sides = (recipe.image_size, recipe.image_size) if recipe.image_size else run.description.image_size
    image, mask = torch.rand(size, run.description.channels, *sides), torch.zeros(size, *sides, dtype=torch.uint8)
    mask[:, : sides[0] // 2] = 1
    transform = augmentation(recipe.augment, recipe.augment_probability)
    image, mask = (x.as_subclass(torch.Tensor) for x in transform(tv_tensors.Image(image), tv_tensors.Mask(mask)))
    labels = torch.arange(size) % len(run.description.classes)
    return {"image": image, "label": labels, "mask": mask, "has_mask": mask.flatten(1).any(1)}


def check(path: Path, batch: int | None = None) -> list[dict]:
    """One row of `COLUMNS` per phase, of one step each; raises what a training would, and RuntimeError for NaN."""
    recipe = Recipe.load(path).replace(weights=None)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.stream("weights"))
    run, rows = Run(recipe.run_dir, recipe), []
    samples = random_batch(recipe, run, batch or recipe.batch_size)
    weights = class_weights(recipe.class_weights, samples["label"], len(run.description.classes))
    model, samples = build_model(recipe), {key: value.to(run.device) for key, value in samples.items()}
    for phase in recipe.phases:
        module = PhaseModule(run, phase, model, weights).to(run.device).train()
        optimizer = module.configure_optimizers(steps=2)["optimizer"]
        start = time.perf_counter()
        loss = module.losses(samples)[0]["loss"]
        loss.backward()
        optimizer.step()
        if not loss.isfinite():  # which waits for a GPU
            raise RuntimeError(f"phase {phase.name!r}: expected a finite loss on random pixels, got {loss.item()}")
        seconds = time.perf_counter() - start
        sizes = [(p.numel() / 1e6, p.grad is not None) for p in model.parameters()]
        peak = torch.cuda.max_memory_allocated() / 1e6 if run.device.type == "cuda" else peak_mb()
        model.zero_grad(set_to_none=True)
        n, *pixels = samples["image"].shape
        count, trained = sum(size for size, _ in sizes), sum(size for size, some in sizes if some)
        values = (recipe.name, phase.name, n, "x".join(map(str, pixels)), count, trained, peak, seconds)
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    return rows


def isolated(path: Path, batch: int | None = None) -> list[dict]:
    """`check` in a process of its own, so that its peak memory is its own and running out of memory ends only it."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(check, path, batch).result()


def line(values: Iterable[object]) -> str:
    """One line of the table, in the order of `COLUMNS`."""
    name, *rest = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
    cells = [text.rjust(max(len(title), 10)) for text, title in zip(rest, COLUMNS[1:], strict=True)]
    return "  ".join([name.ljust(38), *cells])


def main(arguments: Sequence[str], run: Callable[[Path, int | None], list[dict]] = isolated) -> int:
    """Prints a row per phase, and a line per failing recipe; returns 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recipes", description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", help="recipes, or folders of recipes")
    parser.add_argument("--batch", type=int, help="images per step instead of the recipes' own batch size")
    options = parser.parse_args(arguments)
    given = [PROJECT / path for path in options.paths]
    paths = [found for path in given for found in sorted(path.glob("*.yaml")) or [path]]
    print(line(COLUMNS), flush=True)
    failed = 0
    for path in paths:
        try:
            for row in run(path, options.batch):
                print(line(row.values()), flush=True)
        except Exception as error:  # whatever it is, the other recipes are still to be checked
            failed += 1
            print(f"FAILED {path.name}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(paths) - failed} of {len(paths)} recipes can be trained")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A dry run of recipes: each is read, its model built, and one training step of every phase done on random pixels.

    python -m lib.dry_run notebooks/recipes/paper            all recipes of a folder, or single files
    python -m lib.dry_run --batch 1 notebooks/recipes/paper   with a smaller batch than the recipes', for small machines

Needs the data sets' descriptions, not their images, and no pretrained weights. Exit code 1 if a recipe fails.
"""

import argparse
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torchvision import tv_tensors

from lib.data import augmentation
from lib.objective import PhaseModule
from lib.optimisation import class_weights, make_optimizer, make_sampler, make_schedule, parameter_groups
from lib.recipe import PROJECT, Recipe
from lib.runs import Run, build_model

COLUMNS = ("recipe", "phase", "batch", "pixels", "million parameters", "trained", "peak MiB", "seconds per step")


def random_batch(recipe: Recipe, run: Run, size: int) -> dict[str, torch.Tensor]:
    """`size` samples as the recipe's data set gives them: noise of the right size, every class in turn, half a mask."""
    sides = (recipe.image_size, recipe.image_size) if recipe.image_size else run.description.image_size
    image = tv_tensors.Image(torch.rand(size, run.description.channels, *sides))
    mask = torch.zeros(size, *sides, dtype=torch.uint8)
    mask[:, : sides[0] // 2] = 1
    image, mask = augmentation(recipe.augment, recipe.augment_probability)(image, tv_tensors.Mask(mask))
    image, mask = image.as_subclass(torch.Tensor), mask.as_subclass(torch.Tensor)
    labels = torch.arange(size) % len(run.description.classes)
    return {"image": image, "label": labels, "mask": mask, "has_mask": mask.flatten(1).any(1)}


def peak_memory(device: torch.device) -> float:
    """MiB: of the GPU what tensors took at most since the last reset, of the CPU what this process took at most, NaN on
    systems that do not say (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, elsewhere in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def check(path: Path, batch: int | None = None) -> list[dict]:
    """One row of `COLUMNS` per phase, of one step each: forward, losses, backward, optimiser, schedule.

    Raises whatever a recipe's training would raise; RuntimeError where the loss is not finite.
    """
    recipe = Recipe.load(path).replace(weights=None)
    torch.set_num_threads(recipe.threads)
    torch.manual_seed(recipe.stream("weights"))
    run = Run(recipe.run_dir, recipe)
    samples = random_batch(recipe, run, batch or recipe.batch_size)
    weights = class_weights(recipe, samples["label"], len(run.description.classes))
    model, samples = build_model(recipe), {key: value.to(run.device) for key, value in samples.items()}
    rows = []
    for phase in recipe.phases:
        make_sampler(recipe, phase.name, samples["label"])
        module = PhaseModule(recipe, phase, model, run, weights).to(run.device).train()
        optimizer = make_optimizer(recipe, phase, parameter_groups(model, phase))
        make_schedule(recipe, phase, optimizer, steps=2)
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(run.device)
        start = time.perf_counter()
        loss = module.losses(samples)[0]["loss"]
        loss.backward()
        optimizer.step()
        value = loss.item()  # waits for a GPU
        seconds = time.perf_counter() - start
        if not torch.isfinite(loss):
            raise RuntimeError(f"phase {phase.name!r}: expected a finite loss on random pixels, got {value}")
        trained = sum(p.numel() for p in model.parameters() if p.grad is not None) / 1e6
        model.zero_grad(set_to_none=True)
        count = sum(p.numel() for p in model.parameters()) / 1e6
        size = "x".join(map(str, samples["image"].shape[1:]))
        values = (recipe.name, phase.name, len(samples["label"]), size, count, trained)
        rows.append(dict(zip(COLUMNS, (*values, peak_memory(run.device), seconds), strict=True)))
    return rows


def isolated(path: Path, batch: int | None = None) -> list[dict]:
    """`check` in a process of its own, so that its peak memory is its own and running out of memory ends only it."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["lib.objective"])  # imported once for all recipes
    else:
        context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(check, path, batch).result()


def line(values: Iterable[object]) -> str:
    """One line of the table, in the order of `COLUMNS`."""
    name, *rest = (f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
    cells = [text.rjust(max(len(title), 10)) for text, title in zip(rest, COLUMNS[1:], strict=True)]
    return "  ".join([name.ljust(38), *cells])


def main(arguments: Sequence[str], run: Callable[[Path, int | None], list[dict]] = isolated) -> int:
    """Prints a row per phase, and a line per failing recipe; returns 1 if a recipe failed or none was found, else 0."""
    parser = argparse.ArgumentParser(prog="python -m lib.dry_run", description=__doc__.split("\n")[0])
    parser.add_argument("paths", nargs="+", help="recipes, or folders of recipes")
    parser.add_argument("--batch", type=int, help="images per step instead of the recipes' own batch size")
    options = parser.parse_args(arguments)
    given = [PROJECT / path for path in options.paths]
    paths = [found for path in given for found in (sorted(path.glob("*.yaml")) if path.is_dir() else [path])]
    print(line(COLUMNS), flush=True)
    failed = []
    for path in paths:
        try:
            for row in run(path, options.batch):
                print(line(row.values()), flush=True)
        except Exception as error:  # whatever it is, the other recipes are still to be checked
            failed.append(path.name)
            print(f"FAILED {path.name}: {type(error).__name__}: {error}", flush=True)
    print(f"{len(paths) - len(failed)} of {len(paths)} recipes can be trained")
    return int(bool(failed) or not paths)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

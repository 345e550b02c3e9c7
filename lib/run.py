"""A run folder: what one recipe leaves on disk, written whole or not at all, and read back safely (never pickle).

recipe.json               every parameter, what else the weights depend on (lib.identity), the versions they came from
PHASE.safetensors         weights of each phase's best epoch; best: of the last phase; last: of the last epoch
history.csv, tensorboard  losses and metrics after each epoch
evolution.safetensors     explanations of a few validation images after each epoch
maps.safetensors          METHOD -> (N, H, W) raw maps of the first N evaluated images; maps.json: which images
table.parquet             what 04_evaluate measured, one row per number
checkpoints               of an unfinished training; .lock is held by the process that writes
"""

import hashlib
import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from lib import PROJECT, models
from lib.data import ImageDataset, augmentation, load_description, manifest_hash, ready
from lib.models.weights import read_checkpoint
from lib.recipe import Recipe
from lib.writing import write_json, write_tensors, write_whole


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("torch", "torchvision", "lightning", "captum", "numpy", "scikit-learn")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"python": platform.python_version(), **{name: version(name) for name in names}, "device": device}


def pick_device(device: str) -> torch.device:
    """auto: the GPU where there is one. RuntimeError where a GPU is asked for and none is there."""
    if device == "gpu" and not torch.cuda.is_available():
        raise RuntimeError("device: 'gpu' was asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def build_model(recipe: Recipe) -> nn.Module:
    """The untrained model of a recipe, its convolutions laid out channels last (faster, and the same function)."""
    card, weights = load_description(recipe.dataset), str(recipe.weights_file or "") or recipe.weights
    explainer = {"init_bias": recipe.init_bias, "channels": tuple(recipe.explainer_channels)}
    own = {"softcam": {"output_stride": recipe.output_stride}, "explainer_classifier": explainer}.get(recipe.method, {})
    given = {"weights": weights, "in_channels": card.channels, "width": recipe.width, **own}
    model = getattr(models, recipe.method)(recipe.architecture, len(card.classes), **given)
    return model.to(memory_format=torch.channels_last)


def open_split(recipe: Recipe, split: str, augmented: bool = False, count: int | None = None) -> ImageDataset:
    """The images of one split as a recipe wants them: its limit, its size, with or without augmentation.

    split: train, val, test, or "evaluated": the images of `recipe.split`, or all test images of `recipe.test_dataset`.
    With `random_labels`, train has its labels permuted, and val is train: the model is to memorise them.
    ValueError without such an image, with another number of classes, or with files of several sizes and no image_size.
    """
    elsewhere = recipe.test_dataset if split == "evaluated" else None
    name, card, side = elsewhere or recipe.dataset, load_description(recipe.dataset), recipe.image_size
    if elsewhere and len(found := load_description(elsewhere).classes) != (expected := len(card.classes)):
        raise ValueError(f"test_dataset: expected {expected} classes as {recipe.dataset} has, got {', '.join(found)}")
    permuted = recipe.random_labels and split in ("train", "val")
    split = "train" if permuted else "test" if elsewhere else recipe.split if split == "evaluated" else split
    rows = ready(name, limit=None if elsewhere else recipe.limit)
    frame = rows[rows["split"] == split].head(count or len(rows))
    if frame.empty:
        raise ValueError(f"{name}: expected images of the split {split!r}, got none")
    if permuted:
        labels = frame["label"].sample(frac=1, random_state=recipe.stream("labels"))
        frame = frame.assign(label=labels.to_numpy())
    sizes = frame[["height", "width"]].drop_duplicates().to_numpy().tolist()
    if len(sizes) > 1 and not side:
        raise ValueError(f"image_size: expected a number, since the images of {name} differ: {sizes[:3]} ...")
    transform = augmentation(recipe.augment, recipe.augment_probability) if augmented else None
    pixels = len(frame) * side**2 if side else int((frame["height"] * frame["width"]).sum())
    cache = pixels * card.channels < 2**31  # bytes; each worker would keep its own copy of the decoded images
    size = (side, side) if side else None
    return ImageDataset(frame, transform=transform, channels=card.channels, size=size, cache=cache)


def row_hashes(frame: pd.DataFrame) -> list[str]:
    """`manifest_hash` of each row alone."""
    return [manifest_hash(frame.iloc[[i]]) for i in range(len(frame))]


class Run:
    """A run folder: `.recipe .model .history .evolution .maps .table`, each read when asked for."""

    def __init__(self, run_dir: Path, recipe: Recipe):
        self.dir, self.recipe = Path(run_dir), recipe
        self.description = load_description(recipe.dataset)
        self.device = pick_device(recipe.device)
        self.normalise = v2.Normalize(self.description.mean, self.description.std)
        self._predicted: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    @classmethod
    def load(cls, run_dir: str | Path) -> "Run":
        """A trained run, on whatever device there is. FileNotFoundError where there is none; ValueError for a recipe
        that cannot be read."""
        folder = PROJECT / run_dir
        if not (folder / "best.safetensors").is_file():
            raise FileNotFoundError(f"run: {folder} holds no trained model; train it with notebooks/02_train.ipynb")
        return cls(folder, Recipe.load(folder))

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end."""
        return (self.dir / "best.safetensors").is_file()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While one process writes the folder no other does: ValueError. A lock dies with its process, and may nest."""
        self.dir.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.dir / ".lock", timeout=0, is_singleton=True):
                yield
        except Timeout:
            said = "another process is writing it; wait for it, or give the recipe another name"
            raise ValueError(f"{self.dir}: {said}") from None

    def check_folder(self) -> None:
        """ValueError where the folder holds what no run does: nothing in it is touched then."""
        known = not self.dir.is_dir() or (self.dir / "recipe.json").is_file()
        for path in () if known else sorted(self.dir.iterdir()):
            if not path.name.startswith(".") and path.suffix not in (".ipynb", ".tsv"):
                raise ValueError(f"{self.dir}: expected a run or an empty folder, found {path.name} and no recipe.json")

    def clear(self) -> None:
        """Deletes what a run has left; the weights first, so that what is left of it is at no time a finished run."""
        files = "*.safetensors", "history.csv", "maps.json", "table.parquet"
        for name in ("best.safetensors", "checkpoints", "tensorboard", *files):
            for path in self.dir.glob(name):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def describe(self, **more: Any) -> None:
        """recipe.json: the recipe, and what else the weights came from."""
        write_json(self.dir / "recipe.json", {"schema": 2, **more, "recipe": self.recipe.model_dump()})

    def read_weights(self, name: str = "best") -> nn.Module:
        """A model with the weights of `name`: best, last or a phase, in eval mode on the run's device."""
        model = build_model(self.recipe.replace(weights=None))
        model.load_state_dict(read_checkpoint(self.dir / f"{name}.safetensors"))
        return model.eval().to(self.device)

    @property
    def earlier_phases(self) -> list[str]:
        """The phases before the last whose weights are kept (none for a checkpoint from elsewhere)."""
        return [phase for phase in self.recipe.phase_names[:-1] if (self.dir / f"{phase}.safetensors").is_file()]

    @cached_property
    def model(self) -> nn.Module:
        return self.read_weights()

    @property
    def history(self) -> pd.DataFrame:
        """A row for each epoch of each phase; none of weights from elsewhere."""
        path = self.dir / "history.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame({"phase": [], "epoch": []})

    @property
    def evolution(self) -> dict[str, Tensor]:
        """`images`, and PHASE/EPOCH -> their explanations; empty where none were kept."""
        path = self.dir / "evolution.safetensors"
        return read_checkpoint(path) if path.is_file() else {}

    @property
    def maps(self) -> dict[str, Tensor]:
        """METHOD -> (N, H, W); FileNotFoundError says which notebook makes them."""
        return read_checkpoint(self.made("maps.safetensors", "03_explain"))

    @property
    def table(self) -> pd.DataFrame:
        """One row per measured number; FileNotFoundError says which notebook measures."""
        return pd.read_parquet(self.made("table.parquet", "04_evaluate"))

    def made(self, name: str, notebook: str) -> Path:
        if not (path := self.dir / name).is_file():
            raise FileNotFoundError(f"{path.stem}: no file {path}; make it with notebooks/{notebook}.ipynb")
        return path

    def write_table(self, table: pd.DataFrame) -> None:
        with self.writing():
            write_whole(self.dir / "table.parquet", lambda path: table.to_parquet(path, index=False))

    def inputs(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> what the model takes: normalised, on the run's device."""
        return self.normalise(images.to(self.device))

    @torch.no_grad()
    def predict(self, images: Tensor, model: nn.Module | None = None, batch_size: int = 128) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> class probabilities (N, K) on the CPU; at most 16 at once on a CPU, whose
        cache holds no more."""
        model, at_once = model or self.model, min(batch_size, 16) if self.device.type == "cpu" else batch_size
        outputs = [model(self.inputs(part)) for part in images.split(at_once)]
        return torch.cat([getattr(output, "logits", output).float().softmax(1).cpu() for output in outputs])

    def predictions(self, weights: str = "best", split: str = "evaluated") -> tuple[Tensor, Tensor]:
        """Labels (N,) and probabilities (N, K) of a split, with the weights `best` or of a phase, computed once."""
        if (weights, split) not in self._predicted:
            model = self.model if weights == "best" else self.read_weights(weights)
            loader = DataLoader(open_split(self.recipe, split), 128, num_workers=self.recipe.num_workers)
            found = [(batch["label"], self.predict(batch["image"], model)) for batch in loader]
            self._predicted[weights, split] = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        return self._predicted[weights, split]

    def images(self, count: int | None = None) -> dict[str, Any]:
        """The first `count` evaluated images: image (N, C, H, W), label (N,), mask (N, H, W), has_mask (N,), id and
        patient (lists of N)."""
        data = open_split(self.recipe, "evaluated", count=count)
        return default_collate([data[i] for i in range(len(data))]) | {"patient": data.frame["patient"].tolist()}

    def write_maps(self, maps: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Raw maps (N, H, W) float32 by method, and which of `images` they are of, to the last pixel; ValueError where
        an image of the batch is none of the evaluated ones."""
        frame = open_split(self.recipe, "evaluated").frame.set_index("image", drop=False)
        if foreign := sorted(set(batch["id"]) - set(frame.index)):
            raise ValueError(f"{self.dir.name}: maps of images that are not evaluated, such as {foreign[0]}")
        said = {"ids": batch["id"], "rows": row_hashes(frame.loc[batch["id"]]), "made_with": self.made_with()}
        with self.writing():
            (self.dir / "maps.json").unlink(missing_ok=True)  # never beside maps that it does not describe
            write_tensors(self.dir / "maps.safetensors", maps)
            write_json(self.dir / "maps.json", {"schema": 2, **said, **versions()})

    def made_with(self) -> dict[str, Any]:
        """What maps depend on, besides their images."""
        weights = hashlib.sha256((self.dir / "best.safetensors").read_bytes()).hexdigest()[:16]
        asked = self.recipe.model_dump(include={"explain_count", "ig_steps"})
        return {"methods": self.recipe.methods, **asked, "weights": weights}

    def explained(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The maps and, as `images` gives them, the images that they belong to.

        ValueError where the methods, their options or the weights are others than those that the maps were made with,
        or the evaluated images than those that they were made of: by name, label, pixels, mask or boxes."""
        maps, path = self.maps, self.dir / "maps.json"
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            then, made = list(zip(stored["ids"], stored["rows"], strict=True)), dict(stored["made_with"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: does not say which images the maps are of; make them with 03_explain") from None
        if asked := [f"{k} {made.get(k)} and not {v}" for k, v in self.made_with().items() if made.get(k) != v]:
            raise ValueError(f"{self.dir.name}: maps made with {', '.join(asked)}; make them again with 03_explain")
        frame = open_split(self.recipe, "evaluated", count=len(next(iter(maps.values())))).frame
        now = zip(frame["image"], row_hashes(frame), strict=True)
        if differ := [(a or b)[0] for a, b in zip_longest(now, then) if a != b]:
            said = f"{len(differ)} of {len(then)} differ, the first {differ[0]}; make them again with 03_explain"
            raise ValueError(f"{self.dir.name}: maps of other images: {said}")
        return maps, self.images(len(frame))

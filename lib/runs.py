"""Run folders: what one recipe leaves on disk, written whole or not at all, and read back safely (never pickle).

recipe.json               every parameter, what else the weights depend on (lib.identity), the versions they came from
best.safetensors          weights of the last phase's best epoch (`checkpoint`); last.safetensors: the final ones
PHASE.safetensors         best weights of each phase
history.csv, tensorboard  losses and metrics after each epoch
evolution.safetensors     explanations of a few validation images after each epoch
maps.safetensors          METHOD -> (N, H, W) raw maps of the first N evaluated images; maps.json: which images
metrics.json              what 04_evaluate measured; values.safetensors: the same image by image
checkpoints               of an unfinished training; .lock is held by the process that writes
"""

import hashlib
import json
import platform
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
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lib.data import ImageDataset, augmentation, load_description, manifest_hash, prepare
from lib.models import blackbox, explainer_classifier, softcam
from lib.models.weights import read_checkpoint
from lib.recipe import PROJECT, Recipe
from lib.writing import write_json, write_tensors

CACHED = 2**31  # bytes: larger splits are decoded from their files each time


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
    description = load_description(recipe.dataset)
    weights = str(recipe.weights_file or "") or recipe.weights
    common = {"weights": weights, "in_channels": description.channels, "width": recipe.width}
    classes = len(description.classes)
    if recipe.method == "blackbox":
        model = blackbox(recipe.architecture, classes, **common)
    elif recipe.method == "softcam":
        model = softcam(recipe.architecture, classes, output_stride=recipe.output_stride, **common)
    else:
        explainer = {"init_bias": recipe.init_bias, "channels": tuple(recipe.explainer_channels)}
        model = explainer_classifier(recipe.architecture, classes, **explainer, **common)
    return model.to(memory_format=torch.channels_last)


def open_split(recipe: Recipe, split: str, augmented: bool = False, count: int | None = None) -> ImageDataset:
    """The images of one split as a recipe wants them: its limit, its size, with or without augmentation.

    split: train, val, test, or "evaluated": what is explained and evaluated, the images of `recipe.split`, or the test
        images of `recipe.test_dataset`, all of them.
    With `random_labels`, train has its labels permuted, and val is train: the model is to memorise them.
    ValueError where there is no such image, where the classes of `test_dataset` are not as many as the model's, or
    where the files differ in size and the recipe gives no image_size.
    """
    evaluated, permuted = split == "evaluated", recipe.random_labels and split in ("train", "val")
    elsewhere = recipe.test_dataset if evaluated else None
    name = elsewhere or recipe.dataset
    description = load_description(recipe.dataset)
    if elsewhere and len(found := load_description(elsewhere).classes) != (expected := len(description.classes)):
        raise ValueError(f"test_dataset: expected {expected} classes as {recipe.dataset} has, got {', '.join(found)}")
    rows = prepare(name, limit=None if elsewhere else recipe.limit)
    split = "train" if permuted else "test" if elsewhere else recipe.split if evaluated else split
    frame = rows[rows["split"] == split].head(count or len(rows))
    if frame.empty:
        raise ValueError(f"{name}: expected images of the split {split!r}, got none")
    if permuted:
        labels = frame["label"].sample(frac=1, random_state=recipe.stream("labels"))
        frame = frame.assign(label=labels.to_numpy())
    sizes = frame[["height", "width"]].drop_duplicates().to_numpy().tolist()
    if len(sizes) > 1 and not recipe.image_size:
        raise ValueError(f"image_size: expected a number, since the images of {name} differ: {sizes[:3]} ...")
    transform = augmentation(recipe.augment, recipe.augment_probability) if augmented else None
    size = (recipe.image_size, recipe.image_size) if recipe.image_size else None
    pixels = len(frame) * size[0] * size[1] if size else int((frame["height"] * frame["width"]).sum())
    cache = pixels * description.channels < CACHED  # each worker would keep its own copy of the decoded images
    return ImageDataset(frame, transform=transform, channels=description.channels, size=size, cache=cache)


def row_hashes(frame: pd.DataFrame) -> list[str]:
    """`manifest_hash` of each row alone."""
    return [manifest_hash(frame.iloc[[i]]) for i in range(len(frame))]


class Run:
    """A run folder, read back: `.recipe .model .history .metrics .maps`, each loaded when first asked for."""

    def __init__(self, run_dir: Path, recipe: Recipe):
        self.dir, self.recipe = Path(run_dir), recipe
        self.description = load_description(recipe.dataset)
        self.device = pick_device(recipe.device)
        self._predicted: dict[str, tuple[Tensor, Tensor]] = {}
        self.normalise = v2.Normalize(self.description.mean, self.description.std)

    @classmethod
    def load(cls, run_dir: str | Path) -> "Run":
        """A trained run, on whatever device there is. FileNotFoundError where there is none; ValueError for a recipe
        that cannot be read."""
        run = cls(PROJECT / run_dir, Recipe.load(run_dir)) if (PROJECT / run_dir / "recipe.json").is_file() else None
        if run is None or not run.finished:
            raise FileNotFoundError(
                f"run: {PROJECT / run_dir} holds no trained model; train it with notebooks/02_train.ipynb"
            )
        return run

    @property
    def finished(self) -> bool:
        """Whether the training has come to its end."""
        return (self.dir / "best.safetensors").is_file()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """While one process writes the folder no other does; a lock dies with its process. ValueError where one does.

        Writing inside writing is allowed.
        """
        self.dir.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.dir / ".lock", timeout=0, is_singleton=True):
                yield
        except Timeout:
            said = "another process is writing it; wait for it, or give the recipe another name"
            raise ValueError(f"{self.dir}: {said}") from None

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
    def metrics(self) -> dict[str, Any]:
        """What 04_evaluate measured; FileNotFoundError says so where it has not run."""
        path = self.dir / "metrics.json"
        if not path.is_file():
            raise FileNotFoundError(f"metrics: no file {path}; make it with notebooks/04_evaluate.ipynb")
        return json.loads(path.read_text(encoding="utf-8"))

    @property
    def maps(self) -> dict[str, Tensor]:
        """METHOD -> (N, H, W); FileNotFoundError says which notebook makes them."""
        path = self.dir / "maps.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"maps: no file {path}; make it with notebooks/03_explain.ipynb")
        return read_checkpoint(path)

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """METHOD/METRIC -> (N,), image by image, of the first N evaluated images; NaN where undefined."""
        return read_checkpoint(self.dir / "values.safetensors")

    @property
    def evolution(self) -> dict[str, Tensor]:
        """`images`, and PHASE/EPOCH -> their explanations; empty where none were kept."""
        path = self.dir / "evolution.safetensors"
        return read_checkpoint(path) if path.is_file() else {}

    def inputs(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> what the model takes: normalised, on the run's device."""
        return self.normalise(images.to(self.device))

    @torch.no_grad()
    def predict(self, images: Tensor, model: nn.Module | None = None, batch_size: int = 128) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> class probabilities (N, K) on the CPU; at most 16 at once on a CPU, whose
        cache holds no more."""
        model, at_once = model or self.model, min(batch_size, 16) if self.device.type == "cpu" else batch_size
        outputs = [model(self.inputs(part)) for part in images.split(at_once)]
        logits = [out if isinstance(out, Tensor) else out.logits for out in outputs]
        return torch.cat([part.float().softmax(1).cpu() for part in logits])

    def predict_split(self, split: str, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Labels (N,) and class probabilities (N, K) of a whole split of `open_split`, read in batches."""
        loader = DataLoader(open_split(self.recipe, split), 128, num_workers=self.recipe.num_workers)
        found = [(batch["label"], self.predict(batch["image"], model)) for batch in loader]
        labels, probabilities = zip(*found, strict=True)
        return torch.cat(labels), torch.cat(probabilities)

    def predictions(self, weights: str = "best") -> tuple[Tensor, Tensor]:
        """`predict_split` of the evaluated images with the weights of `best` or of a phase, computed once."""
        if weights not in self._predicted:
            model = self.model if weights == "best" else self.read_weights(weights)
            self._predicted[weights] = self.predict_split("evaluated", model)
        return self._predicted[weights]

    def images(self, count: int | None = None) -> dict[str, Any]:
        """The first `count` evaluated images: image (N, C, H, W), label (N,), mask (N, H, W), has_mask (N,), id and
        patient (lists of N)."""
        data = open_split(self.recipe, "evaluated", count=count)
        samples = [data[i] for i in range(len(data))]
        batch = {key: torch.stack([s[key] for s in samples]) for key in ("image", "label", "mask", "has_mask")}
        return {**batch, "id": [s["id"] for s in samples], "patient": data.frame["patient"].tolist()}

    def write_maps(self, maps: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Raw maps (N, H, W) float32 by method, and which images of `images` they belong to, to the last pixel.

        ValueError where an image of the batch is none of the evaluated ones."""
        frame = open_split(self.recipe, "evaluated").frame.set_index("image", drop=False)
        if foreign := sorted(set(batch["id"]) - set(frame.index)):
            raise ValueError(f"{self.dir.name}: maps of images that are not evaluated, such as {foreign[0]}")
        said = {"ids": batch["id"], "targets": batch["label"].tolist(), "rows": row_hashes(frame.loc[batch["id"]])}
        said["made_with"] = self.made_with()
        with self.writing():
            (self.dir / "maps.json").unlink(missing_ok=True)  # never beside maps that it does not describe
            write_tensors(self.dir / "maps.safetensors", maps)
            write_json(self.dir / "maps.json", {"schema": 2, **said, **versions()})

    def made_with(self) -> dict[str, Any]:
        """What maps depend on, besides their images."""
        recipe, weights = self.recipe, hashlib.sha256((self.dir / "best.safetensors").read_bytes()).hexdigest()
        asked = {"methods": recipe.methods, "explain_count": recipe.explain_count, "ig_steps": recipe.ig_steps}
        return {**asked, "weights": weights[:16]}

    def explained(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The maps and, as `images` gives them, the images that they belong to.

        ValueError where the methods, their options or the weights are others than those that the maps were made with,
        or the evaluated images than those that they were made of: by name, label, pixels, mask or boxes."""
        maps, path = self.maps, self.dir / "maps.json"
        batch = self.images(len(next(iter(maps.values()))))
        rows = row_hashes(open_split(self.recipe, "evaluated", count=len(batch["id"])).frame)
        now = list(zip(batch["id"], batch["label"].tolist(), rows, strict=True))
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            then = list(zip(stored["ids"], stored["targets"], stored["rows"], strict=True))
            made = dict(stored["made_with"])
        except (OSError, ValueError, KeyError, TypeError):
            raise ValueError(f"{path}: does not say which images the maps are of; make them with 03_explain") from None
        now_with = self.made_with()
        if asked := [f"{key} {old} and not {new}" for key, new in now_with.items() if (old := made.get(key)) != new]:
            raise ValueError(f"{self.dir.name}: maps made with {', '.join(asked)}; make them again with 03_explain")
        if differ := [(a or b)[0] for a, b in zip_longest(now, then) if a != b]:
            said = f"{len(differ)} of {len(then)} differ, the first {differ[0]}; make them again with 03_explain"
            raise ValueError(f"{self.dir.name}: maps of other images: {said}")
        return maps, batch

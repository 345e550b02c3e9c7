"""Run folders: what one recipe leaves on disk, written whole or not at all, and read back safely (never pickle).

recipe.json               every parameter, and the versions it ran with
best.safetensors          weights of the last phase's best epoch (`checkpoint`); last.safetensors: the final ones
PHASE.safetensors         best weights of each phase
history.csv, tensorboard  losses and metrics after each epoch
evolution.safetensors     explanations of a few validation images after each epoch
maps.safetensors          METHOD -> (N, H, W) raw maps of the first N test images; maps.json: their ids and targets
metrics.json              what 04_evaluate measured; values.safetensors: the same image by image
"""

import hashlib
import json
import math
import os
import platform
import tempfile
from collections.abc import Callable
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from lib.data import ImageDataset, augmentation, load_description, prepare
from lib.models import blackbox, explainer_classifier, softcam
from lib.recipe import PROJECT, Recipe

CACHED = 2**31  # bytes: larger splits are decoded from their files each time
EVALUATION_FIELDS = {  # may differ between a trained run and the recipe that explains or evaluates it
    "explain_methods", "explain_count", "test_dataset", "ig_steps", "topk", "patch", "faithfulness_count", "aopc_tile",
    "aopc_steps",
    "perturbation", "deletion_steps", "deletion_fill", "resamples", "aopc_grid", "sanity_count",
    "device", "num_workers", "twin", "runs_dir",
}  # fmt: skip


def write_whole(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls `write` on a temporary name beside `path`, then renames: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        write(Path(temporary))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """`content` as JSON; tensors become lists, and what is not finite becomes null."""
    write_whole(path, lambda p: p.write_text(json.dumps(plain(content), indent=1, allow_nan=False) + "\n"))


def plain(value: Any) -> Any:
    """Nested dicts and lists of JSON's own types; NaN and infinity become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in tensors.items()}
    write_whole(path, lambda p: save_file(tensors, p))


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    names = ("torch", "torchvision", "lightning", "captum", "numpy", "scikit-learn")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {"python": platform.python_version(), **{name: version(name) for name in names}, "device": device}


def code_hash() -> str:
    """Hash of the package's sources: an unfinished training is continued only by the code that began it."""
    files = sorted((PROJECT / "lib").rglob("*.py"))
    return hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]


def pick_device(device: str) -> torch.device:
    """auto: the GPU where there is one. RuntimeError where a GPU is asked for and none is there."""
    if device == "gpu" and not torch.cuda.is_available():
        raise RuntimeError("device: 'gpu' was asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def build_model(recipe: Recipe) -> nn.Module:
    """The untrained model of a recipe, its convolutions laid out channels last (faster, and the same function)."""
    description = load_description(recipe.dataset)
    common = {"weights": recipe.weights, "in_channels": description.channels, "width": recipe.width}
    classes = len(description.classes)
    if recipe.method == "blackbox":
        model = blackbox(recipe.architecture, classes, **common)
    elif recipe.method == "softcam":
        model = softcam(recipe.architecture, classes, output_stride=recipe.output_stride, **common)
    else:
        explainer = {"init_bias": recipe.init_bias, "channels": tuple(recipe.explainer_channels)}
        model = explainer_classifier(recipe.architecture, classes, **explainer, **common)
    return model.to(memory_format=torch.channels_last)


@cache
def _rows(dataset: str, limit: str) -> pd.DataFrame:
    """The manifest's rows, their files checked once per process."""
    return prepare(dataset, limit=json.loads(limit))


def open_split(recipe: Recipe, split: str, augmented: bool = False, count: int | None = None) -> ImageDataset:
    """The images of one split as a recipe wants them: its limit, its size, with or without augmentation.

    The test split is that of `test_dataset` where the recipe names one, whole.

    With `random_labels`, train has its labels permuted, and val is train: the model is to memorise them.
    ValueError where the files differ in size and the recipe gives no image_size.
    """
    elsewhere = split == "test" and recipe.test_dataset
    rows = _rows(recipe.test_dataset, "null") if elsewhere else _rows(recipe.dataset, json.dumps(recipe.limit))
    permuted = recipe.random_labels and split != "test"
    frame = rows[rows["split"] == ("train" if permuted else split)]
    if permuted:
        frame = frame.assign(label=frame["label"].sample(frac=1, random_state=recipe.seed).to_numpy())
    frame = frame.head(count) if count else frame
    sizes = frame[["height", "width"]].drop_duplicates().to_numpy().tolist()
    if len(sizes) > 1 and not recipe.image_size:
        raise ValueError(f"image_size: expected a number, since the images of {recipe.dataset} differ: {sizes[:3]} ...")
    transform = augmentation(recipe.augment, recipe.augment_probability) if augmented else None
    size = (recipe.image_size, recipe.image_size) if recipe.image_size else None
    channels = load_description(recipe.dataset).channels
    pixels = len(frame) * size[0] * size[1] if size else int((frame["height"] * frame["width"]).sum())
    cache = pixels * channels < CACHED  # each worker would keep its own copy of the decoded images
    return ImageDataset(frame, transform=transform, channels=channels, size=size, cache=cache)


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
        """A trained run. FileNotFoundError says which recipe to train if there is none."""
        run_dir = PROJECT / run_dir
        if not (run_dir / "best.safetensors").is_file():
            raise FileNotFoundError(f"run: {run_dir} holds no trained model; train it with notebooks/02_train.ipynb")
        stored = json.loads((run_dir / "recipe.json").read_text())
        return cls(run_dir, Recipe.checked(stored["recipe"], source=f"{run_dir.name}/recipe.json"))

    def read_weights(self, name: str = "best") -> nn.Module:
        """A model with the weights of `name`: best, last or a phase, in eval mode on the run's device."""
        model = build_model(self.recipe.replace(weights=None))
        model.load_state_dict(load_file(self.dir / f"{name}.safetensors"))
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
        return pd.read_csv(self.dir / "history.csv")

    @property
    def metrics(self) -> dict[str, Any]:
        """What 04_evaluate measured; FileNotFoundError says so where it has not run."""
        path = self.dir / "metrics.json"
        if not path.is_file():
            raise FileNotFoundError(f"metrics: no file {path}; make it with notebooks/04_evaluate.ipynb")
        return json.loads(path.read_text())

    @property
    def maps(self) -> dict[str, Tensor]:
        """METHOD -> (N, H, W); FileNotFoundError says which notebook makes them."""
        path = self.dir / "maps.safetensors"
        if not path.is_file():
            raise FileNotFoundError(f"maps: no file {path}; make it with notebooks/03_explain.ipynb")
        return load_file(path)

    @cached_property
    def values(self) -> dict[str, Tensor]:
        """METHOD/METRIC -> (N,), image by image, of the first N test images; NaN where undefined."""
        return load_file(self.dir / "values.safetensors")

    @property
    def evolution(self) -> dict[str, Tensor]:
        return load_file(self.dir / "evolution.safetensors")

    def inputs(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> what the model takes: normalised, on the run's device."""
        return self.normalise(images.to(self.device))

    @torch.no_grad()
    def predict(self, images: Tensor, model: nn.Module | None = None, batch_size: int = 128) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> class probabilities (N, K) on the CPU."""
        model = model or self.model
        outputs = [model(self.inputs(part)) for part in images.split(batch_size)]
        logits = [out if isinstance(out, Tensor) else out.logits for out in outputs]
        return torch.cat([part.float().softmax(1).cpu() for part in logits])

    def predict_split(self, split: str, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Labels (N,) and class probabilities (N, K) of a whole split, read in batches."""
        loader = DataLoader(open_split(self.recipe, split), 128, num_workers=self.recipe.num_workers)
        found = [(batch["label"], self.predict(batch["image"], model)) for batch in loader]
        labels, probabilities = zip(*found, strict=True)
        return torch.cat(labels), torch.cat(probabilities)

    def predict_test(self, weights: str = "best") -> tuple[Tensor, Tensor]:
        """`predict_split` of the test split with the weights of `best` or of a phase, computed once."""
        if weights not in self._predicted:
            model = self.model if weights == "best" else self.read_weights(weights)
            self._predicted[weights] = self.predict_split("test", model)
        return self._predicted[weights]

    def test_images(self, count: int | None = None) -> dict[str, Any]:
        """The first `count` test images: image (N, C, H, W), label (N,), mask (N, H, W), has_mask (N,), id, patient."""
        data = open_split(self.recipe, "test", count=count)
        samples = [data[i] for i in range(len(data))]
        batch = {key: torch.stack([s[key] for s in samples]) for key in ("image", "label", "mask", "has_mask")}
        return {**batch, "id": [s["id"] for s in samples], "patient": data.frame["patient"].tolist()}

    def write_maps(self, maps: dict[str, Tensor], ids: list[str], targets: Tensor) -> None:
        """Raw maps (N, H, W) float32 by method, and the images and classes they belong to."""
        write_tensors(self.dir / "maps.safetensors", maps)
        write_json(self.dir / "maps.json", {"schema": 1, "ids": ids, "targets": targets.tolist(), **versions()})


def differences(recipe: Recipe, stored: Recipe) -> str:
    """Training parameters in which two recipes differ, as 'lr: 0.01 (trained with 0.003)'; empty if none."""
    mine, theirs = recipe.model_dump(), stored.model_dump()
    keys = [key for key in mine if key not in EVALUATION_FIELDS and mine[key] != theirs[key]]
    return "; ".join(f"{key}: {mine[key]} (trained with {theirs[key]})" for key in keys)

"""A run folder: what one recipe leaves on disk, written whole or not at all, and read back safely (never pickle).

recipe.json: parameters, as last used (03 and 04 may change theirs), and what else the weights depend on;
PHASE.safetensors: weights of its best epoch (best: of the last phase, last: of the last epoch); history.csv,
tensorboard: losses and scores by epoch, evolution.safetensors: maps; maps.safetensors: METHOD -> (N, H, W), raw;
maps.json: what they were made from; table.parquet: a row per number.
"""

import json
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.data import DataLoader, default_collate
from torchvision.transforms import v2

from lib import PROJECT, models
from lib.data import ImageDataset, augmentation, load_description, manifest_hash, ready
from lib.identity import digest
from lib.models.weights import read_checkpoint
from lib.recipe import Recipe, stored_run
from lib.writing import write_json, write_tensors, write_whole

PLACE = {"name", "runs_dir", "device", "num_workers", "cell_timeout"}  # parameters that no number depends on


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
    explainer["init"] = recipe.explainer_init
    own = {"softcam": {"output_stride": recipe.output_stride}, "explainer_classifier": explainer}.get(recipe.method, {})
    given = {"weights": weights, "in_channels": card.channels, "width": recipe.width, **own}
    model = getattr(models, recipe.method)(recipe.architecture, len(card.classes), **given)
    return model.to(memory_format=torch.channels_last)


@torch.inference_mode(False)
def folded(model: nn.Module) -> nn.Module:
    """A copy for inference alone, equal to 1e-5 and a quarter faster: each batch normalisation merged into the
    convolution registered right before it, which in all of lib.models it follows, ReLUs in place."""
    model = deepcopy(model).eval().requires_grad_(False)
    for parent in list(model.modules()):
        for (name, layer), (norm, after) in pairwise([*parent.named_children()]):
            if isinstance(layer, nn.Conv2d) and isinstance(after, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(layer, after))
                setattr(parent, norm, nn.Identity())
        if isinstance(parent, nn.ReLU | nn.SiLU):
            parent.inplace = True
    return model


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
    pixels = len(frame) * side**2 if side else (frame["height"] * frame["width"]).sum()
    cache = pixels * card.channels < 2**31  # bytes; each worker would keep its own copy of the decoded images
    return ImageDataset(frame, transform, card.channels, (side, side) if side else None, cache)


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
        """A trained run, on whatever device there is. FileNotFoundError where there is none."""
        folder = PROJECT / run_dir
        if not (folder / "best.safetensors").is_file():
            raise FileNotFoundError(f"run: {folder} holds no trained model; train it with notebooks/02_train.ipynb")
        return cls(folder, Recipe.load(folder))

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One process at a time writes the folder: its lock dies with it, and may nest. ValueError where another does,
        or where the folder holds what no run does."""
        self.dir.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.dir / ".lock", timeout=0, is_singleton=True):
                known = (self.dir / "recipe.json").is_file()
                for path in () if known else sorted(self.dir.iterdir()):
                    if not path.name.startswith(".") and path.suffix not in (".ipynb", ".tsv"):
                        raise ValueError(f"{path}: expected a run or an empty folder, but there is no recipe.json")
                yield
        except Timeout:
            raise ValueError(f"{self.dir}: another process writes it; wait, or give the recipe another name") from None

    def describe(self, made_from: dict[str, Any], afresh: bool = True) -> None:
        """recipe.json: the recipe, and what else the weights come from. afresh: what another training has left goes
        before, its weights first, so that the rest is at no time a finished run."""
        files = "checkpoints", "tensorboard", "*.safetensors", "history.csv", "maps.json", "table.parquet"
        for path in [path for name in ("best.safetensors", *files) if afresh for path in self.dir.glob(name)]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        write_json(self.dir / "recipe.json", {"schema": 2, **made_from, "recipe": self.recipe.model_dump()})

    def read_weights(self, name: str = "best") -> nn.Module:
        """A model with the weights of `name`: best, last or a phase, in eval mode on the run's device."""
        model = build_model(self.recipe.replace(weights=None))
        model.load_state_dict(read_checkpoint(self.dir / f"{name}.safetensors"))
        return model.eval().to(self.device)

    @property
    def earlier_phases(self) -> list[str]:
        return [phase for phase in self.recipe.phase_names[:-1] if (self.dir / f"{phase}.safetensors").is_file()]

    @cached_property
    def model(self) -> nn.Module:
        return self.read_weights()

    @cached_property
    def judge(self) -> nn.Module:
        """The model of whatever takes forward passes alone."""
        return folded(self.model)

    @property
    def history(self) -> pd.DataFrame:
        path = self.dir / "history.csv"
        return pd.read_csv(path) if path.is_file() else pd.DataFrame({"phase": [], "epoch": []})

    @property
    def evolution(self) -> dict[str, Tensor]:
        """`images`, and PHASE/EPOCH -> their explanations; empty where none were kept."""
        path = self.dir / "evolution.safetensors"
        return read_checkpoint(path) if path.is_file() else {}

    @property
    def maps(self) -> dict[str, Tensor]:
        return read_checkpoint(self.made("maps.safetensors", "03_explain"))

    @property
    def table(self) -> pd.DataFrame:
        """ValueError where it was measured by another recipe than the folder's."""
        table, now = pd.read_parquet(self.made("table.parquet", "04_evaluate")), self.recipe.model_dump(exclude=PLACE)
        then = table.attrs.pop("recipe", {})
        if changed := ", ".join(key for key in now if now[key] != then.get(key, now[key])) if then else "version":
            raise ValueError(f"{self.dir.name}: table.parquet is of another {changed}; run 04_evaluate again")
        return table

    def made(self, name: str, notebook: str) -> Path:
        if not (path := self.dir / name).is_file():
            raise FileNotFoundError(f"{path.stem}: no file {path}; make it with notebooks/{notebook}.ipynb")
        return path

    def write_table(self, table: pd.DataFrame) -> None:
        table.attrs["recipe"] = self.recipe.model_dump(exclude=PLACE)
        with self.writing():
            self.describe(stored_run(self.dir), afresh=False)
            write_whole(self.dir / "table.parquet", lambda path: table.to_parquet(path, index=False))

    def inputs(self, images: Tensor) -> Tensor:
        """Images in [0, 1] -> what the model takes: normalised, on the run's device."""
        return self.normalise(images.to(self.device))

    @torch.inference_mode()
    def predict(self, images: Tensor, model: nn.Module | None = None, batch_size: int = 128) -> Tensor:
        """Images (N, C, H, W) in [0, 1] -> class probabilities (N, K) on the CPU."""
        model, at_once = model or self.judge, min(batch_size, 16) if self.device.type == "cpu" else batch_size  # cache
        outputs = [model(self.inputs(part)) for part in images.split(at_once)]
        return torch.cat([getattr(output, "logits", output).float().softmax(1).cpu() for output in outputs])

    def predictions(self, weights: str = "best", split: str = "evaluated") -> tuple[Tensor, Tensor]:
        """Labels (N,) and probabilities (N, K) of a split, with the weights `best` or of a phase, computed once."""
        if (weights, split) not in self._predicted:
            model = self.judge if weights == "best" else folded(self.read_weights(weights))
            loader = DataLoader(open_split(self.recipe, split), 128, num_workers=self.recipe.num_workers)
            found = [(batch["label"], self.predict(batch["image"], model)) for batch in loader]
            self._predicted[weights, split] = tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        return self._predicted[weights, split]

    def images(self, count: int | None = None, split: str = "evaluated") -> dict[str, Any]:
        """The first `count` images of a split: image (N, C, H, W), label (N,), mask (N, H, W), has_mask (N,), id and
        patient (lists of N)."""
        data = open_split(self.recipe, split, count=count)
        return default_collate([data[i] for i in range(len(data))]) | {"patient": data.frame["patient"].tolist()}

    def write_maps(self, maps: dict[str, Tensor], batch: dict[str, Any]) -> None:
        """Raw maps (N, H, W) float32 by method of a batch from `images`, and what they were made from."""
        made_from = self.maps_come_from(len(batch["id"]))
        if foreign := [one for one, own in zip(batch["id"], made_from["ids"], strict=True) if one != own]:
            raise ValueError(f"{self.dir.name}: expected maps of the first evaluated images, got one of {foreign[0]}")
        with self.writing():
            self.describe(stored_run(self.dir), afresh=False)
            (self.dir / "maps.json").unlink(missing_ok=True)  # never beside maps that it does not describe
            write_tensors(self.dir / "maps.safetensors", maps)
            write_json(self.dir / "maps.json", {"schema": 3, **made_from, **versions()})

    def maps_come_from(self, count: int) -> dict[str, Any]:
        """What the maps of the first `count` evaluated images depend on; `images`: a hash of their rows."""
        frame = open_split(self.recipe, "evaluated", count=count).frame
        asked = {"methods": self.recipe.methods, **self.recipe.model_dump(include={"explain_count", "ig_steps"})}
        weights = digest((self.dir / "best.safetensors").read_bytes())
        return {"ids": frame["image"].tolist(), "images": manifest_hash(frame), "weights": weights, **asked}

    def explained(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The maps and, as `images` gives them, the images that they belong to. ValueError naming what the maps were
        made from and is another now: images (names, labels, pixels, masks, boxes), methods, their options, weights."""
        maps, then = self.maps, json.loads(self.made("maps.json", "03_explain").read_bytes())
        now = self.maps_come_from(len(next(iter(maps.values()))))
        if changed := ", ".join(key for key in now if now[key] != then.get(key)):
            raise ValueError(f"{self.dir.name}: maps were made from other {changed}; make them again with 03_explain")
        return maps, self.images(len(now["ids"]))

"""A recipe: every parameter of one experiment, checked by name and type before anything runs.

It is read from a YAML of notebooks/recipes, from a run folder (the recipe that is stored there), or from either with
`changes`: what a notebook takes, what the pipeline runs and what `Recipe.load` returns is the same.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from lib.choices import (
    EXPLAINED,
    NAME,
    NOT_TRAINED,
    PHASED,
    PHASES,
    USUAL_METHODS,
    Checkpoint,
    Measure,
    Optimizer,
    Sampling,
    Schedule,
)
from lib.reading import read_yaml, said, stored_run

PROJECT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Phase:
    """One training phase: what is optimised, for how long, with which weight of the classification loss, and by which
    measurement on the validation images the state to keep is chosen."""

    name: str
    epochs: int
    alpha: float
    lr: float
    lr_explainer: float
    optimizer: Optimizer
    schedule: Schedule
    patience: int
    checkpoint: Checkpoint


class Sweep(BaseModel):
    """The sweep that a recipe is a point of, and the parameter that differs from point to point."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    name: str
    parameter: str


class Recipe(BaseModel):
    """All parameters of one experiment. A list gives one value per training phase, a single value holds for all."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    name: str = Field("demo", pattern=NAME, description="run folder: runs_dir/name")
    seed: int = Field(0, ge=0, lt=2**32, description="of every random stream: see `stream`")
    runs_dir: str = Field("runs", description="folder of all runs, from the project's root")
    twin: str | None = Field(None, pattern=NAME, description="name of the black-box run to compare with")
    weights_from: str | None = Field(
        None, pattern=NAME, description="name of the run whose weights are taken; none: train"
    )
    sweep: Sweep | None = Field(None, description="of a point of a sweep: which, and over which parameter")

    dataset: str = Field("shapes", description="a name in data_manifests/ or the path of a YAML of your own")
    limit: dict[Literal["train", "val", "test"], PositiveInt] | None = Field(
        None, description="use only so many images of each split, drawn across classes; none: all"
    )
    image_size: int | None = Field(None, gt=0, description="pixels of a side; none: as the files are")
    augment: Literal["none", "flips", "fundus", "chest", "xml"] = Field("none", description="see lib.data.augmentation")
    augment_probability: float = Field(0.5, ge=0, le=1, description="of each step; see lib.data.augmentation")
    batch_size: int = Field(32, ge=1, description="training images per step; an incomplete last step is left out")
    num_workers: int = Field(0, ge=0, description="processes that read images; 0: the notebook's own")

    method: Literal["blackbox", "softcam", "explainer_classifier"] = "softcam"
    architecture: str = Field("compact", description="a name of lib.models.ARCHITECTURES: compact, resnet50, vgg16 ...")
    width: int = Field(24, ge=1, description="channels of the first stage of `compact`")
    weights: str | None = Field(None, description="imagenet, a torchvision name or a file; none: random")
    output_stride: int | None = Field(None, description="SoftCAM of a ResNet: 8, 16 or 32 pixels per evidence pixel")
    explainer_channels: list[PositiveInt] = Field(
        [16, 32, 64], min_length=3, max_length=3, description="of the Explainer's stages, from the finest on"
    )
    init_bias: float = Field(1.0, description="bias of the Explainer's last BatchNorm; above 0: heatmap starts white")

    random_labels: bool = Field(False, description="train on permuted labels (sanity check, Adebayo et al. 2018)")
    sampling: Sampling = Field("instance", description="instance: each image once per epoch; others: see Rebalanced")
    sampling_decay: float = Field(0.9, gt=0, lt=1, description="progressive sampling: per epoch; see Rebalanced")
    class_weights: Literal["balanced", "dynamic"] | list[PositiveFloat] | None = Field(
        None, description="of the classification loss, a list or N / (K n_k); dynamic: decaying to 1; none: 1"
    )
    class_weights_decay: float = Field(0.9, gt=0, lt=1, description="dynamic: weight - 1 is multiplied by it per epoch")
    criterion: Literal["cross_entropy", "focal", "kappa", "mse", "mae", "smooth_l1"] = Field(
        "cross_entropy", description="the classification loss; from kappa on for classes that are ordered grades"
    )
    focal_gamma: float = Field(2.0, ge=0, description="criterion focal: exponent of 1 - p; 0: cross entropy")
    l1: float = Field(0.0, ge=0, description="SoftCAM: weight of mean ||A||_1")
    l2: float = Field(0.0, ge=0, description="SoftCAM: weight of mean ||A||_2")
    hybrid: bool = Field(False, description="Explainer: also penalise the heatmap outside the annotated mask")
    beta: float = Field(0.9, ge=0, le=1, description="Explainer: share of sparsity, the rest is contiguity")
    gamma: float = Field(1.0, ge=0, description="hybrid: weight of the penalty outside the mask")

    epochs: int | list[int] = 5
    alpha: float | list[float] = Field(1.0, description="weight of the classification loss, 1 - alpha the Explainer's")
    lr: float | list[float] = Field(0.003, description="learning rate; of the Classifier where there is an Explainer")
    lr_explainer: float | list[float] = 0.0
    optimizer: Optimizer | list[Optimizer] = "adamw"
    schedule: Schedule | list[Schedule] = "onecycle"
    patience: int | list[int] = Field(0, description="epochs without a better validation loss, then stop; 0: never")
    checkpoint: Checkpoint | list[Checkpoint] = Field(
        "loss", description="the phase's state with the best of it on the validation images is kept; see lib.selection"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd; onecycle moves it between 0.85 and 0.95")
    nesterov: bool = Field(False, description="of sgd")
    weight_decay: float = Field(1e-4, ge=0)
    warmup_epochs: int = Field(0, ge=0, description="with a linearly growing rate, before the schedule")
    lr_floor: float = Field(0.0, ge=0, description="clipped_cosine, plateau: the rate never falls below")
    milestones: list[int] = Field([], description="multistep: epochs after which the rate falls by `decay`")
    decay: float = Field(0.2, gt=0, lt=1, description="factor of plateau, multistep and exponential")
    plateau_patience: int = Field(10, ge=0, description="epochs without a better loss before the rate falls")
    pct_start: float = Field(0.25, gt=0, lt=1, description="onecycle: share of the steps with a growing rate")
    evolution_count: int = Field(4, ge=0, description="validation images whose explanation is kept after each epoch")

    device: Literal["auto", "cpu", "gpu"] = "auto"
    precision: Literal["32", "bf16", "auto"] = Field(
        "32", description="of the training; bf16: automatic mixed precision; auto: bf16 where the device computes in it"
    )
    threads: int = Field(1, ge=1, description="CPU threads; pinned, since sums depend on it in the last bit")

    split: Literal["val", "test"] = Field("test", description="images that are explained and evaluated; val: to choose")
    test_dataset: str | None = Field(None, description="explain and evaluate on the test images of this one instead")
    explain_methods: list[str] | None = Field(None, description="none: the usual ones of the method")
    explain_count: int = Field(60, ge=1, description="images explained, drawn across classes")
    measure: list[Measure] = Field(["localisation", "faithfulness", "properties"], description="of the maps")
    ig_steps: int = Field(16, ge=1, description="integrated gradients: points on the path")
    topk: int = Field(10, ge=1, description="top-k localisation precision for k = 1 to this many patches")
    patch: int | None = Field(None, gt=0, description="side of the localisation patches in pixels; none: the data's")
    faithfulness_count: int = Field(8, ge=1, description="explained images with a mask that are perturbed")
    aopc_tile: int = Field(8, ge=1, description="side in pixels of the perturbed tiles")
    aopc_steps: int = Field(40, ge=1, description="tiles perturbed one after the other, at most")
    aopc_grid: bool = Field(False, description="seed 0: also every tile size and perturbation of the papers' grid")
    perturbation: Literal["black", "white", "gray", "uniform", "blur"] = Field("black", description="what tiles become")
    deletion_steps: int = Field(20, ge=1, description="patches deleted, or inserted, one after the other, at most")
    deletion_fill: Literal["zero", "mean", "blur"] = Field("mean", description="what deleted pixels become")
    sanity_count: int = Field(4, ge=0, description="images explained again with randomised weights; 0: no sanity check")
    resamples: int = Field(1000, ge=10, description="of the bootstrap behind the 95 % intervals")
    cell_timeout: int = Field(3600, ge=1, description="seconds that one cell of a notebook may take without a person")

    @model_validator(mode="before")
    @classmethod
    def _as_in_yaml(cls, values: Any) -> Any:
        """`precision: 32` is a number in YAML, `class_weights: none` a text; three phases start from PHASED."""
        changes = {"precision": "32"} if values.get("precision") == 32 else {}
        changes |= {"class_weights": None} if values.get("class_weights") == "none" else {}
        return {**(PHASED if values.get("method") == "explainer_classifier" else {}), **values, **changes}

    @model_validator(mode="after")
    def _sweep_is_over_a_number(self) -> "Recipe":
        if self.sweep and not isinstance(getattr(self, self.sweep.parameter, None), int | float):
            raise ValueError(f"sweep: parameter: expected one that is a number, got {self.sweep.parameter!r}")
        return self

    @model_validator(mode="after")
    def _methods_are_registered(self) -> "Recipe":
        if unknown := set(self.explain_methods or ()).difference(*USUAL_METHODS.values()):
            from lib.explain import METHODS  # takes seconds, so only where it is needed

            if unknown := sorted(unknown - set(METHODS)):
                raise ValueError(f"explain_methods: expected names of {', '.join(METHODS)}, got {unknown[0]!r}")
        return self

    @model_validator(mode="after")
    def _lists_match_phases(self) -> "Recipe":
        for key in Phase.__annotations__:
            value = getattr(self, key) if key != "name" else None
            if isinstance(value, list) and len(value) != len(self.phase_names):
                raise ValueError(f"{key}: expected one value or {len(self.phase_names)} for {self.method}, got {value}")
            numbers = [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int | float)]
            if numbers and min(numbers) < 0:
                raise ValueError(f"{key}: expected nothing below 0, got {value}")
            if key == "alpha" and max(numbers) > 1:
                raise ValueError(f"alpha: expected nothing above 1, got {value}")
        if self.criterion == "kappa" and self.class_weights is not None:
            raise ValueError(f"class_weights: expected none for the criterion 'kappa', got {self.class_weights}")
        for phase in self.phases:
            if phase.name in ("explainer", "joint") and phase.epochs and (phase.lr_explainer == 0 or phase.alpha == 1):
                values = f"lr_explainer {phase.lr_explainer}, alpha {phase.alpha}"
                raise ValueError(f"lr_explainer, alpha: phase {phase.name!r} would not train with {values}")
            if self.warmup_epochs and phase.schedule in ("onecycle", "plateau"):
                raise ValueError(f"warmup_epochs: expected 0 for {phase.schedule!r}, got {self.warmup_epochs}")
        return self

    @property
    def phase_names(self) -> tuple[str, ...]:
        return PHASES.get(self.method, (self.method,))

    @property
    def phases(self) -> list[Phase]:
        """The training phases in order, each with its own value of every per-phase parameter."""
        keys = [key for key in Phase.__annotations__ if key != "name"]
        values = {key: getattr(self, key) for key in keys}
        return [
            Phase(name, **{key: v[i] if isinstance(v, list) else v for key, v in values.items()})
            for i, name in enumerate(self.phase_names)
        ]

    @property
    def variant(self) -> str:
        """The papers' name: black box, SoftCAM dense|sparse|ridge|elastic net, Explainer unsupervised|hybrid."""
        if self.method == "blackbox":
            return "black box"
        if self.method == "explainer_classifier":
            return f"Explainer {'hybrid' if self.hybrid else 'unsupervised'}"
        kind = {(False, False): "dense", (True, False): "sparse", (False, True): "ridge", (True, True): "elastic net"}
        return f"SoftCAM {kind[self.l1 > 0, self.l2 > 0]}"

    @property
    def run_dir(self) -> Path:
        """runs_dir/name, or runs_dir/name-seedN for another seed than 0."""
        return PROJECT / self.runs_dir / (self.name if self.seed == 0 else f"{self.name}-seed{self.seed}")

    @property
    def methods(self) -> list[str]:
        """Explanation methods that 03_explain applies to this run's model."""
        return self.explain_methods or list(USUAL_METHODS[self.method])

    @property
    def weights_file(self) -> Path | None:
        """The file of `weights`, a path from the project's root; None where that names no file."""
        return path if self.weights and (path := PROJECT / self.weights).is_file() else None

    @property
    def training(self) -> dict[str, Any]:
        """The parameters that the weights depend on."""
        return self.model_dump(exclude=NOT_TRAINED)

    def stream(self, *purpose: str | int) -> int:
        """Seed of an independent random stream for a purpose, such as ("order", "joint", 3); below 2^32."""
        key = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose]
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0])

    def blackbox_twin(self) -> "Recipe":
        """The black box of this recipe's settings, called as its twin: what it is compared with where none is named."""
        if self.method == "blackbox":
            return self
        first = self.phases[0]
        phase = {key: getattr(first, key) for key in Phase.__annotations__ if key != "name"}
        usual = {key: type(self).model_fields[key].default for key in EXPLAINED}
        return self.replace(
            **phase, **usual, name=self.twin or f"{self.name}-blackbox", method="blackbox", twin=None,
            weights_from=None, sweep=None, explain_methods=None,
        )  # fmt: skip

    def check_twin(self, twin: "Recipe") -> None:
        """ValueError where `twin` cannot be this recipe's: the recipe itself, no black box, or one of other images."""
        if twin.run_dir == self.run_dir:
            raise ValueError(f"twin: expected the name of a black-box run, got {self.twin!r}, the recipe's own")
        for key, expected in {"method": "blackbox", "dataset": self.dataset, "image_size": self.image_size}.items():
            if (found := getattr(twin, key)) != expected:
                raise ValueError(f"twin: {twin.run_dir.name}: expected a run with {key} {expected!r}, got {found!r}")

    def replace(self, **changes: Any) -> "Recipe":
        return checked({**self.model_dump(), **changes}, source="recipe")

    @classmethod
    def load(cls, path: "str | Path | Recipe", changes: dict[str, Any] | None = None) -> "Recipe":
        """The recipe of a YAML or of a run folder (relative paths: from the project's root), with `changes` over it.

        A stored recipe belongs to the folder that it lies in, and runs on whatever device there is.
        FileNotFoundError without a file; ValueError naming file, parameter, value and what was expected.
        """
        path = PROJECT / path
        if path.is_dir():
            values = {**stored_run(path)["recipe"], "device": "auto"}
            inside = path.resolve().is_relative_to(PROJECT)
            values["runs_dir"] = (path.resolve().relative_to(PROJECT) if inside else path.resolve()).parent.as_posix()
            source = path / "recipe.json"
            if (found := checked(values, source)).run_dir.name != path.resolve().name:
                raise ValueError(f"{path}: expected the folder's name to be its run's, {found.run_dir.name}")
        else:
            values, source = read_yaml(path), path
        if not isinstance(changes or {}, dict):
            raise ValueError(f"changes: expected a dict of parameters, got {changes!r}")
        changes = changes or {}
        if changes.get("method", values.get("method")) != values.get("method"):  # the rest is another's
            values = {key: value for key, value in values.items() if key not in PHASED}
        return checked({**values, **changes}, f"{source.name} with changes" if changes else source.name)


def checked(values: dict[str, Any], source: str | Path) -> Recipe:
    """A recipe from plain values; ValueError naming `source`, the parameter, its value and the known parameters."""
    try:
        return Recipe(**values)
    except ValidationError as error:
        raise ValueError(f"{source}: {said(error, sorted(Recipe.model_fields))}") from None

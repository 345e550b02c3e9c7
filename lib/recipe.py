"""A recipe: every parameter of one experiment, checked by name and type before anything runs."""

import json
import zlib
from collections import namedtuple
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from lib import PROJECT

Count, Rate, Share = Annotated[int, Field(ge=0)], Annotated[float, Field(ge=0)], Annotated[float, Field(ge=0, le=1)]
Optimizer = Literal["sgd", "adam", "adamw", "adadelta"]
Schedule = Literal["none", "plateau", "cosine", "clipped_cosine", "onecycle", "multistep", "exponential"]
Sampling = Literal["instance", "class_balanced", "progressive", "progressive_reversed"]
Criterion = Literal["cross_entropy", "focal", "kappa", "mse", "mae", "smooth_l1"]
Weights = Literal["balanced", "dynamic"] | list[PositiveFloat]
Checkpoint = Literal["loss", "accuracy", "auc", "sensitivity", "specificity", "precision", "kappa"]
# of the maps; removal is a part of faithfulness, and at seeds above 0 all that is measured of it
Measure = Literal["localisation", "removal", "faithfulness", "properties"]
NAME = r"^[^\W_](?:[\w .,()\[\]'+=@&!-]*[\w()\[\]'+=@&!-])?$"  # a folder's, on every system
NAMED = "a letter or digit, then letters, digits, spaces or one of _.,()[]'+=@&!-, no space or full stop at the end"
SAME_MODEL = "gradcam", "lrp", "integrated_gradients", "guided_backprop", "random"  # of a model that explains itself
USUAL_METHODS = {
    "blackbox": ("tte_cam", "gradcam", "smooth_gradcam", "gradcam_pp", "layercam", "scorecam", "saliency",
                 "input_x_gradient", "integrated_gradients", "smoothgrad", "deconvolution", "guided_backprop",
                 "guided_gradcam", "lrp", "occlusion", "random", "centre_gaussian", "edge_map", "canny", "otsu"),
    "softcam": ("evidence", *SAME_MODEL),
    "explainer_classifier": ("explainer", *SAME_MODEL),
}  # fmt: skip
PHASES = {"explainer_classifier": ("classifier", "explainer", "joint")}  # all other methods have one phase
PHASED = {"alpha": [1.0, 0.5, 0.6], "lr_explainer": [0.0, 0.02, 0.03], "optimizer": ["adamw", "sgd", "sgd"]}
PER_PHASE = ("epochs", "alpha", "lr", "lr_explainer", "optimizer", "schedule", "patience", "checkpoint")
Phase = namedtuple("Phase", ("name", *PER_PHASE))  # a training phase, with its own value of each of these
# training parameters that do not concern a black box
EXPLAINED = (
    "output_stride", "explainer_channels", "explainer_init", "init_bias", "l1", "l2", "hybrid", "beta", "gamma",
    "penalised", "frozen_batchnorm", "evolution_count",
)  # fmt: skip
# what a model and the black box that it is compared with have in common
TWINNED = (
    "dataset", "limit", "image_size", "architecture", "width", "augment", "augment_probability", "batch_size",
    "classifier_epochs",
)  # fmt: skip


class Sweep(BaseModel, extra="forbid", strict=True, frozen=True):
    """The sweep that a recipe is a point of, the parameter that differs from point to point, its value here in words,
    and where it stands on an axis: at the value, or where that is no number, at its number in the list."""

    name: str
    parameter: str
    value: str
    place: float


class Training(BaseModel, extra="forbid", strict=True, frozen=True, allow_inf_nan=False):
    """The parameters that the weights depend on. A list gives one value per phase, a single value holds for all."""

    seed: int = Field(0, ge=0, lt=2**32, description="of every random stream: see `stream`")
    dataset: str = Field("shapes", description="a name in data_manifests/ or the path of a YAML of your own")
    limit: dict[Literal["train", "val", "test"], PositiveInt] | None = Field(None, description="per split; none: all")
    image_size: int | None = Field(None, gt=0, description="pixels of a side; none: as the files are")
    augment: Literal["none", "flips", "fundus", "chest", "xml"] = Field("none", description="see lib.data.augmentation")
    augment_probability: Share = Field(0.5, description="of each step; see lib.data.augmentation")
    batch_size: int = Field(32, ge=1, description="training images per step; an incomplete last step is left out")
    random_labels: bool = Field(False, description="train on permuted labels (sanity check, Adebayo et al. 2018)")
    sampling: Sampling = Field("instance", description="instance: each image once per epoch; others: see EpochSampler")
    sampling_decay: float = Field(0.9, gt=0, lt=1, description="progressive sampling: per epoch; see EpochSampler")
    method: Literal["blackbox", "softcam", "explainer_classifier"] = "softcam"
    architecture: str = Field("compact", description="a name of lib.models.ARCHITECTURES: compact, resnet50, vgg16 ...")
    width: int = Field(24, ge=8, description="of `compact`, channels at first; with fewer torch 2.15 crashes on AVX2")
    weights: str | None = Field(None, description="imagenet, a torchvision name or a file; none: random")
    output_stride: int | None = Field(None, description="SoftCAM of a ResNet: 8, 16 or 32 pixels per evidence pixel")
    explainer_channels: list[PositiveInt] = Field([16, 32, 64], min_length=3, max_length=3, description="finest first")
    init_bias: float = Field(
        1.0, description="bias of the Explainer's last BatchNorm; z starts at its tanh: .76, 3: .995"
    )
    explainer_init: Literal["he", "torch"] = Field("he", description="He-normal with a small end, or torch's own")
    frozen_batchnorm: Literal["eval", "train"] = Field("eval", description="of the classifier in the Explainer's phase")
    criterion: Criterion = Field("cross_entropy", description="classification loss; from kappa on of ordered grades")
    focal_gamma: float = Field(2.0, ge=0, description="criterion focal: exponent of 1 - p; 0: cross entropy")
    class_weights: Weights | None = Field(None, description="a list or N / (K n_k); dynamic: decaying to 1; none: 1")
    class_weights_decay: float = Field(0.9, gt=0, lt=1, description="dynamic: weight - 1 is multiplied by it per epoch")
    l1: float = Field(0.0, ge=0, description="SoftCAM: weight of mean ||A||_1")
    l2: float = Field(0.0, ge=0, description="SoftCAM: weight of mean ||A||_2")
    hybrid: bool = Field(False, description="Explainer: also penalise the heatmap outside the annotated mask")
    beta: Share = Field(0.9, description="Explainer: share of sparsity, the rest is contiguity")
    gamma: float = Field(1.0, ge=0, description="hybrid: weight of the penalty outside the mask")
    penalised: Literal["annotated", "all"] = Field("annotated", description="hybrid: images with a mask, or all")
    epochs: Count | list[Count] = 5
    alpha: Share | list[Share] = Field(1.0, description="weight of the classification loss, 1 - alpha the Explainer's")
    lr: Rate | list[Rate] = Field(0.003, description="learning rate; of the Classifier where there is an Explainer")
    lr_explainer: Rate | list[Rate] = 0.0
    optimizer: Optimizer | list[Optimizer] = "adamw"
    schedule: Schedule | list[Schedule] = "onecycle"
    patience: Count | list[Count] = Field(0, description="epochs without a better validation loss, then stop; 0: never")
    min_improvement: Rate = Field(0.0, description="of the validation loss, by which an epoch is better for `patience`")
    checkpoint: Checkpoint | list[Checkpoint] = Field("loss", description="the state with the best on val is kept")
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
    precision: Literal["32", "bf16", "auto"] = Field("32", description="auto: bf16 where the device computes in it")
    threads: int = Field(1, ge=1, description="CPU threads; pinned, since sums depend on it in the last bit")


class Recipe(Training):
    """All parameters of one experiment: of its training, its place, what explains and what measures it."""

    name: str = Field("demo", pattern=NAME, description="run folder: runs_dir/name")
    runs_dir: str = Field("runs", description="folder of all runs, from the project's root")
    twin: str | None = Field(None, pattern=NAME, description="name of the black-box run to compare with")
    weights_from: str | None = Field(None, pattern=NAME, description="take the weights of the run of this name")
    sweep: Sweep | None = Field(None, description="of a point of a sweep: which, and over which parameter")
    device: Literal["auto", "cpu", "gpu"] = "auto"
    num_workers: int = Field(0, ge=0, description="processes that read images; 0: the notebook's own")
    cell_timeout: int = Field(3600, ge=1, description="seconds that one cell of a notebook may take without a person")
    split: Literal["val", "test"] = Field("test", description="images that are explained and evaluated; val: to choose")
    test_dataset: str | None = Field(None, description="explain and evaluate on the test images of this one instead")
    explain_methods: list[str] | None = Field(None, description="none: the usual ones of the method")
    explain_count: int = Field(60, ge=1, description="images explained, drawn across classes")
    choose_count: int = Field(0, ge=0, description="validation images measured, too, to choose a method by; of test")
    measure: list[Measure] = Field(["localisation", "faithfulness", "properties"], description="see Measure")
    ig_steps: int = Field(16, ge=1, description="integrated gradients: points on the path")
    topk: int = Field(10, ge=1, description="top-k localisation precision for k = 1 to this many patches")
    topk_threshold: float | None = Field(None, description="only patches that score above it count; none: all")
    patch: int | None = Field(None, gt=0, description="side of the localisation patches in pixels; none: the data's")
    faithfulness_count: int = Field(8, ge=1, description="explained images with a mask that are perturbed")
    aopc_tile: int = Field(8, ge=1, description="side in pixels of the perturbed tiles")
    aopc_steps: int = Field(40, ge=1, description="tiles perturbed one after the other, at most")
    aopc_grid: bool = Field(False, description="seed 0: also every tile size and perturbation of the papers' grid")
    perturbation: Literal["black", "white", "gray", "uniform", "blur"] = Field("black", description="what tiles become")
    deletion_steps: int = Field(20, ge=1, description="patches deleted, at most; steps in which all are inserted")
    deletion_fill: Literal["zero", "mean", "dataset", "blur"] = Field("mean", description="what deleted pixels become")
    sanity_count: int = Field(4, ge=0, description="images explained again with randomised weights; 0: no sanity check")
    resamples: int = Field(1000, ge=10, description="of the bootstrap behind the 95 % intervals of 04")

    @model_validator(mode="before")
    @classmethod
    def _as_in_yaml(cls, values: Any) -> Any:
        """`precision: 32` is a number in YAML, `class_weights: none` a text; three phases start from PHASED."""
        spelled = {("precision", 32): "32", ("class_weights", "none"): None}
        values = {k: spelled.get((k, v), v) if isinstance(v, int | str) else v for k, v in values.items()}
        return {**(PHASED if values.get("method") in PHASES else {}), **values}

    @model_validator(mode="after")
    def _values_fit_together(self) -> "Recipe":
        if set(self.explain_methods or ()).difference(*USUAL_METHODS.values()):
            from lib.explain import METHODS  # takes seconds, so only where it is needed

            if unknown := sorted({*self.explain_methods} - {*METHODS}):
                raise ValueError(f"explain_methods: expected names of {', '.join(METHODS)}, got {unknown[0]!r}")
        if self.criterion == "kappa" and self.class_weights is not None:
            raise ValueError(f"class_weights: expected none for the criterion 'kappa', got {self.class_weights}")
        for key in PER_PHASE:
            if isinstance(value := getattr(self, key), list) and len(value) != len(self.phase_names):
                raise ValueError(f"{key}: expected one value or {len(self.phase_names)} for {self.method}, got {value}")
        for name, epochs, alpha, _, lr, _, schedule, *_ in self.phases:
            if name in ("explainer", "joint") and epochs and (lr == 0 or alpha == 1):
                raise ValueError(f"phase {name!r} would not train with lr_explainer {lr}, alpha {alpha}")
            if self.warmup_epochs and schedule in ("onecycle", "plateau"):
                raise ValueError(f"warmup_epochs: expected 0 for {schedule!r}, got {self.warmup_epochs}")
        return self

    @property
    def phase_names(self) -> tuple[str, ...]:
        return PHASES.get(self.method, (self.method,))

    @property
    def phases(self) -> list[Phase]:
        return [
            Phase(name, *(value[i] if isinstance(value := getattr(self, key), list) else value for key in PER_PHASE))
            for i, name in enumerate(self.phase_names)
        ]

    @property
    def classifier_epochs(self) -> int:
        return sum(phase.epochs for phase in self.phases if phase.name != "explainer")

    @property
    def variant(self) -> str:
        """The papers' name: black box, SoftCAM dense|sparse|ridge|elastic net, Explainer unsupervised|hybrid."""
        if self.method == "softcam":
            return f"SoftCAM {('dense', 'ridge', 'sparse', 'elastic net')[2 * (self.l1 > 0) + (self.l2 > 0)]}"
        return "black box" if self.method == "blackbox" else f"Explainer {'hybrid' if self.hybrid else 'unsupervised'}"

    @property
    def run_dir(self) -> Path:
        return PROJECT / self.runs_dir / (self.name if self.seed == 0 else f"{self.name}-seed{self.seed}")

    @property
    def methods(self) -> list[str]:
        return self.explain_methods or list(USUAL_METHODS[self.method])

    @property
    def weights_file(self) -> Path | None:
        """The file of `weights`, a path from the project's root; None where that names no file."""
        return path if self.weights and (path := PROJECT / self.weights).is_file() else None

    @property
    def training(self) -> dict[str, Any]:
        return self.model_dump(include=set(Training.model_fields))

    def stream(self, *purpose: str | int) -> int:
        """Seed of an independent random stream, such as of ("order", "joint", 3); below 2^32."""
        key = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose]
        return int(np.random.SeedSequence(self.seed, spawn_key=key).generate_state(1)[0])

    def blackbox_twin(self) -> "Recipe":
        """The black box of this recipe's settings, called as its twin: what it is compared with where none is named."""
        if self.method == "blackbox":
            return self
        usual = {key: type(self).model_fields[key].default for key in EXPLAINED}
        own = {"name": self.twin or f"{self.name}-blackbox", "method": "blackbox", "twin": None, "weights_from": None}
        first = {**self.phases[0]._asdict(), "epochs": self.classifier_epochs}
        return self.replace(**first | usual | own, sweep=None, explain_methods=None)

    def check_twin(self, twin: "Recipe") -> None:
        """ValueError where `twin` is no black box that learnt as this model did: from the same images, by the same
        network, for as long. A point of a sweep, which is compared with its like, need only have images of one kind."""
        keys = ("dataset", "image_size") if self.sweep else TWINNED
        pairs = {key: (getattr(self, key), getattr(twin, key)) for key in keys}
        pairs["method"] = "blackbox", twin.method
        if differ := ", ".join(f"{key} {own!r} and {its!r}" for key, (own, its) in pairs.items() if own != its):
            raise ValueError(f"twin: {self.run_dir.name} and {twin.run_dir.name} differ in {differ}")

    def replace(self, **changes: Any) -> "Recipe":
        return checked({**self.model_dump(), **changes}, source="recipe")

    @classmethod
    def load(cls, path: str | Path, changes: dict[str, Any] | None = None) -> "Recipe":
        """The recipe of a YAML, or of the run folder that it is stored in, then on whatever device there is, with
        `changes` over it; relative paths are from the project's root. ValueError naming file, parameter and value."""
        path, changes = PROJECT / path, {} if changes is None else changes
        if not isinstance(changes, dict):
            raise ValueError(f"changes: expected a dict of parameters, got {changes!r}")
        if path.is_dir():
            folder, source = path.resolve(), "recipe.json"
            parent = folder.relative_to(PROJECT).parent if folder.is_relative_to(PROJECT) else folder.parent
            values = {**stored_run(path)["recipe"], "device": "auto", "runs_dir": parent.as_posix()}
            if (found := checked(values, path / source)).run_dir.name != folder.name:
                raise ValueError(f"{path}: expected the folder's name to be its run's, {found.run_dir.name}")
        else:
            values, source = read_yaml(path), path.name
        return checked({**values, **changes}, f"{source} with changes" if changes else source)


def checked(values: dict[str, Any], source: str | Path) -> Recipe:
    """A recipe from plain values; ValueError naming `source`, each wrong parameter, what was expected and what came."""
    try:
        return Recipe(**values)
    except ValidationError as error:
        problems = []
        for e in error.errors():
            parameter, got, said = str(*e["loc"][:1]), e["input"], e["msg"].removeprefix("Value error, ")
            if e["type"] == "extra_forbidden" and len(e["loc"]) == 1:
                said = f"unknown parameter {parameter!r}; known: {', '.join(sorted(Recipe.model_fields))}"
            elif parameter:
                said = f"expected {NAMED}" if e["type"] == "string_pattern_mismatch" else said
                hint = " (in YAML write 3.0e-3, not 3e-3)" * ("number" in said and isinstance(got, str) and "e" in got)
                said = f"{parameter}: {said}, got {got!r}{hint}"
            problems.append(said)
        raise ValueError(f"{source}: {'; '.join(dict.fromkeys(problems))}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """The `name: value` lines of a YAML (none: empty); ValueError for anything else."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ValueError(f"{path}: expected a line `name: value` per parameter, got {repr(values)[:100]}")
    return values


def stored_run(folder: Path) -> dict[str, Any]:
    """What a run folder's recipe.json says: recipe, code, data, versions; ValueError for anything else."""
    path = folder / "recipe.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {**found, "recipe": {**found["recipe"]}}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected JSON with a recipe, got {error!r}; train again with 02_train") from None

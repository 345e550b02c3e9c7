"""Whatever takes tensors runs on another device than the CPU, and finds there what it finds on the CPU.

The other device is pretended, so that every machine can tell where a function makes a tensor on the CPU to meet one
that is elsewhere; where there is a GPU, it is the GPU as well. What the reference code puts out is found there too.
"""

import inspect
from contextlib import nullcontext
from functools import partial
from typing import get_args

import golden_values
import pytest
import torch
import yaml
from pretended_device import ELSEWHERE, PretendedDevice
from tiny_recipes import PHASES, TINY
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from benchmarks.recipes import check
from lib import evaluate, losses, metrics, models, sanity
from lib.explain import METHODS, explain
from lib.maps import explain_run
from lib.recipe import Criterion
from lib.run import Run

N, SIDE = 4, 32
FAMILIES = ("compact", "vgg-gated", "resnet18", "resnet50", "vgg11", "densenet121", "efficientnet_v2_s")
BUILDERS = (models.blackbox, models.softcam, models.explainer_classifier)


@pytest.fixture(params=["pretended", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request, monkeypatch):
    """Networks are compared in float64; the few in float32 without TF32, whose products have 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with PretendedDevice() if request.param == "pretended" else nullcontext():
        yield ELSEWHERE if request.param == "pretended" else torch.device("cuda", 0)


def uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


def box(*shape: int) -> Tensor:
    """A mask with a region in it: the upper left quarter, of every image but the first."""
    mask = torch.zeros(shape)
    mask[1:, ..., : shape[-2] // 2, : shape[-1] // 2] = 1
    return mask


def predict(images: Tensor) -> Tensor:
    p = images.mean(1).flatten(1).softmax(1).cumsum(1)[:, SIDE :: SIDE**2]
    return torch.cat([p, 1 - p], 1)


def heatmaps(images: Tensor) -> Tensor:
    return images.mean(1) - 0.5


IMAGES, MAPS, CLASSES = uniform(N, 3, SIDE, SIDE), uniform(N, SIDE, SIDE) - 0.3, torch.arange(N) % 2
GIVEN = {  # argument -> what functions get for it, whether they need it or not
    **{"predict": predict, "explain_fn": heatmaps, "images": IMAGES, "maps": MAPS, "others": MAPS.flip(1)},
    **{"masks": box(N, SIDE, SIDE), "targets": CLASSES, "labels": CLASSES, "diseased": CLASSES == 1},
    **{"curve": uniform(N, 9), "values": uniform(N), "thresholds": uniform(7), "evidence": uniform(N, 2, 8, 8) - 0.5},
    **{"probabilities": torch.stack([uniform(N), 1 - uniform(N)], 1), "logits": uniform(N, 2)},
    **{"mask": box(N, 1, SIDE, SIDE), "has_mask": CLASSES == 1, "weights": uniform(2) + 0.5},
    **{"beta": 0.7, "l1": 0.1, "l2": 0.2, "subset": 4, "patch": 8},
}
OTHERWISE = {  # of functions whose argument of that name is of another shape
    **{name: {"z": MAPS.clamp(min=0)} for name in ("pompom", "pompom_curve")},
    "grid_pointing_game": {"diseased": MAPS, "healthy": MAPS.flip(2)},
    "similarity": {"a": MAPS, "b": MAPS.flip(1)},
}
LOSSES = {name: f for name, f in inspect.getmembers(losses, inspect.isfunction) if not name.startswith("_")}
LOSSES |= {criterion: partial(losses.classification_loss, criterion=criterion) for criterion in get_args(Criterion)}
METRICS = {**dict(inspect.getmembers(metrics, inspect.isfunction)), "similarity": sanity.similarity}


def arguments(function) -> dict:
    """What `GIVEN` and `OTHERWISE` have of its arguments; z is a heatmap of the Explainer."""
    known = GIVEN | {"z": uniform(N, 1, SIDE, SIDE)} | OTHERWISE.get(getattr(function, "__name__", ""), {})
    return {name: known[name] for name in inspect.signature(function).parameters if name in known}


def moved(values, device: torch.device):
    return tree_map(lambda value: value.to(device) if isinstance(value, Tensor) else value, values)


def assert_same(found, expected, tolerance: float = 1e-6) -> None:
    found, expected = tree_leaves(moved(found, torch.device("cpu"))), tree_leaves(expected)
    options = {"rtol": tolerance, "atol": tolerance, "equal_nan": True, "check_dtype": False}
    torch.testing.assert_close(*([x for x in xs if not isinstance(x, str)] for xs in (found, expected)), **options)


@pytest.mark.parametrize("name", METRICS)
def test_metrics_find_the_same_also_of_maps_that_explain_has_left_on_the_cpu(device, name):
    given, metric = arguments(METRICS[name]), METRICS[name]
    expected = metric(**given)
    assert_same(metric(**moved(given, device)), expected)
    if {"maps"} < {*given}:
        assert_same(metric(**moved(given, device) | {"maps": given["maps"]}), expected)


def test_the_device_is_another_one(device):
    there, here, generator = torch.ones(2, 2, device=device), torch.ones(2, 2), torch.Generator()
    for mixed in (
        lambda: there + here,
        lambda: there.mul_(here),
        lambda: here @ there,
        lambda: torch.cat([there, here]),
        lambda: torch.where(here > 0, there, 0.0),
        lambda: here[torch.zeros(1, dtype=torch.long, device=device)],
        lambda: torch.rand(2, generator=generator, device=device),
        lambda: there.normal_(generator=generator),
        lambda: there.numpy(),
    ):
        with pytest.raises((RuntimeError, TypeError), match=r"device|numpy"):
            mixed()
    assert (there[torch.tensor([0])] + torch.tensor(1.0)).tolist() == [[2.0, 2.0]]  # as any GPU allows
    there[:, 0] = here[:, 1] + 1
    assert there.cpu().numpy().tolist() == [[2.0, 1.0], [2.0, 1.0]]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_the_same(device, name):
    (first, value), *rest = arguments(LOSSES[name]).items()

    def loss_and_gradient(device: torch.device) -> tuple[Tensor, Tensor]:
        variable = value.to(device).requires_grad_()
        loss = LOSSES[name](**{first: variable}, **moved(dict(rest), device))
        return loss.detach(), torch.autograd.grad(loss.sum(), variable)[0]

    assert_same(loss_and_gradient(device), loss_and_gradient(torch.device("cpu")))


def built(builder, family: str) -> nn.Module:
    torch.manual_seed(0)
    return builder(family, 2, **({"width": 4} if family == "compact" else {})).double()


LEFT_OUT = {  # no SoftCAM of the one; the others' forward passes are torchvision's, or run in the explainer-classifier
    models.softcam: ("vgg-gated",),
    models.blackbox: ("vgg11", "resnet50", "efficientnet_v2_s"),
}
PAIRS = [(builder, f) for builder in BUILDERS for f in FAMILIES if f not in LEFT_OUT.get(builder, ())]


@pytest.mark.parametrize(("builder", "family"), PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_models_and_their_gradients_are_the_same(device, builder, family):
    model = built(builder, family)

    def run(device: torch.device, mode: bool) -> list[Tensor]:
        out = model.to(device).train(mode)(IMAGES[:2].to(device))
        out = [out] if isinstance(out, Tensor) else [*out]
        first = next(model.parameters())
        return [*(value.detach() for value in out), torch.autograd.grad(sum(value.sum() for value in out), first)[0]]

    expected = run(torch.device("cpu"), False)
    assert_same(run(device, False), expected)
    assert all(value.device == device for value in run(device, True))  # dropout draws other numbers there


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda builder: builder.__name__)
@pytest.mark.parametrize("method", METHODS)
def test_methods_find_the_same_maps(device, method, builder):
    model = built(builder, "compact").eval()
    given = {"images": IMAGES[:2], "targets": CLASSES[:2]}
    try:
        expected = explain(method, model, **given)
    except TypeError as error:  # the method is not for this model
        with pytest.raises(TypeError, match=str(error)[:20]):
            explain(method, model.to(device), **moved(given, device))
        return
    model = model.to(device)
    assert_same(explain(method, model, **moved(given, device)), expected)
    assert_same(explain(method, model, **given), expected)  # images may be on the CPU


def test_randomised_parameters_are_the_same(device):
    model = built(models.explainer_classifier, "compact").eval()
    made = partial(explain, "saliency", images=IMAGES[:2], targets=CLASSES[:2])
    expected = sanity.parameter_randomisation(made, model, groups=2)
    assert_same(sanity.parameter_randomisation(made, model.to(device), groups=2), expected)


@pytest.mark.parametrize("name", golden_values.MODELS)
def test_networks_put_out_what_the_reference_code_does(device, name, tmp_path):
    golden_values.MODELS[name](device, tmp_path)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("blackbox", {}),
        ("softcam", {"l1": 1e-4, "l2": 1e-4, "class_weights": "balanced"}),
        ("explainer_classifier", {"hybrid": True, **PHASES}),
    ],
)
def test_every_phase_takes_a_training_step(device, method, changes, tmp_path, monkeypatch):
    monkeypatch.setattr("lib.run.pick_device", lambda _: device)
    values = {**TINY, "name": "step", "runs_dir": str(tmp_path), "method": method, **changes}
    (tmp_path / "step.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    assert check(tmp_path / "step.yaml", batch=2)


@pytest.mark.parametrize("name", ["blackbox", "softcam", "explainer"])
def test_a_run_is_explained_and_evaluated_alike(device, name, trained, monkeypatch):
    expected = evaluated(trained[name])
    monkeypatch.setattr("lib.run.pick_device", lambda _: device)
    run = Run.load(trained[name].dir)
    assert next(run.model.parameters()).device == device
    assert_same(evaluated(run), expected, tolerance=1e-3)


def evaluated(run: Run) -> list:
    """Maps of a run's usual methods, and what is measured of its in-model map (or the first one)."""
    batch = run.images(6)
    maps = explain_run(run, batch)
    given = run, dict(list(maps.items())[:1]), batch
    measured = [evaluate.localisation(*given), evaluate.properties(*given)]
    return [maps, run.predict(batch["image"]), *(torch.tensor(table["value"].to_numpy()) for table in measured)]

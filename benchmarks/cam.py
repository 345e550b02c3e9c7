"""Class activation maps against pytorch-grad-cam and torchcam: same layer, same class, maps at image size."""

import contextlib
import io
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.models import network, samples
from benchmarks.timing import REPEATS, Row, compare, difference, interleaved, peer
from lib.explain import explain
from lib.run import folded

METHODS = {"gradcam": "GradCAM", "layercam": "LayerCAM", "scorecam": "ScoreCAM"}
GRADIENT = (("compact", 64, 32), ("resnet18", 96, 16))
SCORE = (("compact", 64, 2), ("resnet18", 96, 2))
TOLERANCE = {"torchcam": 1e-4, "grad-cam": 1e-3}  # grad-cam adds 1e-7 to each maximum, which may itself be 1e-4


def ours(method: str, model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    return explain(method, model, images, classes, layer=layer)


def torchcam(method: str, model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    with getattr(peer("torchcam.methods"), METHODS[method])(model, layer) as extractor:
        with torch.set_grad_enabled(method != "scorecam"):
            scores = model(images)
        maps = extractor(classes.tolist(), scores, normalized=False)[0]
    return F.interpolate(maps[:, None], images.shape[2:], mode="bilinear")[:, 0].detach()


def grad_cam(method: str, model: nn.Module, layer: nn.Module, images: Tensor, classes: Tensor) -> Tensor:
    """Its maps come scaled to [0, 1]. The progress bars that its Score-CAM draws are caught, not shown."""
    targets = [peer("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget(int(c)) for c in classes]
    extractor = getattr(peer("pytorch_grad_cam"), METHODS[method])(model, [layer])
    with extractor, contextlib.redirect_stderr(io.StringIO()):
        return torch.from_numpy(extractor(images, targets))


def scaled(maps: Tensor) -> Tensor:
    """Every map to [0, 1] by its own minimum and maximum."""
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-7)


def agreement(method: str, ours: Tensor, theirs: Tensor, tolerance: float) -> str:
    """The largest difference; of Score-CAM the lowest Pearson correlation of two maps of one image.

    Its masks differ a little: the paper scales them after upsampling, torchcam before; grad-cam aligns corners.
    """
    if method != "scorecam":
        return difference(ours, theirs, tolerance)
    pearson = [
        float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]) for a, b in zip(ours, theirs, strict=True)
    ]
    return f"correlation at least {min(pearson):.3f}"


def rows(method: str, name: str, side: int, count: int, target: float) -> list[Row]:
    """Score-CAM of resnet18 takes the first stage: 64 channels, a forward pass each, instead of 512; ours of the folded
    network, as a run's."""
    images, _, classes = samples(count, side)
    model = network(name)

    def of(model: nn.Module) -> tuple:
        layer = model.layer1 if (method, name) == ("scorecam", "resnet18") else model.last_features
        return method, model, layer, images, classes

    given = of(model)
    calls = {
        "ours": partial(
            ours, *(of(folded(model).to(memory_format=torch.channels_last)) if method == "scorecam" else given)
        ),
        "torchcam": partial(torchcam, *given),
        "grad-cam": partial(grad_cam, *given),
    }
    maps = {key: scaled(call()) for key, call in calls.items()}
    agreements = {key: agreement(method, maps["ours"], maps[key], limit) for key, limit in TOLERANCE.items()}
    work = f"{METHODS[method]}, {name}, {count} images of {side} px"
    return compare(work, interleaved(calls, REPEATS if method == "scorecam" else 2 * REPEATS), agreements, target)


def check_scorecam() -> str:
    """Where the features are as large as the image, all three scale the masks alike, and the maps must be the same."""
    images, _, classes = samples(4, 16)
    model = network("full")
    mine, *others = (scaled(f("scorecam", model, model[0], images, classes)) for f in (ours, torchcam, grad_cam))
    return " and ".join(
        difference(mine, other, tolerance) for other, tolerance in zip(others, TOLERANCE.values(), strict=True)
    )


def run() -> list[Row]:
    found = []
    for method in ("gradcam", "layercam"):
        for setting in GRADIENT:
            found += rows(method, *setting, target=1)
    print(f"ScoreCAM on features of image size, torchcam and grad-cam: {check_scorecam()}")
    for setting in SCORE:
        found += rows("scorecam", *setting, target=1)
    return found

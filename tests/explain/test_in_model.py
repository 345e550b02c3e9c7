import pytest
import torch
from tiny_models import Gated, Net, vgg

from lib import models
from lib.explain import explain, upsample

IMAGES, TARGETS = torch.linspace(-1, 1, 3 * 3 * 12 * 10).sin().view(3, 3, 12, 10), torch.tensor([2, 0, 1])


def test_evidence_difference_is_taken_from_the_runner_up():
    model = Net(evidence=True).eval()
    output = model(IMAGES)
    expected = []
    for logits, maps, target in zip(output.logits.tolist(), output.evidence.detach(), TARGETS.tolist(), strict=True):
        runner_up = max((k for k in range(3) if k != target), key=lambda k: logits[k])
        expected.append(maps[target] - maps[runner_up])
    found = explain("evidence_difference", model, IMAGES, TARGETS)
    assert torch.allclose(found, upsample(torch.stack(expected), (12, 10)), atol=1e-6)


def test_evidence_difference_needs_two_classes():
    model = models.softcam("compact", 1, width=4)
    with pytest.raises(TypeError, match="evidence_difference: expected a model of 2 classes or more, got SoftCAM"):
        explain("evidence_difference", model, torch.rand(1, 3, 16, 16), torch.tensor([0]))


def test_tte_cam_is_the_evidence_of_the_twin_and_its_mean_the_logit():
    box = models.blackbox("compact", 3, width=4).eval()
    images = torch.rand(3, 3, 32, 32)
    found = explain("tte_cam", box, images, TARGETS)
    assert torch.equal(found, explain("evidence", models.to_softcam(box), images, TARGETS))
    maps = models.to_softcam(box).eval()(images).evidence[torch.arange(3), TARGETS]
    assert torch.allclose(maps.mean((1, 2)), box(images).gather(1, TARGETS[:, None])[:, 0], atol=1e-5)
    assert (found < 0).any()


@pytest.mark.parametrize(
    "model", [vgg(), models.blackbox("vgg-gated", 2), Gated()], ids=lambda model: type(model).__name__
)
def test_tte_cam_says_which_model_it_cannot_turn(model):
    expected = f"tte_cam: expected a model with global average pooling .*, got {type(model).__name__}$"
    with pytest.raises(TypeError, match=expected):
        explain("tte_cam", model, torch.rand(1, 3, 32, 32), torch.tensor([0]))

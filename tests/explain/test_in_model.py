import torch
from tiny_models import Gated, Net

from lib import models
from lib.explain import explain, upsample

IMAGES, TARGETS = torch.linspace(-1, 1, 3 * 3 * 12 * 10).sin().view(3, 3, 12, 10), torch.tensor([2, 0, 1])


def test_evidence_is_the_upsampled_map_of_the_target():
    model, images = Net(evidence=True).eval(), torch.randn(3, 3, 12, 10)
    maps = model(images).evidence[torch.arange(3), TARGETS].detach()
    assert (maps < 0).any()
    assert torch.allclose(explain("evidence", model, images, TARGETS), upsample(maps, (12, 10)))


def test_the_explainer_is_its_heatmap_in_evaluation_mode():
    model = Gated()
    found = explain("explainer", model, IMAGES, TARGETS)
    assert torch.equal(found, model.eval()(IMAGES).explanation[:, 0])


def test_tte_cam_is_the_evidence_of_the_twin():
    box = models.blackbox("compact", 3, width=4).eval()
    images = torch.rand(3, 3, 32, 32)
    found = explain("tte_cam", box, images, TARGETS)
    assert (found < 0).any()
    assert torch.equal(found, explain("evidence", models.to_softcam(box), images, TARGETS))

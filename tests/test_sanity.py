from copy import deepcopy
from functools import partial

import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from lib.explain import explain
from lib.models import blackbox, explainer_classifier, softcam
from lib.sanity import layers, parameter_randomisation, randomised, similarity, unchanged


def settled(model: nn.Module) -> nn.Module:
    """A model no parameter or statistic of which has its initial value."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(7 * torch.ones(()) if name.endswith("tracked") else 0.3 + 0.2 * torch.rand(value.shape))
    return model


MODELS = {
    "blackbox": lambda: blackbox("compact", 2, width=4),
    "softcam": lambda: softcam("compact", 2, width=4),
    "resnet50": lambda: blackbox("resnet50", 2),
    "pair": lambda: explainer_classifier("compact", 2, width=4, channels=(4, 8, 8)),
}


@pytest.fixture(params=["blackbox", "softcam", "pair"])
def model(request) -> nn.Module:
    return settled(MODELS[request.param]())


def changed(a: nn.Module, b: nn.Module) -> set[str]:
    other = b.state_dict()
    return {name for name, value in a.state_dict().items() if not torch.equal(value, other[name])}


@pytest.mark.parametrize(
    "build, groups, expected",
    [
        (MODELS["blackbox"], 6, ["fc", "layer2.1", "layer2.0", "layer1.1", "layer1.0", "conv1"]),
        (MODELS["blackbox"], 2, ["fc", "layer2..conv1"]),
        (MODELS["resnet50"], 6, ["fc", "layer4", "layer3", "layer2", "layer1", "conv1"]),
        (MODELS["resnet50"], 4, ["fc", "layer4", "layer3..layer2", "layer1..conv1"]),
        (MODELS["softcam"], 3, ["evidence", "features.layer2", "features.layer1..features.conv1"]),
        (lambda: nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.ReLU(), nn.Conv2d(1, 2, 1)), 6, ["3", "0"]),
        (lambda: explainer_classifier("vgg16", 2), 6, 6),
        (lambda: explainer_classifier("densenet121", 2), 9, 9),
        (lambda: explainer_classifier("efficientnet_v2_s", 2), 2, 2),
        (lambda: explainer_classifier("vgg-gated", 2), 11, 11),
    ],
)
def test_layers_go_from_the_output_to_the_input(build, groups, expected):
    with torch.device("meta"):
        model = build()
    steps = layers(model, groups)
    assert len(steps) == expected if isinstance(expected, int) else list(steps) == expected
    inside = [id(p) for names in steps.values() for name in names for p in model.get_submodule(name).parameters()]
    assert sorted(inside) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize("first", ["classifier", "explainer"])
def test_a_cascade_forgets_more_and_more(model, first):
    steps, seen = layers(model, first=first), set()
    last = list(randomised(model, seed=3))[-1][1].state_dict()  # the same, wherever it starts
    for (name, modules), (step, copy) in zip(steps.items(), randomised(model, seed=3, first=first), strict=True):
        assert step == name
        own = {name for name in model.state_dict() if name.startswith(tuple(f"{module}." for module in modules))}
        seen |= own
        assert changed(model, copy) == seen
        assert all(torch.equal(copy.state_dict()[key], last[key]) for key in seen)
    assert seen == set(model.state_dict())


def test_the_cascade_of_an_explainers_map_starts_at_its_output():
    steps = list(layers(MODELS["pair"](), first="explainer"))
    assert steps[0] == "explainer.project" and steps[-1].endswith("classifier.conv1")
    assert ["explainer" in step for step in steps] == [True] * 4 + [False] * 2
    torch.manual_seed(0)
    made = lambda model: explain("explainer", model, IMAGES, TARGETS)  # noqa: E731
    similar = [
        step["ssim"].min() for step in parameter_randomisation(made, MODELS["pair"](), first="explainer").values()
    ]
    assert similar[0] < 0.999 and similar[3] == similar[4] == similar[5]  # the classifier has no part in it


def test_original_modes_and_random_state_stay_and_the_seed_decides(model):
    model.train()
    model.requires_grad_(False)
    before, random = deepcopy(model), torch.get_rng_state()
    for _, copy in (*randomised(model), *randomised(model, first="explainer")):
        assert torch.equal(torch.get_rng_state(), random)
        assert all(module.training for module in copy.modules())
        assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert not changed(model, before)
    first, again, other = (list(randomised(model, seed=seed))[-1][1] for seed in (0, 0, 1))
    assert not changed(first, again) and changed(first, other)


def test_new_values_are_those_of_a_start():
    copy = list(randomised(settled(blackbox("resnet18", 2)), groups=2))[-1][1]
    weight = copy.layer4[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.01)
    assert abs(weight.mean().item()) < 1e-4
    norm = copy.layer4[1].bn1
    assert [norm.weight.unique().item(), norm.bias.unique().item()] == [1, 0]
    assert [norm.running_mean.unique().item(), norm.running_var.unique().item(), norm.num_batches_tracked] == [0, 1, 0]
    own = explainer_classifier("compact", 2, width=4, channels=(4, 8, 8), init_bias=2.0)
    pair = list(randomised(settled(own)))[-1][1]
    assert pair.explainer.bn.bias.item() == 2
    assert pair.explainer.project.weight.std() < 0.01
    assert pair.explainer(torch.rand(2, 3, 32, 32)).flatten(1).std(1).min() > 0


def test_parameters_without_a_start_are_permuted():
    scale = nn.Module()
    scale.values = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    found = list(randomised(nn.Sequential(scale, nn.Linear(3, 2))))[-1][1][0].values
    assert not torch.equal(found, scale.values)
    assert torch.equal(found.flatten().sort().values, torch.arange(6.0))


def test_similarity_by_hand():
    a = torch.arange(144.0).reshape(1, 12, 12)
    same, reverse = similarity(a, 3 * a + 1), similarity(a, -a)
    assert [same[key].item() for key in same] == pytest.approx([1, 1, 1])
    assert reverse["spearman"].item() == pytest.approx(-1)
    assert reverse["spearman_abs"].item() == pytest.approx(1)
    assert reverse["ssim"].item() < 0
    spike = torch.eye(64).reshape(64, 8, 8)  # one pixel stands out, at another place: ranks 64 and 63 x 32
    assert similarity(spike[:1], spike[1:2])["spearman"].item() == pytest.approx(-1 / 63)


def ssim(a, b):
    """Wang et al. 2004, eq. 13, by scipy's Gaussian window of 11 x 11, where it fits into the map."""
    mean = partial(gaussian_filter, sigma=1.5, radius=5)
    a, b = ((m - m.min()) / (m.max() - m.min()) for m in (a, b))
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    found = (2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))
    return found[5:-5, 5:-5].mean()


def test_structural_similarity_is_its_definition():
    a = torch.randn(2, 12, 14)
    b = (0.5 * a + torch.randn(2, 12, 14)).mul(4).round()  # with ties
    expected = [ssim(x, y) for x, y in zip(a.double().numpy(), b.double().numpy(), strict=True)]
    for one, other in ((a, b), (b, a), (3 * a - 1, b)):
        assert similarity(one, other)["ssim"].tolist() == pytest.approx(expected, abs=1e-5)
    assert similarity(a[:, :10], b[:, :10])["ssim"].isnan().all()  # no place for the window


def test_constant_and_undefined_maps():
    a = torch.rand(4, 12, 12)
    b = torch.stack([a[0], torch.full((12, 12), 0.1), (a[2] > 0.5) * 2.0 - 1, a[3]])
    b[3, 2, 3] = torch.nan
    got = similarity(a, b)
    assert got["spearman"].isnan().tolist() == got["ssim"].isnan().tolist() == [False, True, False, True]
    assert got["spearman_abs"].isnan().tolist() == [False, True, True, True]
    assert similarity(b, a)["ssim"].isnan().tolist() == [False, True, False, True]
    assert all(values[0].item() == pytest.approx(1) for values in got.values())


IMAGES, TARGETS = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize("method", ["random", "edge_map"])
def test_maps_that_ignore_the_model_are_marked(method):
    model = MODELS["blackbox"]()
    result = parameter_randomisation(lambda model: explain(method, model, IMAGES, TARGETS), model, groups=3)
    assert list(result) == list(layers(model, 3))
    assert unchanged(result) is True
    assert all(values.shape == (4,) and values.allclose(torch.ones(4).double()) for values in result["fc"].values())


@pytest.mark.parametrize(
    "kind, method", [("blackbox", "gradcam"), ("softcam", "evidence"), ("pair", "explainer"), ("pair", "saliency")]
)
def test_maps_that_need_the_model_are_not(kind, method):
    torch.manual_seed(0)
    result = parameter_randomisation(lambda model: explain(method, model, IMAGES, TARGETS), MODELS[kind](), groups=4)
    assert unchanged(result) is False
    last = list(result.values())[-1]
    assert last["spearman"].nanmean() < 0.5
    if method == "explainer":  # the classifier has no part in the heatmap
        for values, (step, modules) in zip(result.values(), layers(MODELS[kind](), 4).items(), strict=True):
            same = not any(module.startswith("explainer") for module in modules)
            assert (values["ssim"].min().item() > 0.999) == same, step


def step(*values: float) -> dict[str, torch.Tensor]:
    return {"spearman": torch.tensor(values), "spearman_abs": torch.tensor(values) / 2}


def test_unchanged_by_hand():
    nan = float("nan")
    assert unchanged({"fc": step(0.9, 0.7), "conv1": step(0.4, 0.62)}) is True
    assert unchanged({"fc": step(0.9, 0.7), "conv1": step(0.4, 0.58)}) is False
    assert not unchanged({"conv1": step(0.62)}, threshold=0.7)
    assert unchanged({"fc": step(0.9, nan), "conv1": step(nan, nan)}) is False
    assert unchanged({"fc": step(nan, 0.9), "conv1": step(0.6, nan)}) is True
    assert unchanged({"fc": step(nan), "conv1": step(nan)}) is None

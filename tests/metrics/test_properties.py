import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from lib.metrics.properties import (
    completeness,
    flip_equivariance,
    gini,
    local_to_global_consistency,
    map_correlation,
    near_zero_proportion,
    stability,
)
from lib.models import softcam

NAN = float("nan")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_gini_by_hand():
    maps = torch.tensor([[[2.0, 2], [-2, 2]], [[0, 0], [0, -3]], [[0, 0], [1, 1]], [[0, 0], [0, 0]]])
    assert gini(maps).tolist() == pytest.approx([0, 3 / 4, 1 / 2, NAN], nan_ok=True)
    assert gini(torch.tensor([[[1.0, 3.0]]])).item() == pytest.approx(1 / 4)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), power=st.integers(-6, 6))
def test_gini_is_half_the_relative_mean_difference(seed, power):
    maps = randn(3, 4, 3, seed=seed).double()
    maps[0, :2] = 0
    for value, image in zip(gini(maps).tolist(), maps.abs().flatten(1).tolist(), strict=True):
        apart = sum(abs(a - b) for a in image for b in image) / len(image) ** 2
        assert value == pytest.approx(apart / (2 * sum(image) / len(image)))
        assert 0 <= value <= 1 - 1 / 12
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    shuffled = maps.flatten(1)[:, order].view_as(maps)
    assert torch.allclose(gini(-shuffled * 2.0**power), gini(maps))
    assert torch.allclose(gini(maps.flip(0)), gini(maps).flip(0))
    assert (gini(maps**2) >= gini(maps)).all()  # more of the mass on fewer elements


def test_near_zero_by_hand():
    maps = torch.tensor([[[0.0, 0.01, -0.011, -1]], [[0, 0, 0, 0]], [[5, 5, 5, 5]]]).double()
    assert near_zero_proportion(maps).tolist() == pytest.approx([0.5, NAN, 0], nan_ok=True)
    assert near_zero_proportion(maps, tolerance=0)[0] == 0.25


def test_consistency_by_hand():
    maps = torch.tensor([[[1.0, -2, -3, 0]]]).repeat(3, 1, 1)
    maps[2] = 0
    positive, negative = local_to_global_consistency(maps, torch.tensor([True, False, True]))
    assert positive.tolist() == pytest.approx([0.25, NAN, NAN], nan_ok=True)
    assert negative.tolist() == pytest.approx([NAN, 0.5, NAN], nan_ok=True)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), power=st.integers(-20, 20))
def test_correlation_is_that_of_scipy(seed, power):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-2, 3, (4, 5, 3), generator=generator).double() + randn(4, 5, 3).sign() / 4 for _ in range(2))
    a[0] = 1.5
    for kind, reference in (("spearman", spearmanr), ("pearson", pearsonr)):
        found = map_correlation(a * 2.0**power, b, kind)
        assert found[0].isnan()
        assert found[1:].tolist() == pytest.approx(
            [reference(x.flatten().numpy(), y.flatten().numpy())[0] for x, y in zip(a[1:], b[1:], strict=True)]
        )
        assert torch.allclose(map_correlation(b, a, kind), map_correlation(a, b, kind), equal_nan=True)
    assert torch.allclose(map_correlation(a.exp(), b), map_correlation(a, b), equal_nan=True)  # ranks only


def test_correlation_of_a_map_with_itself_and_its_negative():
    maps = torch.cat([randn(2, 8, 8), torch.eye(8)[None], torch.ones(1, 8, 8)])
    for kind in ("spearman", "pearson"):
        assert map_correlation(maps, maps, kind).tolist() == pytest.approx([1, 1, 1, NAN], nan_ok=True)
        assert map_correlation(maps, -maps, kind).tolist() == pytest.approx([-1, -1, -1, NAN], nan_ok=True)


def red(images):
    """An explanation that moves with the image."""
    return images[:, 0]


def fixed(images):
    """An explanation that ignores the image."""
    return torch.arange(12.0).view(1, 3, 4).expand(len(images), -1, -1)


IMAGES = torch.rand(5, 3, 3, 4, generator=torch.Generator().manual_seed(0))


def test_stability_of_known_explanations():
    assert stability(fixed, IMAGES, fixed(IMAGES)).tolist() == pytest.approx([1] * 5)
    assert stability(red, IMAGES, red(IMAGES), noise=0).tolist() == pytest.approx([1] * 5)
    slight, strong = (stability(red, IMAGES, red(IMAGES), noise, kind="pearson").mean() for noise in (0.02, 2.0))
    assert 0.99 < slight < 1 and strong < 0.7
    assert stability(lambda x: x[:, 0] * 0, IMAGES, red(IMAGES)).isnan().all()


@pytest.mark.parametrize("kind", ["spearman", "pearson"])
def test_stability_against_loops(kind):
    generator, expected = torch.Generator().manual_seed(3), torch.zeros(5).double()
    reference = {"spearman": spearmanr, "pearson": pearsonr}[kind]
    for _ in range(2):
        noise = 0.3 * torch.randn(3, 3, 4, generator=generator)
        for i, image in enumerate(IMAGES):
            expected[i] += reference(image[0].flatten().numpy(), (image + noise)[0].flatten().numpy())[0] / 2
    found = stability(red, IMAGES, red(IMAGES), noise=0.3, samples=2, seed=3, kind=kind)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_stability_does_not_depend_on_the_batch_and_leaves_the_random_state():
    state = torch.get_rng_state()
    whole = stability(red, IMAGES, red(IMAGES), noise=0.5)
    parts = [stability(red, part, red(part), noise=0.5) for part in (IMAGES[:2], IMAGES[2:])]
    assert torch.allclose(torch.cat(parts), whole)
    assert torch.allclose(stability(red, IMAGES.flip(0), red(IMAGES.flip(0)), noise=0.5), whole.flip(0))
    assert not torch.allclose(stability(red, IMAGES, red(IMAGES), noise=0.5, seed=1), whole)
    assert torch.equal(state, torch.get_rng_state())


def test_flip_equivariance_of_known_explanations():
    for direction in ("horizontal", "vertical"):
        assert flip_equivariance(red, IMAGES, red(IMAGES), direction).tolist() == pytest.approx([1] * 5)
        assert flip_equivariance(lambda x: x[:, 0] * 0, IMAGES, red(IMAGES), direction).isnan().all()
    columns = torch.arange(4.0).expand(5, 3, 4)  # increases to the right, whatever the image
    assert flip_equivariance(lambda x: columns, IMAGES, columns).tolist() == pytest.approx([-1] * 5)
    assert flip_equivariance(lambda x: columns, IMAGES, columns, "vertical").tolist() == pytest.approx([1] * 5)


def test_completeness_by_hand():
    maps = torch.tensor([[[1.0, 2], [3, -2]], [[0, 0], [0, 0]]])
    assert completeness(maps, torch.tensor([3.0, 0.5])).tolist() == [1, 0.5]
    assert completeness(maps, torch.tensor([3.0, 0.5]), reduction="mean").tolist() == [2, 0.5]


def test_softcam_evidence_is_complete():
    torch.manual_seed(0)
    model = softcam("compact", 3).eval()
    with torch.no_grad():
        logits, evidence = model(torch.rand(4, 3, 32, 32))
    for k in range(3):
        assert completeness(evidence[:, k], logits[:, k], "mean").max() < 1e-6
    assert completeness(evidence[:, 0], logits[:, 1], "mean").min() > 1e-4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gini(IMAGES), r"maps: expected shape \(N, height, width\), got \(5, 3, 3, 4\)"),
        (lambda: near_zero_proportion(red(IMAGES), 1.0), r"tolerance: expected a value in \[0, 1\), got 1.0"),
        (
            lambda: local_to_global_consistency(red(IMAGES), torch.ones(5).int()),
            r"diseased: expected booleans of shape \(5,\), got torch.int32 of \(5,\)",
        ),
        (
            lambda: map_correlation(red(IMAGES), red(IMAGES)[:2]),
            r"others: expected shape \(5, 3, 4\) .* got \(2, 3, 4\)",
        ),
        (lambda: map_correlation(red(IMAGES), red(IMAGES), "kendall"), "kind: expected one of .* got 'kendall'"),
        (
            lambda: stability(red, IMAGES[0], red(IMAGES)),
            r"images: expected floats \(N, C, H, W\), got torch.float32 of",
        ),
        (lambda: stability(red, IMAGES, red(IMAGES)[:2]), "maps: expected 5 maps to match images, got 2"),
        (lambda: stability(red, IMAGES, red(IMAGES), noise=-1), "noise: expected .* at least 0, got -1"),
        (lambda: stability(red, IMAGES, red(IMAGES), samples=0), "samples: expected an integer of at least 1, got 0"),
        (
            lambda: stability(lambda x: x, IMAGES, red(IMAGES)),
            r"explain_fn: expected maps of shape \(5, 3, 4\), got \(5, 3, 3, 4\)",
        ),
        (lambda: flip_equivariance(red, IMAGES, red(IMAGES), "left"), "direction: expected .* got 'left'"),
        (
            lambda: completeness(red(IMAGES), torch.zeros(4)),
            r"values: expected floats of shape \(5,\), got torch.float32 of \(4,\)",
        ),
        (lambda: completeness(red(IMAGES), torch.zeros(5), "max"), "reduction: expected 'sum' or 'mean', got 'max'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()

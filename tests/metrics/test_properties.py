import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lib.metrics import (
    completeness,
    flip_equivariance,
    gini,
    local_to_global_consistency,
    map_correlation,
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


def test_consistency_by_hand():
    maps = torch.tensor([[[1.0, -2, -3, 0]]]).repeat(3, 1, 1)
    maps[2] = 0
    positive, negative = local_to_global_consistency(maps, torch.tensor([True, False, True]))
    assert positive.tolist() == pytest.approx([0.25, NAN, NAN], nan_ok=True)
    assert negative.tolist() == pytest.approx([NAN, 0.5, NAN], nan_ok=True)


def spearman(a, b):
    """Of each pair of maps, by scipy."""
    return [spearmanr(x.flatten().numpy(), y.flatten().numpy())[0] for x, y in zip(a, b, strict=True)]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), power=st.integers(-20, 20))
def test_correlation_is_that_of_scipy(seed, power):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-2, 3, (4, 5, 3), generator=generator).double() + randn(4, 5, 3).sign() / 4 for _ in range(2))
    a[0] = 1.5
    found = map_correlation(a * 2.0**power, b)
    assert found[0].isnan() and found[1:].tolist() == pytest.approx(spearman(a[1:], b[1:]))
    assert torch.allclose(map_correlation(b, a), map_correlation(a, b), equal_nan=True)
    assert torch.allclose(map_correlation(a.exp(), b), map_correlation(a, b), equal_nan=True)  # ranks only


def test_correlation_of_a_map_with_itself_and_its_negative():
    maps = torch.cat([randn(2, 8, 8), torch.eye(8)[None], torch.ones(1, 8, 8)])
    assert map_correlation(maps, maps).tolist() == pytest.approx([1, 1, 1, NAN], nan_ok=True)
    assert map_correlation(maps, -maps).tolist() == pytest.approx([-1, -1, -1, NAN], nan_ok=True)


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
    slight, strong = (stability(red, IMAGES, red(IMAGES), noise).mean() for noise in (0.02, 2.0))
    assert 0.97 < slight < 1 and strong < 0.7
    assert stability(lambda x: x[:, 0] * 0, IMAGES, red(IMAGES)).isnan().all()


def test_stability_against_loops():
    generator, expected = torch.Generator().manual_seed(3), torch.zeros(5).double()
    for _ in range(2):
        noise = 0.3 * torch.randn(3, 3, 4, generator=generator)
        expected += torch.tensor(spearman(red(IMAGES), red(IMAGES + noise))) / 2
    found = stability(red, IMAGES, red(IMAGES), noise=0.3, samples=2, seed=3)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_stability_is_seeded_and_leaves_the_random_state():
    state = torch.get_rng_state()
    first, again, other = (stability(red, IMAGES, red(IMAGES), noise=0.5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert torch.equal(state, torch.get_rng_state())


def test_flip_equivariance_of_known_explanations():
    assert flip_equivariance(red, IMAGES, red(IMAGES)).tolist() == pytest.approx([1] * 5)
    assert flip_equivariance(lambda x: x[:, 0] * 0, IMAGES, red(IMAGES)).isnan().all()
    columns = torch.arange(4.0).expand(5, 3, 4)  # increases to the right, whatever the image
    assert flip_equivariance(lambda x: columns, IMAGES, columns).tolist() == pytest.approx([-1] * 5)
    rows = torch.arange(3.0)[:, None].expand(5, 3, 4)
    assert flip_equivariance(lambda x: rows, IMAGES, rows).tolist() == pytest.approx([1] * 5)


def test_completeness_by_hand():
    maps = torch.tensor([[[1.0, 2], [3, -2]], [[0, 0], [0, 0]]])
    assert completeness(maps, torch.tensor([3.0, 0.5])).tolist() == [1, 0.5]


def test_softcam_evidence_is_complete():
    torch.manual_seed(0)
    model = softcam("compact", 3).eval()
    with torch.no_grad():
        logits, evidence = model(torch.rand(4, 3, 32, 32))
    evidence = evidence / evidence[0, 0].numel()
    for k in range(3):
        assert completeness(evidence[:, k], logits[:, k]).max() < 1e-6
    assert completeness(evidence[:, 0], logits[:, 1]).min() > 1e-4


RED = red(IMAGES)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gini(IMAGES), r"maps: expected floats of shape \(N, height, width\), got .* \(5, 3, 3, 4\)"),
        (lambda: map_correlation(RED, RED[:2]), r"others: expected maps of shape \(5, 3, 4\), got .* \(2, 3, 4\)"),
        (lambda: stability(red, IMAGES, RED[:2]), r"others: expected maps of shape \(2, 3, 4\), got .* \(5, 3, 4"),
        (lambda: flip_equivariance(lambda x: x, IMAGES, RED), r"others: expected maps of .* \(5, 3, 3, 4\)"),
        (lambda: completeness(RED, torch.zeros(4)), r"values: expected shape \(5,\), got .* of \(4,\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from lib import metrics as m

SEEDS = st.integers(0, 10**6)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("metric", "image", "expected"),
    [
        (m.gini, [[2.0, 2], [-2, 2]], 0),
        (m.gini, [[0.0, 0], [0, -3]], 3 / 4),
        (m.gini, [[1.0, 3]], 1 / 4),
        (m.positive_proportion, [[1.0, -2, -3, 0]], 1 / 4),
        (m.negative_proportion, [[1.0, -2, -3, 0]], 1 / 2),
        (lambda maps: m.completeness(maps, torch.tensor([3.0])), [[1.0, 2], [3, -2]], 1),
        (lambda maps: m.completeness(maps, torch.tensor([0.5])), [[0.0, 0], [0, 0]], 0.5),
    ],
)
def test_values_by_hand(metric, image, expected):
    assert metric(torch.tensor([image])).item() == pytest.approx(expected)


@given(seed=SEEDS)
def test_gini_is_half_the_relative_mean_difference(seed):
    maps = randn(3, 4, 3, seed=seed).double()
    maps[0, :2] = 0
    for value, image in zip(m.gini(maps).tolist(), maps.abs().flatten(1).tolist(), strict=True):
        apart = sum(abs(a - b) for a in image for b in image) / len(image) ** 2
        assert value == pytest.approx(apart / (2 * sum(image) / len(image)))
    assert (m.gini(maps**2) >= m.gini(maps)).all()  # more of the mass on fewer elements


def spearman(a, b):
    """Of each pair of maps, by scipy."""
    return [spearmanr(x.flatten().numpy(), y.flatten().numpy())[0] for x, y in zip(a, b, strict=True)]


@given(seed=SEEDS, power=st.integers(-20, 20))
def test_correlation_is_that_of_scipy(seed, power):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(-2, 3, (4, 5, 3), generator=generator).double() + randn(4, 5, 3).sign() / 4 for _ in range(2))
    found = m.map_correlation(a * 2.0**power, b)
    assert found.tolist() == pytest.approx(spearman(a, b))
    assert torch.allclose(m.map_correlation(b, a), m.map_correlation(a, b))
    assert torch.allclose(m.map_correlation(a.exp(), b), m.map_correlation(a, b))  # ranks only


def red(images):
    """An explanation that moves with the image."""
    return images[:, 0]


IMAGES = torch.rand(5, 3, 3, 4, generator=torch.Generator().manual_seed(0))


def test_stability_is_the_mean_over_seeded_copies_and_leaves_the_random_state():
    generator, expected, state = torch.Generator().manual_seed(3), torch.zeros(5).double(), torch.get_rng_state()
    for _ in range(2):
        noise = 0.3 * torch.randn(3, 3, 4, generator=generator)
        expected += torch.tensor(spearman(red(IMAGES), red(IMAGES + noise))) / 2
    found = m.stability(red, IMAGES, red(IMAGES), noise=0.3, samples=2, seed=3)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)
    assert torch.equal(state, torch.get_rng_state())


def test_flip_equivariance_of_known_explanations():
    assert m.flip_equivariance(red, IMAGES, red(IMAGES)).tolist() == pytest.approx([1] * 5)
    assert m.flip_equivariance(lambda x: x[:, 0] * 0, IMAGES, red(IMAGES)).isnan().all()
    columns = torch.arange(4.0).expand(5, 3, 4)  # increases to the right, whatever the image
    assert m.flip_equivariance(lambda x: columns, IMAGES, columns).tolist() == pytest.approx([-1] * 5)
    rows = torch.arange(3.0)[:, None].expand(5, 3, 4)
    assert m.flip_equivariance(lambda x: rows, IMAGES, rows).tolist() == pytest.approx([1] * 5)


def test_wrong_arguments_are_said():
    with pytest.raises(ValueError, match=r"others: expected maps of shape \(5, 3, 4\), got .* \(2, 3, 4\)"):
        m.map_correlation(red(IMAGES), IMAGES[:2, 0])
    with pytest.raises(ValueError, match=r"values: expected shape \(5,\), got .* of \(4,\)"):
        m.completeness(red(IMAGES), torch.zeros(4))

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import tv_tensors

from lib.data import ImageDataset, augmentation, load_manifest, read_image


def image_of(tmp_path, pixels, boxes=""):
    """The rows of one image."""
    Image.fromarray(pixels).save(tmp_path / "a.png")
    frame = pd.DataFrame([{"image": "a.png", "label": 1, "mask": "", "boxes": boxes}])
    frame.attrs["root"] = str(tmp_path)
    return frame


@pytest.mark.parametrize("cache", [True, False])
def test_samples_are_the_files_whatever_is_done_with_them(own, cache):
    frame = load_manifest(own)
    dataset = ImageDataset(frame, cache=cache)
    assert len(dataset) == 13
    for index in (0, 1, 0, -1):
        sample, row = dataset[index], frame.iloc[index]
        pixels = read_image(own.parent / "images_of_own" / row["image"]).astype(np.float32) / np.float32(255)
        assert torch.equal(sample["image"], torch.from_numpy(pixels).permute(2, 0, 1))
        assert type(sample["image"]) is type(sample["mask"]) is torch.Tensor
        assert sample["label"].dtype == torch.int64 and sample["label"] == row["label"]
        assert sample["has_mask"].dtype == torch.bool and sample["has_mask"] == bool(row["mask"])
        assert sample["mask"].dtype == torch.uint8 and sample["mask"].shape == (64, 64)
        assert sample["mask"].any() == bool(row["mask"]) and sample["id"] == row["image"]
        sample["image"].zero_(), sample["mask"].fill_(9)
    with pytest.raises(IndexError):
        dataset[13]
    assert next(iter(DataLoader(dataset, 4)))["image"].shape == (4, 3, 64, 64)


def test_boxes_become_masks_where_there_is_no_mask_file(tmp_path):
    sample = ImageDataset(image_of(tmp_path, np.zeros((6, 8), np.uint8), boxes="[[1, 2, 3, 1], [7, 5, 1, 1]]"))[0]
    expected = torch.zeros(6, 8, dtype=torch.uint8)
    expected[2, 1:4] = expected[5, 7] = 1
    assert torch.equal(sample["mask"], expected) and sample["has_mask"] and sample["image"].shape == (1, 6, 8)


def test_channels_and_size_are_converted(tmp_path):
    frame = image_of(tmp_path, np.full((8, 8), 51, np.uint8), boxes="[[0, 0, 4, 4]]")
    sample = ImageDataset(frame, channels=3, size=(4, 2))[0]
    assert sample["image"].shape == (3, 4, 2) and torch.allclose(sample["image"], torch.tensor(0.2))
    assert sample["mask"].tolist() == [[1, 0], [1, 0], [0, 0], [0, 0]]
    colour = image_of(tmp_path, np.full((8, 8, 3), 51, np.uint8))
    assert ImageDataset(colour, channels=1)[0]["image"].shape == (1, 8, 8)


def square(channels=3):
    """A white rectangle on black and its mask, wide enough that bilinear edges do not matter."""
    mask = torch.zeros(64, 64, dtype=torch.uint8)
    mask[12:30, 20:50] = 1
    return tv_tensors.Image(mask.float().expand(channels, 64, 64).clone()), tv_tensors.Mask(mask)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ["none", "flips", "fundus", "chest", "xml"])
def test_augmentation_moves_the_mask_with_the_image(name, channels):
    torch.manual_seed(0)
    transform, moved = augmentation(name, 1.0), 0
    for _ in range(15):
        before, mask = square(channels)
        image, after = transform(before, mask)
        assert image.shape == (channels, 64, 64) and after.shape == (64, 64) and after.dtype == torch.uint8
        assert image.min() >= 0 and image.max() <= 1
        bright = image.mean(0) > 0.5 * image.max()
        assert (bright != after.bool()).float().sum() <= 0.2 * mask.sum()
        moved += not torch.equal(after, mask)
    assert moved == (0 if name == "none" else 15)


def test_probability_zero_changes_nothing_and_flips_are_exact(own):
    image, mask = square()
    for name in ("flips", "fundus", "xml"):
        assert all(torch.equal(a, b) for a, b in zip(augmentation(name, 0)(image, mask), (image, mask), strict=True))
    frame = load_manifest(own)
    frame = frame[frame["mask"] != ""]
    plain, flipped = ImageDataset(frame)[0], ImageDataset(frame, transform=augmentation("flips", 1))[0]
    assert torch.equal(flipped["image"], plain["image"].flip(1, 2))
    assert torch.equal(flipped["mask"], plain["mask"].flip(0, 1))


def test_the_probability_is_that_of_each_flip_and_of_the_whole_for_xml():
    def moved(name, p, tries=300):
        torch.manual_seed(1)
        transform, (image, mask) = augmentation(name, p), square(1)
        return np.mean([not torch.equal(transform(image, mask)[1], mask) for _ in range(tries)])

    assert abs(moved("flips", 0.5) - 0.75) < 0.1  # 1 - 0.5 ** 2
    assert abs(moved("xml", 0.2) - 0.2) < 0.08

"""Images of a manifest as tensors, and the papers' augmentations."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from lib.data.manifest import parse_boxes
from lib.data.pixels import box_mask, read_image, read_mask, resized_mask


class ImageDataset(Dataset):
    """Samples of manifest rows: dicts of image, label, mask, has_mask and id.

    image: float32 (C, H, W) in [0, 1], not normalised; label: int64; mask: uint8 (H, W), 0 or 1, from the mask file or
    else the boxes, all 0 where there is neither; has_mask: bool, whether a pixel of it is left after augmentation; id:
    the image's path in the manifest. The frame's attrs hold `root`, maybe `mask_values`. `channels` (1 or 3) and
    `size` (height, width) convert what the files hold; `transform` is one of torchvision.transforms.v2, for (Image,
    Mask) together. Decoded images stay in memory unless `cache` is False.
    """

    def __init__(self, frame: pd.DataFrame, transform=None, channels=None, size=None, cache: bool = True):
        self.frame, self.root = frame.reset_index(drop=True), Path(frame.attrs["root"])
        self.transform, self.channels, self.size = transform, channels, None if size is None else tuple(size)
        self.cache = {} if cache else None

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        pixels, mask = (self.cache or {}).get(index) or self._decoded(self.frame.iloc[index])
        if self.cache is not None:
            self.cache[index] = pixels, mask
        image = tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1).float() / 255)
        mask = tv_tensors.Mask(torch.from_numpy(mask.copy()))
        if self.transform is not None:
            image, mask = self.transform(image, mask)
        return {
            "image": image.as_subclass(torch.Tensor).contiguous(),
            "label": torch.tensor(int(self.frame.at[index, "label"])),
            "mask": mask.as_subclass(torch.Tensor).contiguous(),
            "has_mask": torch.tensor(bool(mask.any())),
            "id": self.frame.at[index, "image"],
        }

    def _decoded(self, row: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (H, W, C) and mask uint8 (H, W)."""
        pixels = read_image(self.root / row["image"])
        if row["mask"]:
            mask = read_mask(self.root / row["mask"], self.frame.attrs.get("mask_values"))
        else:
            mask = box_mask(parse_boxes(row["boxes"]), *pixels.shape[:2])
        picture = Image.fromarray(pixels)
        if self.channels is not None:
            picture = picture.convert("L" if self.channels == 1 else "RGB")
        if self.size is not None:
            picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
            mask = resized_mask(mask, self.size)
        return np.atleast_3d(np.array(picture)), mask.astype(np.uint8)


class ResizedCrop(v2.RandomResizedCrop):
    """Random crop, resized to the size that the image had."""

    def transform(self, inpt, params):
        size = F.get_size(inpt)
        return F.resized_crop(inpt, **params, size=size, interpolation=self.interpolation, antialias=self.antialias)


def augmentation(name: str, p: float) -> v2.Compose:
    """Random transform of (Image, Mask): none, flips, fundus (also OCT), chest (RSNA) or xml (Explainer-Classifier).

    p: probability of each step; of the flips (chest: its rotation and colours always vary); of the whole (xml, as in
    the reference code, whose longer list of distortions this does not repeat). The papers have 0.5, xml 0.2. Sources:
    SoftCAM (arXiv 2505.17748); Explainer-Classifier (Pattern Recognition Letters 133, 2020).
    """
    linear = {"interpolation": InterpolationMode.BILINEAR}

    def flips(p: float) -> list[v2.Transform]:
        return [v2.RandomHorizontalFlip(p), v2.RandomVerticalFlip(p)]

    def maybe(*steps: v2.Transform) -> v2.Transform:
        return v2.RandomApply(steps, p=p)

    fundus = [
        maybe(ResizedCrop(1, scale=(0.87, 1.15), ratio=(0.7, 1.3))),
        *flips(p),
        maybe(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)),
        maybe(v2.RandomRotation(180, **linear)),
        maybe(v2.RandomAffine(0, translate=(0.2, 0.2), **linear)),
    ]
    chest = [*flips(p), v2.RandomRotation(30, **linear), v2.ColorJitter(brightness=(0.8, 1.1), contrast=(0.8, 1.4))]
    xml = [maybe(*flips(0.5), v2.RandomAffine(10, translate=(0.0625, 0.0625), **linear))]
    steps = {"none": [v2.Identity()], "flips": flips(p), "fundus": fundus, "chest": chest, "xml": xml}
    return v2.Compose(steps[name])

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
    """Samples of manifest rows (attrs `root`, maybe `mask_values`): image, float32 (C, H, W) in [0, 1], not normalised;
    label; mask, uint8 (H, W), 0 or 1, of the mask file or else the boxes; has_mask, whether a pixel of it is left after
    `transform` (one of torchvision.transforms.v2, for (Image, Mask) together); id, the image's path. `channels` (1 or
    3) and `size` (height, width) convert what the files hold."""

    def __init__(self, frame: pd.DataFrame, transform=None, channels=None, size=None, cache: bool = True):
        self.frame, self.transform, self.channels, self.size = frame.reset_index(drop=True), transform, channels, size
        self.cache = {} if cache else None

    def __len__(self) -> int:
        return len(self.frame)

    def __getitem__(self, index: int) -> dict:
        row = self.frame.iloc[index]
        image, mask = (self.cache or {}).get(row["image"]) or self._decode(row)
        if self.cache is not None:
            self.cache[row["image"]] = image, mask
        image = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).float() / 255)
        mask = tv_tensors.Mask(torch.from_numpy(mask.copy()))
        if self.transform is not None:
            image, mask = self.transform(image, mask)
        image, mask = (one.as_subclass(torch.Tensor).contiguous() for one in (image, mask))
        label, has_mask = torch.tensor(int(row["label"])), mask.bool().any()
        return {"image": image, "label": label, "mask": mask, "has_mask": has_mask, "id": row["image"]}

    def _decode(self, row: pd.Series) -> tuple[np.ndarray, np.ndarray]:
        """Pixels uint8 (H, W, C) and mask uint8 (H, W)."""
        root = Path(self.frame.attrs["root"])
        pixels = read_image(root / row["image"])
        if row["mask"]:
            mask = read_mask(root / row["mask"], self.frame.attrs.get("mask_values"))
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
        return F.resized_crop(inpt, **params, size=F.get_size(inpt), interpolation=self.interpolation)


def augmentation(name: str, p: float) -> v2.Compose:
    """Random transform of (Image, Mask): none, flips, fundus (also OCT), chest (RSNA: SoftCAM, arXiv 2505.17748) or xml
    (Explainer-Classifier, Pattern Recognition Letters 133, 2020, without its longer list of distortions). p, there 0.5,
    xml 0.2: probability of each step; of the flips (chest: the rest always varies); of the whole (xml)."""
    linear, half = {"interpolation": InterpolationMode.BILINEAR}, 0.5 if name == "xml" else p
    flips = [v2.RandomHorizontalFlip(half), v2.RandomVerticalFlip(half)]

    def maybe(*steps: v2.Transform) -> v2.Transform:
        return v2.RandomApply(steps, p=p)

    steps = {
        "none": [v2.Identity()],
        "flips": flips,
        "fundus": [
            maybe(ResizedCrop(1, scale=(0.87, 1.15), ratio=(0.7, 1.3))),
            *flips,
            maybe(v2.ColorJitter(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.1)),
            maybe(v2.RandomRotation(180, **linear)),
            maybe(v2.RandomAffine(0, translate=(0.2, 0.2), **linear)),
        ],
        "chest": [*flips, v2.RandomRotation(30, **linear), v2.ColorJitter(brightness=(0.8, 1.1), contrast=(0.8, 1.4))],
        "xml": [maybe(*flips, v2.RandomAffine(10, translate=(0.0625, 0.0625), **linear))],
    }
    return v2.Compose(steps[name])

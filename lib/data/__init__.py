"""Data sets: manifests, images with masks, and the generators of the synthetic ones."""

from lib.data.dataset import ImageDataset, augmentation
from lib.data.manifest import PROJECT, Description, fair_order, load_description, load_manifest, manifest_hash
from lib.data.pixels import pixel_hash, read_image, read_mask
from lib.data.verification import verify

__all__ = [
    "PROJECT",
    "Description",
    "ImageDataset",
    "augmentation",
    "build_manifest",
    "ensure_manifest",
    "fair_order",
    "generate",
    "load_description",
    "load_manifest",
    "manifest_hash",
    "pixel_hash",
    "prepare",
    "read_image",
    "read_mask",
    "verify",
]


def __getattr__(name: str):
    """Import generators and readers when first asked for, so that `python -m lib.data.generation` loads it once."""
    if name in ("generate", "prepare"):
        from lib.data import generation

        return getattr(generation, name)
    if name in ("build_manifest", "ensure_manifest"):
        from lib.data import sources

        return getattr(sources, name)
    raise AttributeError(f"module 'lib.data' has no attribute {name!r}")

"""Data sets: manifests, and images with their masks, ready for use."""

from lib.data.dataset import ImageDataset, augmentation
from lib.data.manifest import Description, fair_order, load_description, load_manifest, manifest_hash
from lib.data.pixels import pixel_hash, read_image, read_mask
from lib.data.verification import ensure_manifest, ready, verify

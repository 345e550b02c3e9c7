"""How images come to disk, once: generators of synthetic data, readers of published data and of one's own."""

from prepare.build import BadData, build_manifest
from prepare.generation import generate

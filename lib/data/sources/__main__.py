"""Build a data set's manifest: python -m lib.data.sources NAME ROOT."""

import argparse
import sys
from inspect import signature

import yaml

from lib.data.sources import SOURCES, build_manifest


def option(text: str) -> tuple[str, object]:
    """Key and value of a `--set KEY=VALUE`, the value as YAML reads it."""
    key, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set: expected KEY=VALUE, got {text!r}")
    if key in signature(build_manifest).parameters:
        raise ValueError(f"--set: expected an option of the data set, got {text!r}; see --help for {key!r}")
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"--set: expected a value in YAML, got {text!r}: {' '.join(str(error).split())}") from None


def main(arguments: list[str] | None = None) -> int:
    """0 where the manifest was written; 1 with the report on standard error where it was not."""
    parser = argparse.ArgumentParser(prog="python -m lib.data.sources", description="Build and check a manifest.")
    parser.add_argument("name", help=f"a card of data_manifests/, the path of a card, or folder ({', '.join(SOURCES)})")
    parser.add_argument("root", nargs="?", help="folder of the data set; default: the card's")
    parser.add_argument("--target", help="which label, where the data set has several")
    parser.add_argument("--size", type=int, help="write square images of this side, boxes and masks along")
    parser.add_argument("--drop", action="store_true", help="leave out rows with a problem, and record them")
    parser.add_argument("--partial", action="store_true", help="accept other counts than the card's")
    parser.add_argument("--workers", type=int, help="threads; default: one per core, at most 16")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="an option of the data set")
    given = vars(parser.parse_args(arguments))
    try:
        options = dict(map(option, given.pop("set")))
        frame = build_manifest(given.pop("name"), given.pop("root"), given.pop("target"), **given, **options)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{frame.attrs['name']}: {len(frame)} images in {frame.attrs['root']}")
    print(frame.groupby(["split", "label"]).size().unstack(fill_value=0).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())

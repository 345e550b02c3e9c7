"""Build a data set's manifest: python -m lib.data.sources NAME ROOT."""

import argparse
import sys

import yaml

from lib.data.sources import SOURCES, BadData, build_manifest


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
    pairs = [pair.partition("=") for pair in given.pop("set")]
    try:
        if wrong := [key for key, equals, _ in pairs if not equals]:
            raise ValueError(f"--set: expected KEY=VALUE, got {wrong[0]!r}")
        options = {key: yaml.safe_load(value) for key, _, value in pairs}
        frame = build_manifest(given.pop("name"), given.pop("root"), given.pop("target"), **given, **options)
    except (BadData, ValueError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{frame.attrs['name']}: {len(frame)} images in {frame.attrs['root']}")
    print(frame.groupby(["split", "label"]).size().unstack(fill_value=0).to_string())
    return 0


if __name__ == "__main__":
    sys.exit(main())

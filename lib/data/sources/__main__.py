"""Build a data set's manifest: python -m lib.data.sources NAME ROOT."""

import argparse
import re
import shlex
import sys
from inspect import signature

import pandas as pd
import yaml

from lib.data.manifest import SPLITS, load_description
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


def summary(frame: pd.DataFrame, ordered: bool) -> str:
    """What was built, and the next command; `ordered`: the order of the classes was given."""
    name = frame.attrs["card"]
    card, masks, boxes = load_description(name), (frame["mask"] != "").sum(), (frame["boxes"] != "").sum()
    classes = [f"{number} {word}" for number, word in enumerate(card.classes)]
    lines = [
        f"{card.name}: {len(frame)} images in {frame.attrs['root']}, {masks} with a mask, {boxes} with boxes",
        f"classes: {', '.join(classes)}",
    ]
    if card.source == "folder" and not ordered:
        lines.append(f"  for another order: --set {shlex.quote(f'classes={_inline(card.classes[::-1])}')}")
    table = frame.groupby(["split", "label"]).size().unstack(fill_value=0)
    table = table.reindex(index=[s for s in SPLITS if s in table.index], columns=range(len(classes)), fill_value=0)
    height, width = card.image_size
    run = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{card.name}_softcam").lstrip("_.-")
    size = {"image_size": min(height, width)} if len(frame[["height", "width"]].drop_duplicates()) > 1 else {}
    changes = _inline({"changes": {"name": run, "dataset": name, "limit": None, **size}})
    lines += [
        table.set_axis(classes, axis=1).to_string(),
        f"card: {name}",
        f"patch: {card.patch} px of {width} x {height}",
        f"next: papermill notebooks/02_train.ipynb out.ipynb -y {shlex.quote(changes)}",
    ]
    return "\n".join(lines)


def _inline(value: object) -> str:
    """YAML in one line."""
    return yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000).strip()


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
    print(summary(frame, "classes" in options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

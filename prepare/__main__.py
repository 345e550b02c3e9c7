"""Build a data set's manifest: python -m prepare NAME ROOT."""

import argparse
import re
import shlex
import sys

import pandas as pd
import yaml
from pydantic import ValidationError

from lib.data.manifest import SPLITS, load_description
from prepare.build import READERS, build_manifest


def summary(frame: pd.DataFrame) -> str:
    """What was built, and the next command."""
    name = frame.attrs["card"]
    card, masks, boxes = load_description(name), (frame["mask"] != "").sum(), (frame["boxes"] != "").sum()
    classes = [f"{number} {word}" for number, word in enumerate(card.classes)]
    table = frame.groupby(["split", "label"]).size().unstack(fill_value=0)
    table = table.reindex(index=[s for s in SPLITS if s in table.index], columns=range(len(classes)), fill_value=0)
    run = re.sub(r"[^A-Za-z0-9_.-]+", "_", f"{card.name}_softcam").lstrip("_.-")
    changes = {"name": run, "dataset": name, "limit": None}
    if len(frame[["height", "width"]].drop_duplicates()) > 1:
        changes["image_size"] = min(card.image_size)
    line = yaml.safe_dump({"changes": changes}, default_flow_style=True, sort_keys=False, allow_unicode=True, width=9e9)
    return f"""{card.name}: {len(frame)} images in {frame.attrs["root"]}, {masks} with a mask, {boxes} with boxes
classes: {", ".join(classes)}
{table.set_axis(classes, axis=1).to_string()}
card: {name}
next: papermill notebooks/02_train.ipynb out.ipynb -y {shlex.quote(line.strip())}"""


def main(arguments: list[str] | None = None) -> int:
    """0 where the manifest was written; 1 with the report on standard error where it was not."""
    parser = argparse.ArgumentParser(prog="python -m prepare", description="Build and check a manifest.")
    parser.add_argument("name", help=f"a card of data_manifests/, the path of a card, or folder ({', '.join(READERS)})")
    parser.add_argument("root", nargs="?", help="folder of the data set; default: the card's")
    parser.add_argument("--target", help="which label, where the data set has several")
    parser.add_argument("--size", type=int, help="write square images of this side, boxes and masks along")
    parser.add_argument("--drop", action="store_true", help="leave out rows with a problem, and record them")
    parser.add_argument("--partial", action="store_true", help="accept other counts than the card's")
    parser.add_argument("--workers", type=int, help="threads")
    parser.add_argument("--set", metavar="KEY=VALUE", action="append", default=[], help="an option")
    given = vars(parser.parse_args(arguments))
    try:
        pairs = [pair.partition("=") for pair in given.pop("set")]
        print(summary(build_manifest(**given | {key: yaml.safe_load(value) for key, _, value in pairs})))
        return 0
    except (ValueError, OSError, yaml.YAMLError) as error:
        wrong = error.errors() if isinstance(error, ValidationError) else ()
        lines = [f"{'.'.join(map(str, one['loc']))}: {one['msg']}, got {one['input']!r}" for one in wrong]
        print(*lines or [error], sep="\n", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

"""Figures on disk: a PNG, the plotted data beside it, and what they were made from."""

import hashlib
import io
import json
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from lib.plots import footnote
from lib.writing import write_json, write_whole


def has(frame: pd.DataFrame, needs: str) -> bool:
    """Whether there is something to draw; else says what would be needed."""
    if frame.empty:
        print(f"Not drawn: it needs {needs}.")
    return not frame.empty


def save(fig: Figure, folder: Path, name: str, shown: pd.DataFrame, table: pd.DataFrame, caption: str) -> None:
    """NAME.png (255 colours unless it holds photographs) with its caption below, NAME.csv: the plotted data; and in
    index.json the caption, the recipes and seeds of the rows that it was made from, the hash of the plotted data."""
    footnote(fig, caption)
    drawn = io.BytesIO()
    fig.savefig(drawn, format="png", metadata={"Software": None})
    picture = Image.open(drawn).convert("RGB")
    picture = (
        picture if name in ("hero", "training_phases", "classes") else picture.quantize(255, dither=Image.Dither.NONE)
    )
    write_whole(folder / f"{name}.png", lambda path: picture.save(path, "PNG", optimize=True))
    write_whole(folder / f"{name}.csv", lambda path: shown.to_csv(path, index=False, lineterminator="\n"))
    index = folder / "index.json"
    known = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    made = {"recipes": sorted(table["recipe"].unique()), "seeds": sorted(map(int, table["seed"].unique()))}
    write_json(index, {**known, f"{name}.png": {"caption": caption, **made, "data_sha256": data_hash(shown)}})


def data_hash(frame: pd.DataFrame) -> str:
    """SHA-256 of plotted data, numbers rounded to six significant digits: the same data give the same hash anywhere."""
    return hashlib.sha256(frame.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()).hexdigest()

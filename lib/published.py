"""What the papers report, with its source: to be drawn beside the same number of a run on the same data."""

from pathlib import Path

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lib.recipe import PROJECT

PUBLISHED = PROJECT / "data_manifests/published/numbers.yaml"


class Number(BaseModel):
    """One reported number. model: a recipe's variant, method: a name in METHODS or None (of the model itself); metric:
    as `metrics.json` names it; setting: the evaluation parameters of a recipe under which it holds."""

    model_config = ConfigDict(extra="forbid", strict=True)
    dataset: str
    model: str
    method: str | None
    metric: str
    setting: dict[str, int | str]
    value: float = Field(allow_inf_nan=False)
    read_off_figure: bool
    source: str = Field(min_length=1)


def load_published(path: str | Path = PUBLISHED) -> pd.DataFrame:
    """One row per reported number, with the columns of `Number`; ValueError names the entry that is not one."""
    entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    numbers = []
    for i, entry in enumerate(entries):
        try:
            numbers.append(Number.model_validate(entry).model_dump())
        except ValidationError as error:
            raise ValueError(f"{path}: entry {i + 1}: {error}") from None
    return pd.DataFrame(numbers, columns=list(Number.model_fields))

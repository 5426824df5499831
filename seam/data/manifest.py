"""The manifest of a dataset: what must be in the file."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from seam.io import read_json
from seam.settings import Shape, check_shape

_Count = Annotated[int, Field(ge=0, lt=2**40)]
_Pair = Annotated[list[Annotated[int, Field(ge=1, lt=2**20)]], Field(min_length=2, max_length=2)]
_Channels = Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=1, max_length=3)]


class _Split(Shape):
    count: _Count
    per_class: list[_Count]


class _Luma(Shape):
    mean: _Channels
    std: _Channels


class _Manifest(Shape):
    dataset: str
    path: str | None
    classes: Annotated[list[str], Field(min_length=1)]
    channels: Annotated[int, Field(ge=1, le=3)]
    image_size: _Pair
    train: _Split
    test: _Split
    mean: _Channels
    std: _Channels
    luma: _Luma | None = None
    sha256: Annotated[dict[str, str], Field(min_length=1)]

    @model_validator(mode="after")
    def _agrees(self) -> "_Manifest":
        if self.channels == 2 or not len(self.mean) == len(self.std) == self.channels:
            raise ValueError("channels must be 1 or 3, with as many numbers in mean and std")
        if self.channels == 3 and not (self.luma and len(self.luma.mean) == len(self.luma.std) == 1):
            raise ValueError("luma must hold a mean and a std, since the images are coloured")
        for split in (self.train, self.test):
            if len(split.per_class) != len(self.classes) or sum(split.per_class) != split.count:
                raise ValueError("per_class must hold a number for each of the classes, count their sum")
        return self


def load_manifest(path: str | Path) -> dict[str, Any]:
    """The manifest that `seam fetch` wrote; SeamError names the file and what is wrong in it."""
    return check_shape(read_json(path), _Manifest, path, "run `seam fetch` again")

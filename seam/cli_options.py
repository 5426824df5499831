"""Options that several commands of the tool share, and what their texts mean."""

from pathlib import Path
from typing import Annotated

import typer

from seam.errors import SeamError, unknown
from seam.runtime.cores import available_cores

Model = Annotated[str, typer.Option(help="timm model.")]
ModelOfPolicy = Annotated[str, typer.Option(help="timm model; by default the policy's.")]
Weights = Annotated[
    Path | None,
    typer.Option(help="Weights: a .safetensors file or a checkpoint (.pth, .pt); by default timm's pretrained ones."),
]
Classes = Annotated[int | None, typer.Option(min=1, help="Number of classes; by default that of the weights.")]
Input = Annotated[
    list[str],
    typer.Option(
        help="What the weights were trained for, where timm does not say so: size=3,192,192 (or size=192), "
        "mean=0.5,0.5,0.5, std=0.25, crop=0.9 (share of the shorter side kept), interpolation=bilinear."
    ),
]
FOLDER = "Folder with train/ and val/, or with one folder a class; or a dataset's name"
Data = Annotated[str, typer.Option(help=f"{FOLDER}.")]
DataOrDigits = Annotated[str | None, typer.Option(help=f"{FOLDER}; by default scikit-learn's digits.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="File to write.")]
Policy = Annotated[Path, typer.Option(help="Policy file.")]
DataRoot = Annotated[Path, typer.Option(help="Folder of the datasets that --data gives by name.")]
Device = Annotated[str, typer.Option(help="auto (a GPU if there is one), cpu, cuda, cuda:1, ...")]
CHOICES = "2,3,4,5,6"
BitsToChoose = Annotated[
    str, typer.Option("--bits", help="Bit-widths to choose from, 2 to 8; or pairs of weight/input bits: 4/8,8/8.")
]
Lock = Annotated[list[str], typer.Option(help="Bits of layers, by pattern: 'blocks.0.*=8/8'.")]
Exclude = Annotated[list[str], typer.Option(help="Layers that stay in full precision, by pattern.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads, at most as many as there are cores; by default all.")]
ALL = available_cores()
SPARED = max(1, ALL - 1)  # where threads meet thousands of times a second, one busy core holds all of them up
ThreadsOfSearch = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Threads, at most as many as there are cores; by default all but one, and all for a method that trains.",
        show_default=str(SPARED),
    ),
]
DATA_ROOT = Path("data")


def stated(given: list[str]) -> dict[str, object]:
    """What --input says of a model's images, as `open_model` takes it."""
    names = {"size": "input_size", "mean": "mean", "std": "std", "crop": "crop_pct", "interpolation": "interpolation"}
    found: dict[str, object] = {}
    for text in given:
        key, _, value = text.partition("=")
        if key not in names:
            raise unknown("key", key, names, "--input")
        try:
            if key in ("size", "mean", "std"):
                found[names[key]] = [(int if key == "size" else float)(part) for part in value.split(",")]
            else:
                found[names[key]] = float(value) if key == "crop" else value
        except ValueError:
            raise SeamError(f"--input {text}: not a number; write size=192, mean=0.5,0.5,0.5 or crop=0.9") from None
    return found


def bits_to_choose(text: str) -> dict[str, tuple]:
    """Settings of a search for --bits: single widths, of which any two make a pair, or pairs."""
    parts = [tuple(part.strip().split("/")) for part in text.split(",")]
    known = all(number.isdecimal() and 2 <= int(number) <= 8 for part in parts for number in part)
    if not known or {len(part) for part in parts} not in ({1}, {2}):
        raise SeamError(f"--bits {text}: write numbers from 2 to 8, such as 2,3,4,5,6,8, or pairs, such as 4/8,8/8")
    pairs = tuple(sorted({tuple(map(int, part)) for part in parts}))
    bits = tuple(sorted({number for pair in pairs for number in pair}))
    return {"bits": bits, "pairs": pairs if len(pairs[0]) == 2 else ()}

"""`seam fetch`: the target dataset, made available and described."""

from pathlib import Path

from seam import io
from seam.experiment import provenance
from seam.experiment.params import Params


def fetch(params: Params, out: Path) -> None:
    """Get the target dataset and write `manifest.json`."""
    from seam.data.fetch import fetch as fetch_dataset

    manifest = fetch_dataset(params.target.dataset, params.data_root, params.target.path)
    with provenance.writing(params, "fetch", {}, [], [out / "manifest.json"]) as folder:
        io.write_json(folder / "manifest.json", manifest)
    print(f"fetch: {params.target.dataset}, {manifest['train']['count']} + {manifest['test']['count']} images")

"""`seam log`: the grid's results in MLflow, serial and idempotent."""

import shlex
import sys
from pathlib import Path
from typing import Any

from seam.experiment.params import Params


def log(params: Params, out: Path, source: Path = Path("params.yaml")) -> dict[str, Any]:
    """Log the grid's results, claims and figures; write `mlflow.json` with the run ids; return its content.

    What the store holds already stays as it is; a run whose results have changed is replaced.
    source: the file of the parameters, for the command that is printed.
    Raises SeamError when results are missing or made with other parameters, or when the store cannot be used.
    """
    from rich.console import Console
    from rich.progress import track

    from seam.data.manifest import load_manifest
    from seam.experiment.graph import report_files
    from seam.experiment.provenance import check_inputs, writing
    from seam.experiment.results import load, read_claims
    from seam.io import write_json
    from seam.tracking.records import SUMMARY, records
    from seam.tracking.store import Store, exclusive, experiment, is_server, public, uri
    from seam.tracking.ui import HOST, PORT
    from seam.tracking.view import address

    results, root = load(params), Path(params.results)
    report = [root / "report" / name for name in report_files(params)]
    manifest = root / "data/target/manifest.json"
    inputs = [manifest, root / "claims.json", *results.files, *report]
    check_inputs(params, inputs)
    claims = read_claims(root / "claims.json")
    place, names, written = uri(params), {}, 0
    with exclusive(place):
        store = Store(place, experiment(params))
        records = records(results, claims, load_manifest(manifest), report)
        bar = Console(stderr=True)
        for entry in track(records, "MLflow", len(results.jobs) + 1, console=bar, disable=not sys.stderr.isatty()):
            names[entry.job], new = store.put(entry)
            written += new
        store.show()
    content = {
        "uri": public(place),
        "experiment": store.experiment,
        "experiment_id": store.experiment_id,
        "summary": names.pop(SUMMARY),
        "runs": names,
    }
    with writing(params, "log", {}, inputs, [out], out.with_name(f"{out.stem}.provenance.json")) as folder:
        write_json(folder / out.name, content)
    print(f"MLflow: {written} runs written, {len(names) + 1 - written} already there; experiment '{store.experiment}'")
    if is_server(place):
        print(f"Look at them: {address(public(place), store.experiment_id)}")
    else:
        command = f"seam ui --params {shlex.quote(str(source))}" if source != Path("params.yaml") else "seam ui"
        print(f"Look at them: `{command}` serves {address(f'http://{HOST}:{PORT}', store.experiment_id)}")
    return content

"""`seam claims`: what the grid's results say, with intervals and verdicts."""

from pathlib import Path
from typing import Any

from seam.experiment.params import Params


def claims(params: Params, out: Path) -> dict[str, Any]:
    """Write `claims.json` and `claims.provenance.json`, print the table, return the claims.

    Raises SeamError when results of the grid are missing or broken; a missing role is a line in the output instead.
    """
    from seam.claims.claims import assess
    from seam.experiment.provenance import check_inputs, writing
    from seam.experiment.results import CLAIMS, load
    from seam.io import write_json
    from seam.report.claims import print_claims

    results = load(params, CLAIMS)
    check_inputs(params, results.files)
    content = assess(results)
    with writing(params, "claims", {}, results.files, [out], out.with_name(f"{out.stem}.provenance.json")) as folder:
        write_json(folder / out.name, content)
    print_claims(content)
    return content

"""The report: tables (csv, md), the claims as text, and figures. Importing this loads no plotting library."""

from pathlib import Path

from seam.io import read_json, write_text
from seam.params import Params


def run(params: Params, out: Path) -> None:
    """Write every table and figure of `seam.graph.report_files` into the folder `out`, and their provenance.

    Raises SeamError when claims.json or results of the grid are missing, broken or made with other parameters.
    """
    from seam.graph import report_files
    from seam.io import write_csv
    from seam.provenance import check_inputs, record
    from seam.report import figures, tables
    from seam.results import load

    results, path = load(params), Path(params.results) / "claims.json"
    inputs = [path, *results.files]
    check_inputs(params, inputs)
    claims = read_json(path)
    rows = tables.rows(results, claims["design"]["roles"]["baseline"])
    out.mkdir(parents=True, exist_ok=True)
    write_csv(out / "results.csv", rows)
    write_text(out / "results.md", tables.results_markdown(results, rows, params.report.title))
    write_text(out / "claims.md", tables.claims_markdown(claims))
    figures.draw_all(results, out, params.report)
    record(params, "report", {}, inputs, [out / name for name in report_files(params)])

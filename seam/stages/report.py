"""`seam report`: tables, the claims as text, figures, and a page with all of it."""

from pathlib import Path

from seam.experiment.params import Params


def report(params: Params, out: Path) -> None:
    """Write every table and figure of `seam.experiment.graph.report_files` into the folder `out`, and their provenance.

    Raises SeamError when claims.json or results of the grid are missing, broken or made with other parameters.
    """
    from seam.experiment.graph import report_files
    from seam.experiment.provenance import check_inputs, writing
    from seam.experiment.results import load, read_claims
    from seam.io import write_csv, write_text
    from seam.report import claims, figures, page, tables

    results, path = load(params), Path(params.results) / "claims.json"
    inputs = [path, *results.files]
    check_inputs(params, inputs)
    content = read_claims(path)
    rows = tables.rows(results, content["design"]["roles"]["baseline"])
    with writing(params, "report", {}, inputs, [out / name for name in report_files(params)]) as folder:
        write_csv(folder / "results.csv", rows)
        write_text(folder / "results.md", tables.results_markdown(results, rows, params.report.title))
        write_text(folder / "claims.md", claims.claims_markdown(content))
        write_text(folder / "report.html", page.report_page(results, rows, content, params.report.title))
        figures.draw_all(results, folder, params.report)

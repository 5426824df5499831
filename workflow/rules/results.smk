SHOWN = PARAMS.report.formats[0]  # snakemake --report shows each figure once


rule claims:
    input:
        every_input("claims"),
    output:
        claims=f"{ROOT}/claims.json",
        provenance=f"{ROOT}/claims.provenance.json",
    log:
        f"{ROOT}/logs/claims.log",
    conda:
        "../../environment.yml"
    params:
        file=parameters,
        settings=settings("claims"),
    message:
        "judge the claims"
    shell:
        "python -m seam claims --params {params.file:q} --out {output.claims:q} | tee -- {log:q}"


rule report:
    input:
        every_input("report"),
    output:
        report(
            f"{ROOT}/report/results.csv",
            caption="../report/results.rst",
            category="Results",
        ),
        report(
            f"{ROOT}/report/claims.md",
            caption="../report/claims.rst",
            category="Claims",
        ),
        report(
            f"{ROOT}/report/report.html",
            caption="../report/page.rst",
            category="Claims",
        ),
        report(
            f"{ROOT}/report/accuracy_bitops.{SHOWN}",
            caption="../report/accuracy_bitops.rst",
            category="Results",
        ),
        report(
            f"{ROOT}/report/accuracy_cost.{SHOWN}",
            caption="../report/accuracy_cost.rst",
            category="Results",
        ),
        report(
            f"{ROOT}/report/bits.{SHOWN}",
            caption="../report/bits.rst",
            category="Policies",
        ),
        report(
            f"{ROOT}/report/search_curves.{SHOWN}",
            caption="../report/curves.rst",
            category="Curves",
        ),
        report(
            f"{ROOT}/report/finetune_curves.{SHOWN}",
            caption="../report/finetune.rst",
            category="Curves",
        ),
        f"{ROOT}/report/results.md",
        [
            f"{ROOT}/report/{name}"
            for name in report_files(PARAMS)
            if name.split(".")[-1] in PARAMS.report.formats[1:]
        ],
        provenance=f"{ROOT}/report/provenance.json",
    log:
        f"{ROOT}/logs/report.log",
    conda:
        "../../environment.yml"
    params:
        file=parameters,
        settings=settings("report"),
        out=subpath(output.provenance, parent=True),
    message:
        "tables and figures"
    shell:
        "python -m seam report --params {params.file:q} --out {params.out:q} | tee -- {log:q}"


rule log:
    input:
        every_input("log"),
    output:
        record=f"{ROOT}/mlflow.json",
        provenance=f"{ROOT}/mlflow.provenance.json",
    log:
        f"{ROOT}/logs/log.log",
    conda:
        "../../environment.yml"
    params:
        file=parameters,
        settings=settings("log"),
    message:
        "log to MLflow"
    shell:
        "python -m seam log --params {params.file:q} --out {output.record:q} | tee -- {log:q}"

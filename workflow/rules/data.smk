rule fetch:
    output:
        manifest=f"{ROOT}/data/target/manifest.json",
        provenance=f"{ROOT}/data/target/provenance.json",
    log:
        f"{ROOT}/logs/fetch.log",
    priority: first("fetch")
    conda:
        "../../environment.yml"
    params:
        file=parameters,
        settings=settings("fetch"),
        out=subpath(output.manifest, parent=True),
    message:
        "fetch the target dataset"
    shell:
        "python -m seam fetch --params {params.file:q} --out {params.out:q} | tee -- {log:q}"


rule sample:
    input:
        weights=f"{ROOT}/models/{{model}}/fp.safetensors",
    output:
        proxy=f"{ROOT}/proxies/{{model}}/{{search}}/proxy.json",
        provenance=f"{ROOT}/proxies/{{model}}/{{search}}/provenance.json",
    log:
        f"{ROOT}/logs/sample/{{model}}-{{search}}.log",
    priority: first("sample")
    conda:
        "../../environment.yml"
    threads: slots("sample")
    resources:
        gpu=gpus("sample"),
    params:
        file=parameters,
        settings=settings("sample"),
        out=subpath(output.proxy, parent=True),
    message:
        "sample the proxy: {wildcards.model} {wildcards.search}"
    shell:
        "python -m seam sample --params {params.file:q} --model {wildcards.model:q} --search {wildcards.search:q}"
        " --weights {input.weights:q} --out {params.out:q} | tee -- {log:q}"

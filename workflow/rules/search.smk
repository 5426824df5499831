rule search:
    input:
        weights=f"{ROOT}/models/{{model}}/fp.safetensors",
        layers=f"{ROOT}/models/{{model}}/layers.json",
        proxy=f"{ROOT}/proxies/{{model}}/{{search}}/proxy.json",
        latency=lambda wildcards: PARAMS.model(wildcards.model).latency or [],
    output:
        policy=f"{ROOT}/search/{{model}}/{{search}}/{{budget}}/{{seed}}/policy.json",
        cost=f"{ROOT}/search/{{model}}/{{search}}/{{budget}}/{{seed}}/cost.json",
        history=f"{ROOT}/search/{{model}}/{{search}}/{{budget}}/{{seed}}/history.csv",
        provenance=f"{ROOT}/search/{{model}}/{{search}}/{{budget}}/{{seed}}/provenance.json",
    log:
        f"{ROOT}/logs/search/{{model}}-{{search}}-{{budget}}-{{seed}}.log",
    priority: first("search")
    conda:
        "../../environment.yml"
    threads: lambda wildcards: schedule.search_slots(PARAMS, wildcards.search, CORES)
    resources:
        gpu=schedule.gpus(PARAMS),
    params:
        file=parameters,
        settings=settings("search"),
        out=subpath(output.policy, parent=True),
    message:
        "search {wildcards.model} {wildcards.search} {wildcards.budget} seed {wildcards.seed}"
    shell:
        "python -m seam search --params {params.file} --model {wildcards.model} --search {wildcards.search}"
        " --budget {wildcards.budget} --seed {wildcards.seed} --weights {input.weights} --proxy {input.proxy}"
        " --out {params.out} | tee {log}"

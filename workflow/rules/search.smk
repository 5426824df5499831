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
    threads: slots("search")
    resources:
        gpu=gpus("search"),
        nodes=machines("search"),
        tasks=machines("search"),
        mpi=machines("search", "srun"),
        tasks_per_gpu=machines("search", 0),
    params:
        file=parameters,
        settings=settings("search"),
        out=subpath(output.policy, parent=True),
    message:
        "search {wildcards.model} {wildcards.search} {wildcards.budget} seed {wildcards.seed}"
    shell:
        "python -m seam search --params {params.file:q} --model {wildcards.model:q} --search {wildcards.search:q}"
        " --budget {wildcards.budget:q} --seed {wildcards.seed:q} --weights {input.weights:q} --proxy {input.proxy:q}"
        " --out {params.out:q} | tee -- {log:q}"

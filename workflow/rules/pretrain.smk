rule pretrain:
    input:
        manifest=f"{ROOT}/data/target/manifest.json",
        given=lambda wildcards: PARAMS.model(wildcards.model).weights or [],
    output:
        weights=f"{ROOT}/models/{{model}}/fp.safetensors",
        layers=f"{ROOT}/models/{{model}}/layers.json",
        history=f"{ROOT}/models/{{model}}/history.csv",
        metrics=f"{ROOT}/models/{{model}}/metrics.json",
        classes=f"{ROOT}/models/{{model}}/classes.json",
        cost=f"{ROOT}/models/{{model}}/cost.json",
        provenance=f"{ROOT}/models/{{model}}/provenance.json",
    log:
        f"{ROOT}/logs/pretrain/{{model}}.log",
    priority: first("pretrain")
    conda:
        "../../environment.yml"
    threads: slots("pretrain")
    resources:
        gpu=gpus("pretrain"),
        nodes=machines("pretrain"),
        tasks=machines("pretrain"),
        mpi=machines("pretrain", "srun"),
        tasks_per_gpu=machines("pretrain", 0),
    params:
        file=parameters,
        settings=settings("pretrain"),
        out=subpath(output.weights, parent=True),
    message:
        "pretrain {wildcards.model}"
    shell:
        "python -m seam pretrain --params {params.file:q} --model {wildcards.model:q} --data {input.manifest:q}"
        " --out {params.out:q} | tee -- {log:q}"

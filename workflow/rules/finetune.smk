rule finetune:
    input:
        weights=f"{ROOT}/models/{{model}}/fp.safetensors",
        policy=f"{ROOT}/search/{{model}}/{{search}}/{{budget}}/{{seed}}/policy.json",
    output:
        model=f"{ROOT}/finetune/{{model}}/{{search}}/{{budget}}/{{seed}}/model.safetensors",
        history=f"{ROOT}/finetune/{{model}}/{{search}}/{{budget}}/{{seed}}/history.csv",
        cost=f"{ROOT}/finetune/{{model}}/{{search}}/{{budget}}/{{seed}}/cost.json",
        provenance=f"{ROOT}/finetune/{{model}}/{{search}}/{{budget}}/{{seed}}/provenance.json",
    log:
        f"{ROOT}/logs/finetune/{{model}}-{{search}}-{{budget}}-{{seed}}.log",
    priority: first("finetune")
    conda:
        "../../environment.yml"
    threads: slots("finetune")
    resources:
        gpu=gpus("finetune"),
        nodes=machines("finetune"),
        tasks=machines("finetune"),
        mpi=machines("finetune", "srun"),
        tasks_per_gpu=machines("finetune", 0),
    params:
        file=parameters,
        settings=settings("finetune"),
        out=subpath(output.model, parent=True),
    message:
        "finetune {wildcards.model} {wildcards.search} {wildcards.budget} seed {wildcards.seed}"
    shell:
        "python -m seam finetune --params {params.file:q} --model {wildcards.model:q} --search {wildcards.search:q}"
        " --budget {wildcards.budget:q} --seed {wildcards.seed:q} --weights {input.weights:q} --policy {input.policy:q}"
        " --out {params.out:q} | tee -- {log:q}"

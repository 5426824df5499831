rule evaluate:
    input:
        weights=f"{ROOT}/models/{{model}}/fp.safetensors",
        full_precision=f"{ROOT}/models/{{model}}/metrics.json",
        classes=f"{ROOT}/models/{{model}}/classes.json",
        policy=f"{ROOT}/search/{{model}}/{{search}}/{{budget}}/{{seed}}/policy.json",
        finetuned=f"{ROOT}/finetune/{{model}}/{{search}}/{{budget}}/{{seed}}/model.safetensors",
    output:
        metrics=f"{ROOT}/evaluate/{{model}}/{{search}}/{{budget}}/{{seed}}/metrics.json",
        hits=f"{ROOT}/evaluate/{{model}}/{{search}}/{{budget}}/{{seed}}/hits.json",
        classes=f"{ROOT}/evaluate/{{model}}/{{search}}/{{budget}}/{{seed}}/classes.json",
        cost=f"{ROOT}/evaluate/{{model}}/{{search}}/{{budget}}/{{seed}}/cost.json",
        provenance=f"{ROOT}/evaluate/{{model}}/{{search}}/{{budget}}/{{seed}}/provenance.json",
    log:
        f"{ROOT}/logs/evaluate/{{model}}-{{search}}-{{budget}}-{{seed}}.log",
    priority: first("evaluate")
    conda:
        "../../environment.yml"
    threads: slots("evaluate")
    resources:
        gpu=gpus("evaluate"),
    params:
        file=parameters,
        settings=settings("evaluate"),
        out=subpath(output.metrics, parent=True),
    message:
        "evaluate {wildcards.model} {wildcards.search} {wildcards.budget} seed {wildcards.seed}"
    shell:
        "python -m seam evaluate --params {params.file:q} --model {wildcards.model:q} --search {wildcards.search:q}"
        " --budget {wildcards.budget:q} --seed {wildcards.seed:q} --weights {input.weights:q} --policy {input.policy:q}"
        " --finetuned {input.finetuned:q} --out {params.out:q} | tee -- {log:q}"

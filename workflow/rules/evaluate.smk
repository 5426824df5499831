rule evaluate:
    input:
        weights=f"{ROOT}/models/{{model}}/fp.safetensors",
        full_precision=f"{ROOT}/models/{{model}}/metrics.json",
        policy=f"{ROOT}/search/{{model}}/{{search}}/{{budget}}/{{seed}}/policy.json",
        finetuned=f"{ROOT}/finetune/{{model}}/{{search}}/{{budget}}/{{seed}}/model.safetensors",
    output:
        metrics=f"{ROOT}/evaluate/{{model}}/{{search}}/{{budget}}/{{seed}}/metrics.json",
        hits=f"{ROOT}/evaluate/{{model}}/{{search}}/{{budget}}/{{seed}}/hits.json",
        provenance=f"{ROOT}/evaluate/{{model}}/{{search}}/{{budget}}/{{seed}}/provenance.json",
    log:
        f"{ROOT}/logs/evaluate/{{model}}-{{search}}-{{budget}}-{{seed}}.log",
    priority: first("evaluate")
    conda:
        "../../environment.yml"
    threads: slots(PARAMS.evaluate.threads)
    resources:
        gpu=schedule.gpus(PARAMS),
    params:
        file=parameters,
        settings=settings("evaluate"),
        out=subpath(output.metrics, parent=True),
    message:
        "evaluate {wildcards.model} {wildcards.search} {wildcards.budget} seed {wildcards.seed}"
    shell:
        "python -m seam evaluate --params {params.file} --model {wildcards.model} --search {wildcards.search}"
        " --budget {wildcards.budget} --seed {wildcards.seed} --weights {input.weights} --policy {input.policy}"
        " --finetuned {input.finetuned} --out {params.out} | tee {log}"

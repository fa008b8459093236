#!/usr/bin/env bash
# Makes every result of docs/results.md again: PTBXL is a folder with the first 500 recordings of PTB-XL at 100 Hz.
#   bash docs/results/run.sh PTBXL
set -euo pipefail
ptbxl=$1

evaluate() { # RUN TASK OPTIONS...: measures, and keeps results.json as docs/results/RUN.json
    local run=$1
    shift
    python evaluate.py "$@" --output "runs/results/$run"
    python -m melp.evaluation.tables --store "$run" "runs/results/$run"
}

# The demo: synthetic recordings, both stages.
python train.py
demo=(--model runs/demo/model --data runs/corpus-6000-0)
evaluate demo-zero-shot zero-shot "${demo[@]}"
evaluate demo-linear-probe linear-probe "${demo[@]}" --fractions 0.1 1 --draws 1
evaluate demo-finetune finetune "${demo[@]}" --epochs 2
evaluate demo-retrieval retrieval "${demo[@]}"
evaluate demo-identify identify "${demo[@]}"
evaluate demo-report report "${demo[@]}"
evaluate demo-robustness robustness "${demo[@]}"

# Real recordings: folds 1 to 8 of those train, 9 is measured; 10 is not read, it is kept for the released model's report.
[ -d data/ptbxl ] || python -m melp.prepare ptbxl --root "$ptbxl" --rate 100 --reports statements --output data/ptbxl
python train.py recipes/demo.yaml --model runs/demo/model --data data/ptbxl --output runs/ptbxl \
    --max-steps 200 --batch-size 32 --learning-rate 3e-4 --warmup-steps 20 --eval-every 50
real=(--model runs/ptbxl/model --against runs/demo/model --data data/ptbxl --split validation --label-set superclass)
evaluate ptbxl-zero-shot zero-shot "${real[@]}"
evaluate ptbxl-linear-probe linear-probe "${real[@]}"
evaluate ptbxl-finetune finetune --model runs/demo/model --data data/ptbxl --split validation --label-set superclass
evaluate ptbxl-transfer transfer --model runs/demo/model --data runs/corpus-6000-0 data/ptbxl --split validation \
    --label-set findings superclass

python -m melp.evaluation.tables

#!/usr/bin/env bash
# Makes every table of docs/calibration.md again, of the model that has learned from simulated ECGs only, after
# `bash recipes/small.sh PTBXL`.
#   bash docs/calibration/run.sh
set -euo pipefail
page=docs/calibration.md out=runs/calibration
rm -rf "$out" && mkdir -p "$out"
for model in real simulated; do cp -r runs/small-simulated/model "$out/$model"; done

measure() { # RUN OPTIONS...: measures, and keeps results.json as docs/calibration/RUN.json
    local run=$1
    shift
    python evaluate.py calibration "$@" --data data/ptbxl --output "$out/$run"
    python -m melp.evaluation.tables --page $page --store "$run" "$out/$run"
}

python -m melp.calibrate $out/real --data data/ptbxl --split train
measure weighted-fold9 --model $out/real --split validation --weighted data/ptbxl

python -m melp.prepare synthetic --variety full --records 3000 --seed 77 --output $out/synthetic
python -m melp.calibrate $out/simulated --data $out/synthetic --split all --label-set superclass subclass form rhythm
measure weighted-simulated --model $out/simulated --split all --weighted $out/synthetic

for labels in 100 500; do
    python -m melp.calibrate $out/simulated --data data/ptbxl --split train --adapt --labels $labels --output $out/adapted-$labels.json
    python -m melp.evaluation.tables --page $page --store adapted-$labels $out/adapted-$labels.json
done

python -m melp.evaluation.tables --page $page

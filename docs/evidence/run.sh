#!/usr/bin/env bash
# Makes every table and picture of docs/evidence.md again, of the released model in the root, after `bash recipes/small.sh PTBXL`.
#   bash docs/evidence/run.sh PTBXL_ROOT
set -euo pipefail
root=${1:?name the folder of PTB-XL, with records500}
page=docs/evidence.md out=runs/evidence
rm -rf "$out"

python evaluate.py faithfulness --model . --data data/ptbxl --split validation --label-set subclass --records 52 --output $out/faithfulness
python -m melp.evaluation.tables --page $page --store faithfulness $out/faithfulness
cp $out/faithfulness/figures/faithfulness.png docs/evidence/

python -m melp.prepare synthetic --variety full --records 60 --seed 7 --output $out/simulated
python -m melp.explain "$out/simulated#synthetic-0000018-0" --model . --output $out/premature \
    --findings "premature ventricular complexes,sinus rhythm,t wave inversion"
cp $out/premature/*-3x4.png docs/evidence/premature.png

python -m melp.explain "$root/records500/01000/01024_hr" "$root/records500/00000/00436_hr" --model . --beats --output $out/two
cp $out/two/01024_hr-*-beats.png docs/evidence/beats.png
cp $out/two/00436_hr-*-beats.png docs/evidence/beats-premature.png
python -m melp.explain $(find "$root/records500/00000" -name '*.hea' | sort | head -40) --model . --beats --output $out/forty
python -m melp.evaluation.tables --page $page --store beats $out/forty/summary.json

python -m melp.evaluation.tables --page $page

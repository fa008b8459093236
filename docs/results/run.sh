#!/usr/bin/env bash
# Makes the results of docs/results.md again, after `bash recipes/small.sh PTBXL` (which writes the lead passport); those of the
# ingredients: docs/results/ingredients.py.
#   bash docs/results/run.sh            # simulated and real validation recordings: data/simulated, data/ptbxl
#   bash docs/results/run.sh untouched  # once, at the end, on data/fold10, georgia, ningbo, cpsc2018, code15 and brugada, prepared by
#       python -m melp.prepare ptbxl --root PTBXL_FOLD10 --reports wordings --output data/fold10
#       python -m melp.prepare georgia --root GEORGIA --output data/georgia                      # as well ningbo, cpsc2018, code15
#       python -m melp.prepare manifest --csv brugada.csv --root BRUGADA/files --output data/brugada
# brugada.csv: record, patient, split (test), labels_brugada (BRUGADA where metadata.csv has brugada above 0).
set -euo pipefail
simulated=runs/small-simulated/model

evaluate() { # RUN TASK OPTIONS...: measures, and keeps results.json as docs/results/RUN.json
    local run=$1
    shift
    python evaluate.py "$@" --output "runs/results/$run"
    python -m melp.evaluation.tables --store "$run" "runs/results/$run"
}

if [ "${1:-}" = untouched ]; then
    evaluate fold10-superclass zero-shot --model . --data data/fold10 --split test --label-set superclass --min-positives 5
    evaluate calibration-fold10 calibration --model . --data data/fold10 --split test
    evaluate calibration-hospitals calibration --model . --split all --min-positives 5 \
        --data data/georgia data/ningbo data/cpsc2018 data/code15
    for database in georgia ningbo code15; do
        evaluate "$database" zero-shot --model . --data "data/$database" --split all --min-positives 2
    done
    evaluate cpsc2018 zero-shot --model . --data data/cpsc2018 --split all --min-positives 1
    evaluate brugada zero-shot --model . --data data/brugada --split test --label-set labels_brugada --min-positives 2 \
        --prompts docs/results/brugada.yaml
else
    for labels in superclass subclass form rhythm; do
        evaluate "simulated-$labels" zero-shot --model $simulated --data data/ptbxl --split all \
            --label-set $labels --min-positives 10
        evaluate "simulated-fold9-$labels" zero-shot --model $simulated --data data/ptbxl --split validation \
            --label-set $labels --min-positives 5
        evaluate "released-$labels" zero-shot --model . --against $simulated --data data/ptbxl --split validation \
            --label-set $labels --min-positives 5
        evaluate "words-$labels" zero-shot --model . --data data/ptbxl --split validation \
            --label-set $labels --min-positives 5 --prompts melp/evaluation/wordings-test.yaml
    done
    evaluate released-groups zero-shot --model . --data data/ptbxl --split validation --label-set superclass \
        --min-positives 5 --by sex age device site
    evaluate probe linear-probe --model . --against $simulated --data data/ptbxl --split validation --label-set superclass
    evaluate finetune finetune --model $simulated --data data/ptbxl --split validation --label-set superclass
    evaluate finetune-released finetune --model . --data data/ptbxl --split validation --label-set superclass
    evaluate retrieval retrieval --model . --data data/ptbxl --split validation
    evaluate report report --model . --data data/ptbxl --split validation
    rm -rf runs/simulated-calibrated && cp -r $simulated runs/simulated-calibrated
    python -m melp.calibrate runs/simulated-calibrated --data data/ptbxl --split train
    evaluate calibration calibration --model runs/simulated-calibrated --data data/ptbxl --split validation
fi
python -m melp.evaluation.tables
# What the root says of itself on the Hub.
stored() { for run in "$@"; do echo "docs/results/$run.json"; done; }
python -m melp.hub results . longisland3/ptb-xl $(stored released-{superclass,subclass,form,rhythm})
python -m melp.hub card . --run runs/small --limits docs/results/limits.md --output MODEL_CARD.md --results $(stored \
    released-{groups,subclass,form,rhythm} probe finetune-released \
    retrieval report fold10-superclass georgia ningbo cpsc2018 code15 brugada calibration-{fold10,hospitals})

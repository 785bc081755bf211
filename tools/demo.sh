#!/usr/bin/env bash
# Trains Mask R-CNN with a narrow DAT on drawn shapes, tests it before and after, and draws what it sees.
#
#   bash tools/demo.sh [OUT]     OUT is work_dirs/demo of the repository by default
#
# Takes a few minutes on two CPU cores, or on a GPU where there is one. Called again, it goes on from where it was.
set -euo pipefail
trap 'printf "\nInterrupted. The same command goes on from here.\n" >&2; exit 130' INT TERM

root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
out=${1:-$root/work_dirs/demo}
mkdir -p -- "$out"
out=$(CDPATH='' cd -- "$out" && pwd -P)
cd -- "$root"
bash tools/setup_env.sh

python=.venv/bin/python
config=configs/demo/mask_rcnn_dat_narrow_shapes.py
data=(--cfg-options data_root="$out/data")
start=$SECONDS
# Threads that wait for others sleep. Spinning is a little faster, but on a busy machine it is five times slower.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}

export PYTHONWARNINGS=ignore::UserWarning # of the libraries, about what the demo does not use

step() { printf '\n[%d:%02d] %s\n' $(((SECONDS - start) / 60)) $(((SECONDS - start) % 60)) "$*"; }

# A tool of MMEngine, cut down to its progress. The log in its work directory has all; errors are shown.
run() {
    "$python" "$@" | sed -unE '/ - Epoch\(/ {
        s/.* - /       /
        s/base_lr: .*(eta: [^ ]+).*(  loss: [^ ]+).*/\1\2/
        s/coco\/[a-z]+_mAP_(75|s|m|l): [^ ]+ *//g
        s/ *(data_)?time: [^ ]+//g
        p
    }'
}

step 'Drawing the data'
"$python" tools/make_demo_data.py "$out/data"

if ! compgen -G "$out/before/*/*.json" >/dev/null; then
    step 'Testing the untrained model'
    "$python" -m mmdat.demo.untrained "$config" "$out/untrained.pth"
    run tools/test.py "$config" "$out/untrained.pth" --work-dir "$out/before" "${data[@]}"
fi

step "Training (log: $out/train)"
run tools/train.py "$config" --work-dir "$out/train" --resume "${data[@]}"

step 'Testing the trained model'
checkpoint=$out/train/$(basename -- "$(<"$out/train/last_checkpoint")") # the path in it is of before a move
run tools/test.py "$config" "$checkpoint" --work-dir "$out/after" "${data[@]}"

step 'Drawing predictions and key points'
images=("$out"/data/val2017/*.jpg)
"$python" tools/visualize_key_points.py "$config" "$checkpoint" "${images[@]:0:8}" --predictions \
    --out-dir "$out/pictures" "${data[@]}"

step 'Done'
"$python" -m mmdat.demo.report "$out/before" "$out/after"
printf '\nPredictions, and the key points that deformable attention samples: %s\n' "$out/pictures"

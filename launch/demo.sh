#!/usr/bin/env bash
# Two processes train a diffusion on Fashion-MNIST, sample from it, and score the samples.
# Five minutes on two CPU cores, six with AVX2 alone. Run it again to continue from the checkpoints in the run directory
# ($RUN). $N images are scored.
# Arguments override the config: ./launch/demo.sh train.steps=2000
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh eval,report,tensorboard
run="${RUN:-runs/fashion_mnist/demo}"
diffpipe=(.venv/bin/accelerate launch --config_file launch/cpu.yaml --num_processes 2 -m diffpipe)
"${diffpipe[@]}" train configs/fashion_mnist/demo.yaml run.dir="$run" "$@"
rm -rf "$run/samples/demo"  # those of an earlier step
"${diffpipe[@]}" sample "$run" "$run/samples/demo" --n 100
"${diffpipe[@]}" eval "$run" --reference configs/fashion_mnist/shards/test --floor configs/fashion_mnist/shards/train --n "${N:-1000}"
echo "the samples, one class per column: $run/samples/demo/grid.png"

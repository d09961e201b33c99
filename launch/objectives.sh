#!/usr/bin/env bash
# The table in configs/fashion_mnist/README.md: trains a diffusion of each objective on 48,000 images of Fashion-MNIST,
# and scores what each sampler draws from it. About two and a half hours on two CPU cores. Run it again to continue.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh eval,report,tensorboard
runs=runs/fashion_mnist/objectives
train() {  # NAME prediction weighting [key=value …]
  .venv/bin/diffpipe train configs/fashion_mnist/demo.yaml run.dir="$runs/$1" train.steps=3000 train.minutes=null \
    stage.prediction="$2" stage.weighting.kind="$3" stage.one_sided_ends=false stage.network.channel_mult=[1,3,6] \
    optimizer.muon_momentum=0.95 "${@:4}"
}
train eps eps simple
train v v min_snr
train x0_simple x0 simple
train x0 x0 min_snr
train x0_one_sided x0 min_snr stage.one_sided_ends=true
train edm edm edm stage.schedule.kind=edm stage.schedule.sigma_data=0.7 stage.timesteps.kind=log_normal stage.sampler.kind=heun
train flow flow simple stage.schedule.kind=flow stage.sampler.kind=heun
train short_momentum x0 min_snr stage.one_sided_ends=true optimizer.muon_momentum=0.9
train demo x0 min_snr stage.one_sided_ends=true optimizer.muon_momentum=0.9 stage.network.channel_mult=[1,3,8]
rows=()
row() {  # RUN sampler steps [guidance]
  rows+=(--row "$1, $2 $3${4:+, guidance $4}" "$runs/$1" "sampler=$2" "steps=$3" "guidance=${4:-1}" vlb_steps=30)
}
for run in eps v x0_simple x0 x0_one_sided; do
  row $run ancestral 50
  row $run ddim 20
  row $run dpmpp_2m 15
  row $run dpmpp_2m_sde 20
done
for run in edm flow; do
  row $run heun 10
  row $run dpmpp_2m 15
  row $run dpmpp_2m_sde 20
done
row x0_one_sided dpmpp_2m_sde 10
row x0_one_sided dpmpp_2m_sde 15 1.25
row short_momentum dpmpp_2m_sde 15 1.25
row demo dpmpp_2m_sde 15 1.25
.venv/bin/diffpipe compare "${rows[@]}" --reference configs/fashion_mnist/shards/test --out $runs/compare --nll-n 100 \
  --metrics fd_efficientnet_lite0,kid_efficientnet_lite0

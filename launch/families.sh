#!/usr/bin/env bash
# All families on real images: trains each on Fashion-MNIST, one after the other, and compares them.
# About an hour on two CPU cores. Run it again to continue from the checkpoints in runs/fashion_mnist.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/setup.sh eval,report,tensorboard
runs=runs/fashion_mnist
# adversarial starts from ddpm, and latent_ddpm is trained in the latents of latent_vae.
for family in vae gan flow autoregressive ddpm adversarial latent_vae latent_ddpm; do
  .venv/bin/diffpipe train "configs/fashion_mnist/$family.yaml"
done
.venv/bin/diffpipe compare \
  --row VAE $runs/vae \
  --row GAN $runs/gan \
  --row Glow $runs/flow \
  --row GPT $runs/autoregressive \
  --row DDPM $runs/ddpm vlb_steps=30 \
  --row "DDIM at 4 steps" $runs/ddpm sampler=ddim steps=4 vlb_steps=30 \
  --row "4-step denoiser" $runs/adversarial \
  --row "latent DDPM" $runs/latent_ddpm \
  --reference configs/fashion_mnist/shards/test --out $runs/compare --nll-n 300 \
  --metrics fd_efficientnet_lite0,kid_efficientnet_lite0,precision_efficientnet_lite0,recall_efficientnet_lite0
echo "the families side by side: $runs/compare/index.html"

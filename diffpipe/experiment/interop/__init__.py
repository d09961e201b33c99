"""Weights and configs to and from other programs: diffusers' folders, single files, published state dicts."""

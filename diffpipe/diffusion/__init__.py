"""Diffusion mathematics: schedules, forward process, parameterizations, objectives, samplers, bound. No networks in it.

The way through it: a schedule's noise levels → `draw_level` and `training_loss` to train; `denoiser` and `sample` to
generate; `variational_lower_bound` to score.
"""

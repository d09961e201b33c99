"""Diffusion mathematics: schedule, forward process, objective, samplers. No networks in it.

The way through it: `Schedule.build(config)` → `training_pair` and `simple_loss` to train, `sample` to generate.
"""

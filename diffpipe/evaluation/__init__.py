"""Evaluation: what a trained run can tell, as images, scores and likelihoods."""

"""Stages: the networks of a model family, its losses, and its sampling. The trainer does not depend on the family."""

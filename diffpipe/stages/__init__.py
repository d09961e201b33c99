"""Stages: a family's networks, its losses, and how it generates. The trainer never knows which it trains."""

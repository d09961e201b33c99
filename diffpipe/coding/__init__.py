"""Lossless coding: messages, grids for real numbers, and the file of compressed images. No networks and no stages."""

"""Decode: encoded images and latents to arrays."""

from diffpipe.data.decode.image import decode, decode_to, fit

__all__ = ["decode", "decode_to", "fit"]

"""Networks: plain torch modules with no diffusion maths in them."""

"""How numbers are stored in few bits: formats, scales, packing."""

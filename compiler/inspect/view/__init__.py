"""A program as something to look at: boxes in boxes, drawn in several ways."""

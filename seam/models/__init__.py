"""timm models: building them, and their layers: which there are, which read one tensor, whose bits are fixed."""

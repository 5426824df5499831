"""The pipeline's stages, one file each: what `python -m seam STAGE` does."""

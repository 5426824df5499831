"""Digits as image files."""

from PIL import Image


def save(pixels, path, size=(8, 8), mode="L"):
    """One digit, enlarged, as an image file. In RGB, the three channels differ."""
    image = Image.fromarray(pixels[..., 0]).resize(size, Image.Resampling.BILINEAR)
    if mode == "RGB":
        turned = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        image = Image.merge("RGB", (image, turned, image.point(lambda v: v // 2)))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)

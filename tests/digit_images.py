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


def save_digits(folder, indices, side=32):
    """scikit-learn's digits at these positions as square RGB files, one folder a class."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for i in indices:
        pixels = (digits.images[i] * 15).astype("uint8")[..., None]
        save(pixels, folder / str(digits.target[i]) / f"{i}.png", (side, side), "RGB")

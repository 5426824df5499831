"""Decoding image files."""

from seam.errors import SeamError


def open_image(path: str):
    """An image file as Pillow opens it. SeamError names one that is none."""
    from PIL import Image

    try:
        return Image.open(path)
    except OSError as error:
        raise SeamError(f"{path}: corrupt, or not an image ({error}); replace or delete it") from None


def read_image(path: str, channels: int):
    """Decode an image file to a PIL image, gray (1 channel) or RGB (3). SeamError names a broken file."""
    with open_image(path) as image:
        try:
            return image.convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise SeamError(f"{path}: corrupt or truncated image ({error}); replace or delete it") from None

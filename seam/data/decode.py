"""Decoding image files, to 8 bits a channel."""

import os
import warnings
from io import BytesIO

import numpy as np

from seam.data.archives import Member
from seam.errors import SeamError

# Pillow's modes of 8 bits or fewer; it brings files of 16-bit colours to them itself, by the higher byte.
EIGHT_BITS = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}
BITS_A_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags, and a value of the second


def open_image(path: str):
    """An image file as Pillow opens it. SeamError names one that is none, or that is too large to decode."""
    from PIL import Image

    packed = isinstance(path, Member)
    if not packed and os.path.exists(path) and not os.path.isfile(path):  # a pipe would never end
        raise SeamError(f"{path}: not a file; delete it")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(BytesIO(path.read()) if packed else path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        limit = Image.MAX_IMAGE_PIXELS / 1e6
        raise SeamError(f"{path}: more than {limit:.0f} million pixels; make the image smaller, or delete it") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise SeamError(f"{path}: corrupt, or not an image ({error}); replace or delete it") from None


def file_size(path: str) -> int:
    """Bytes of an image file, in a folder or in an archive."""
    return path.size if isinstance(path, Member) else os.stat(path).st_size


def read_image(path: str, channels: int):
    """Decode an image file to a PIL image, gray (1 channel) or RGB (3). SeamError names a broken file.

    16-bit grays are scaled by their whole range, 0..65535 to 0..255; transparency is left out.
    """
    with open_image(path) as image:
        if problem := unreadable(image):
            raise SeamError(f"{path}: {problem}")
        try:
            if image.mode not in EIGHT_BITS:
                image = _to_eight_bits(image)
            return image.convert("L" if channels == 1 else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise SeamError(f"{path}: corrupt or truncated image ({error}); replace or delete it") from None


def unreadable(image) -> str:
    """Why the pixels of an opened image have no right form in 8 bits, and what to do; "" where they have one."""
    if image.mode in EIGHT_BITS or is_deep(image):
        return ""
    kinds = {"F": "floating-point pixels", "I": "32-bit or signed pixels"}
    kind = kinds.get(image.mode, f"pixels in Pillow's mode {image.mode}")
    return f"{kind}, whose black and white are not known; convert to 8-bit or unsigned 16-bit gray, or 8-bit RGB"


def is_deep(image) -> bool:
    """Whether an opened image has unsigned grays of 9 to 16 bits, which Pillow itself would clip at 255."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _to_eight_bits(image):
    from PIL import Image

    tags = getattr(image, "tag_v2", {})
    white = 2 ** tags.get(BITS_A_SAMPLE, (16,))[0] - 1
    pixels = np.rint(np.asarray(image).astype(np.float32) * (255 / white)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(255 - pixels if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else pixels)

"""Image files of every depth, colour and transparency, written by Pillow, come out in 8 bits rightly or are refused."""

import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from seam.data.datasets import DATASETS
from seam.data.decode import read_image
from seam.data.fetch import fetch
from seam.data.files import folder_reader
from seam.data.loaders import load, open_folder
from seam.errors import SeamError

RAMP = np.linspace(0, 65535, 1024).round().astype(np.uint16).reshape(32, 32)


def written(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return str(path)


def tiff(path, samples, *, bits, photometric=1, sample_format=1):
    """A gray TIFF of one strip, with tags that Pillow does not write itself."""
    height, width = samples.shape
    data = samples.tobytes()
    entries = [(256, width), (257, height), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1)]
    entries += [(278, height), (279, len(data)), (339, sample_format)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + b"\0\0\0\0")
    return str(path)


def png(path, width, height, bit_depth, colour_type, row):
    """A PNG file of equal rows (bytes), of any depth."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, colour_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * height)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return str(path)


@pytest.mark.parametrize("form", ["png", "tif", "pgm", "big-endian.tif", "compressed.tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bit_grays_are_scaled_by_their_whole_range(tmp_path, form, channels):
    ramp = RAMP.astype(">u2") if "endian" in form else RAMP
    options = {"compression": "tiff_lzw"} if "compressed" in form else {}
    image = read_image(written(tmp_path / f"x.{form}", ramp, **options), channels)
    assert image.mode == ("L" if channels == 1 else "RGB")
    expected = np.rint(RAMP / 257)
    assert np.array_equal(np.asarray(image).reshape(32, 32, -1), np.repeat(expected[..., None], channels, axis=2))


def test_16_bit_grays_of_a_tiff_whose_white_is_zero_are_inverted(tmp_path):
    image = read_image(tiff(tmp_path / "x.tif", RAMP, bits=16, photometric=0), 1)
    assert np.array_equal(np.asarray(image), 255 - np.rint(RAMP / 257))


def test_12_bit_grays_have_their_own_white(tmp_path):
    high = np.frombuffer(bytes([0xFF, 0xF0, 0x00, 0x80, 0x0F, 0xFF]), np.uint8).reshape(1, 6)  # 4095 0 2048 4095
    path = tmp_path / "x.tif"
    tiff(path, high, bits=12)
    data = bytearray(path.read_bytes())
    data[data.index(struct.pack("<HHII", 256, 4, 1, 6)) + 8] = 4  # four pixels in six bytes
    path.write_bytes(data)
    assert np.asarray(read_image(str(path), 1)).tolist() == [[255, 0, 128, 255]]


def test_16_bit_colours_keep_their_higher_byte(tmp_path):
    values = (0, 257, 32896, 65535)
    row = b"".join(struct.pack(">HHH", v, 65535 - v, 32896) for v in values)
    expected = [[v >> 8, (65535 - v) >> 8, 128] for v in values]
    assert np.asarray(read_image(png(tmp_path / "x.png", 4, 2, 16, 2, row), 3))[0].tolist() == expected
    (tmp_path / "x.ppm").write_bytes(b"P6 4 2 65535\n" + row * 2)
    near = np.asarray(read_image(str(tmp_path / "x.ppm"), 3))[0].astype(int)
    assert np.abs(near - expected).max() <= 1


def test_grays_of_few_bits_reach_white(tmp_path):
    assert np.asarray(read_image(png(tmp_path / "x.png", 4, 1, 2, 0, bytes([0b00011011])), 1)).tolist() == [
        [0, 85, 170, 255]
    ]
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "y.png")
    assert np.asarray(read_image(str(tmp_path / "y.png"), 1)).tolist() == [[255, 0]]


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (RAMP.astype(np.float32) / 65535, "floating-point pixels"),
        (RAMP.astype(np.int32) * 100, "32-bit or signed pixels"),
        (RAMP.astype(np.int32) // 300, "32-bit or signed pixels"),  # would come out black, or right: who knows
    ],
)
def test_what_has_no_known_white_is_refused(tmp_path, array, kind):
    path = written(tmp_path / "x.tif", array)
    with pytest.raises(SeamError, match=f"{path}: {kind}.*convert to 8-bit or unsigned 16-bit gray"):
        read_image(path, 1)


def test_signed_16_bits_and_lab_are_refused(tmp_path):
    path = tiff(tmp_path / "x.tif", RAMP.astype(np.int16), bits=16, sample_format=2)
    with pytest.raises(SeamError, match=f"{path}: 32-bit or signed pixels"):
        read_image(path, 1)
    Image.new("LAB", (4, 4)).save(tmp_path / "lab.tif")
    with pytest.raises(SeamError, match="lab.tif: pixels in Pillow's mode LAB"):
        read_image(str(tmp_path / "lab.tif"), 3)


def test_transparency_is_left_out(tmp_path):
    rgba = np.zeros((1, 2, 4), np.uint8)
    rgba[0] = [[200, 100, 50, 0], [200, 100, 50, 255]]
    path = written(tmp_path / "rgba.png", rgba)
    assert np.asarray(read_image(path, 3)).tolist() == [[[200, 100, 50]] * 2]
    la = Image.fromarray(rgba[..., 0]).copy()
    la.putalpha(Image.fromarray(rgba[..., 3]))
    la.save(tmp_path / "la.png")
    assert np.asarray(read_image(str(tmp_path / "la.png"), 1)).tolist() == [[200, 200]]
    palette = Image.fromarray(rgba[..., :3]).quantize(2)
    palette.save(tmp_path / "p.png", transparency=0)
    assert Image.open(tmp_path / "p.png").mode == "P" and "transparency" in Image.open(tmp_path / "p.png").info
    assert np.asarray(read_image(str(tmp_path / "p.png"), 3)).tolist() == [[[200, 100, 50]] * 2]
    assert np.unique(np.asarray(read_image(str(tmp_path / "p.png"), 1))).tolist() == [124]  # BT.601, not the index


@pytest.mark.parametrize("form", ["jpg", "tif"])
def test_cmyk_becomes_its_colours(tmp_path, form):
    colours = np.full((16, 16, 3), [200, 100, 50], np.uint8)
    Image.fromarray(colours).convert("CMYK").save(tmp_path / f"x.{form}")
    assert Image.open(tmp_path / f"x.{form}").mode == "CMYK"
    assert np.abs(np.asarray(read_image(str(tmp_path / f"x.{form}"), 3)).astype(int) - colours).max() <= 4


@pytest.mark.parametrize("pixels", [100_000_000, 400_000_000])  # Pillow warns of the first, and refuses the second
def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path, pixels):
    width = 20_000
    path = png(tmp_path / "x.png", width, 1, 1, 0, b"\0" * (width // 8))
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[20:24] = struct.pack(">I", pixels // width)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "x.png").write_bytes(data)
    with warnings.catch_warnings(), pytest.raises(SeamError, match=f"{path}: more than 89 million pixels"):
        warnings.simplefilter("error")
        read_image(path, 1)


def folder_of(base, array, form="tif", per_class=3):
    for split in ("train", "val"):
        for name in ("a", "b"):
            for i in range(per_class):
                written(base / split / name / f"{i}.{form}", array)
    return base


def test_a_folder_of_unreadable_images_says_how_many(tmp_path):
    base = folder_of(tmp_path / "images", RAMP.astype(np.float32))
    written(base / "train/a/0.tif", (RAMP // 257).astype(np.uint8))
    with pytest.raises(SeamError, match=r"train/a/1.tif: floating-point pixels.*\(so 5 of 6 images looked at\)"):
        fetch("folder", tmp_path / "root", base)
    with pytest.raises(SeamError, match=r"train/a/1.tif: floating-point pixels"):
        next(iter(open_folder(base, "train", (32, 32), 1).batches(6)))


@pytest.mark.parametrize("side", [32, 96])  # kept in memory, and read file by file
def test_a_folder_of_16_bit_images_is_gray_and_is_read_as_such(tmp_path, side):
    array = np.linspace(0, 65535, side * side).round().astype(np.uint16).reshape(side, side)
    base = folder_of(tmp_path / "images", array, "png")
    manifest = fetch("folder", tmp_path / "root", base)
    assert manifest["channels"] == 1
    assert manifest["mean"][0] == pytest.approx(0.5, abs=0.02) and 0.2 < manifest["std"][0] < 0.3  # clipped: 1 and 0
    (x, _) = next(iter(load("folder", tmp_path / "root", "train", base).batches(6)))
    assert x.min() < -1.5 and x.max() > 1.5 and abs(float(x.mean())) < 0.1


def test_what_was_read_while_16_bits_were_clipped_is_read_again(tmp_path):
    """Its manifest and its cache go by the listing, which 8-bit sets keep."""
    info = DATASETS["folder"]
    deep = folder_reader(info, folder_of(tmp_path / "deep", RAMP, "png"), tmp_path / "root")
    assert deep.deep
    after = deep.listing()
    deep.deep = False
    assert deep.listing() != after
    assert not folder_reader(info, folder_of(tmp_path / "flat", np.uint8(RAMP // 257), "png"), tmp_path / "root").deep


def test_a_pipe_named_like_an_image_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(SeamError, match="x.png: not a file"):
        read_image(str(tmp_path / "x.png"), 1)

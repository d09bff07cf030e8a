"""Whatever a data set holds comes out as RGB pixels, or as one kind of error."""

import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.core.pictures import digit, encoded
from tocom_core.decoding import UNREADABLE, decode_rgb
from tocom_core.errors import DataError


def _file(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM"])
def test_every_format_decodes_to_rgb(kind: str) -> None:
    """What a data set may hold comes out as RGB."""
    image = decode_rgb(encoded(0, kind))
    assert (image.mode, image.size) == ("RGB", (8, 8))


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1", "I;16", "I", "F"])
def test_every_mode_decodes_to_rgb(mode: str) -> None:
    """Grey, palette, transparent, CMYK, 16-bit and float images come out as RGB."""
    kind = "TIFF" if mode in ("CMYK", "F", "I") else "PNG"
    assert decode_rgb(_file(digit(0).convert("L").convert(mode), kind)).mode == "RGB"


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_samples_are_scaled_and_not_clipped(kind: str) -> None:
    """65535 is white and half of it is grey."""
    samples = np.array([[0, 257 * 100], [257 * 200, 65535]], np.uint16)
    pixels = np.asarray(decode_rgb(_file(Image.fromarray(samples), kind)))
    assert pixels[..., 0].tolist() == [[0, 100], [200, 255]]


def test_float_samples_are_scaled_by_the_range_they_fit_in() -> None:
    """0 to 1 is black to white; values of no usual range are stretched from least to greatest."""

    def grey(*values: float) -> list[int]:
        content = _file(Image.fromarray(np.array([values], np.float32)), "TIFF")
        return list(np.asarray(decode_rgb(content))[0, :, 0].tolist())

    assert grey(0.0, 0.2, 1.0) == [0, 51, 255]
    assert grey(0.0, 30.0, 200.0) == [0, 30, 200]
    assert grey(-1.0, 0.0, 1.0) == [0, 128, 255]
    assert grey(-3.0, -3.0) == [0, 0]


def test_of_an_animation_the_first_frame_is_taken() -> None:
    """An animated GIF is one image."""
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    content = _file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_rgb(content).getpixel((0, 0)) == (255, 0, 0)


def test_transparency_lies_over_white() -> None:
    """The hidden colour of a transparent pixel does not show."""
    assert decode_rgb(_file(Image.new("RGBA", (2, 2), (255, 0, 0, 0)))).getpixel((0, 0)) == (
        (255,) * 3
    )


def test_the_cameras_rotation_is_undone() -> None:
    """EXIF orientation 6 is turned a quarter clockwise."""
    image = Image.new("RGB", (2, 1))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = decode_rgb(_file(image, exif=exif))
    assert upright.size == (1, 2)
    assert upright.getpixel((0, 0)) == (255, 255, 255)


def _bomb() -> bytes:
    """A small PNG that claims to be 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + checksum

    size = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", encoded(0)[:40], encoded(0, "JPEG")[:120], _bomb()],
    ids=["empty", "text", "cut png", "cut jpeg", "bomb"],
)
def test_what_is_no_image_raises_what_callers_expect(content: bytes) -> None:
    """Every failure to decode is one of ``UNREADABLE``."""
    with pytest.raises(UNREADABLE):
        decode_rgb(content)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_bytes_are_decoded_or_raise_what_callers_expect(kind: str) -> None:
    """Whichever bytes of a file are wrong, nothing but a ``DataError`` comes out."""
    draws = random.Random(0)
    for _ in range(150):
        content = bytearray(encoded(0, kind))
        for _ in range(draws.randint(1, 8)):
            content[draws.randrange(len(content))] = draws.randrange(256)
        try:
            assert decode_rgb(bytes(content)).mode == "RGB"
        except DataError as error:
            assert str(error)


def test_the_picture_is_the_one_that_was_written() -> None:
    """Decoding a lossless file gives the very pixels."""
    assert decode_rgb(encoded(5)).tobytes() == digit(5).tobytes()

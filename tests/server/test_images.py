"""Decoding: what a stranger may send, and what comes out."""

import io
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from server.errors import ImageTooLarge, NotAnImage, ServeError
from server.images import FORMATS, ImageLimits, decode, guard_pillow

LIMITS = ImageLimits(max_bytes=2_000_000, max_pixels=1_000_000)
SIZE = (24, 16)  # width, height


@pytest.fixture(autouse=True)
def _guarded() -> None:
    """Every test runs under the switches that the server sets at its start."""
    guard_pillow(LIMITS)


def keep(image: Image.Image) -> Image.Image:
    """A transform that changes nothing, so that tests see what decoding made."""
    assert image.mode == "RGB"
    return image


def pixels(data: bytes, limits: ImageLimits = LIMITS) -> np.ndarray:
    """Decode to ``(H, W, 3)``."""
    return np.asarray(decode(data, limits, keep))


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """Encode with Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(size: tuple[int, int] = SIZE) -> Image.Image:
    """A smooth colour gradient with no symmetry, so that each of the 8 orientations differs."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 / width, y * 255 / height, (x + 2 * y) * 60 / width], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8))


def closeness(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in levels."""
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "JPEG", "WEBP", "AVIF", "GIF"])
def test_each_accepted_format_decodes(kind: str) -> None:
    """A picture saved in any accepted format comes back close to itself."""
    assert kind in FORMATS
    got = pixels(encoded(picture(), kind))
    assert got.shape == (SIZE[1], SIZE[0], 3)
    assert closeness(got, np.asarray(picture())) < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation: int, kind: str) -> None:
    """However the camera was held, the model sees the picture upright, and not turned twice."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = picture() if undo is None else picture().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = pixels(encoded(stored, kind, exif=exif))
    assert got.shape == (SIZE[1], SIZE[0], 3)
    assert closeness(got, np.asarray(picture())) < 8


def test_broken_exif_does_not_cost_the_picture() -> None:
    """Unreadable metadata counts as none: the pixels are good."""
    got = pixels(encoded(picture(), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff"))
    assert closeness(got, np.asarray(picture())) < 8


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA"])
def test_modes_of_png_become_rgb(mode: str) -> None:
    """Bilevel, gray and palette pictures are expanded to the same RGB that Pillow shows."""
    image = picture().convert(mode)
    assert closeness(pixels(encoded(image)), np.asarray(image.convert("RGB"))) < 1


def test_gray_jpeg_has_three_equal_channels() -> None:
    """A one-channel JPEG is repeated on all channels."""
    got = pixels(encoded(picture().convert("L"), "JPEG"))
    assert (got[..., 0] == got[..., 1]).all() and (got[..., 1] == got[..., 2]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_over_white(mode: str) -> None:
    """Clear is white, half-clear black is middle gray, opaque stays."""
    image = Image.new(mode, (3, 1))
    black = (0,) * (len(mode) - 1)
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*black, alpha))
    assert pixels(encoded(image))[0, :, 0].tolist() == [255, 127, 0]


def test_palette_transparency_is_laid_over_white() -> None:
    """A palette entry marked transparent (GIF, PNG) becomes white, the others keep their colour."""
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    for kind in ("PNG", "GIF"):
        got = pixels(encoded(image, kind, transparency=0))
        assert got[0].tolist() == [[255, 255, 255], [0, 0, 255]]


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_not_inverted(kind: str) -> None:
    """CMYK (in JPEG inverted, as Adobe does) comes out as the picture, not as its negative."""
    got = pixels(encoded(picture().convert("CMYK"), kind))
    assert closeness(got, np.asarray(picture())) < 12


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_and_not_clipped(kind: str) -> None:
    """The whole 16-bit range maps to the whole 8-bit range."""
    samples = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    got = pixels(encoded(Image.fromarray(samples), kind))
    assert got[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([[0, 100, 255]], dtype=np.int32), [0, 100, 255]),
        (np.array([[0, 25700, 65535]], dtype=np.int32), [0, 100, 255]),
        (np.array([[-100, 0, 100]], dtype=np.int32), [0, 128, 255]),
        (np.array([[70_000, 70_000]], dtype=np.int32), [0, 0]),
        (np.array([[0.0, 0.5, 1.0]], dtype=np.float32), [0, 128, 255]),
        (np.array([[0.0, 100.0, 255.0]], dtype=np.float32), [0, 100, 255]),
        (np.array([[0.0, np.nan, 1.0]], dtype=np.float32), [0, 0, 255]),
    ],
)
def test_wide_samples_are_fitted_to_8_bits(samples: np.ndarray, expected: list[int]) -> None:
    """32-bit and float samples use a usual range if they fit in one, else the range they span."""
    assert pixels(encoded(Image.fromarray(samples), "TIFF"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_first_frame_of_an_animation(kind: str) -> None:
    """Animated GIF, WebP and PNG: the first frame is classified."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert closeness(pixels(data), np.asarray(frames[0])) < 3


def test_phone_jpeg_with_a_second_picture() -> None:
    """A multi-picture file, as phones write it, decodes to its main picture."""
    data = encoded(picture(), "MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert closeness(pixels(data), np.asarray(picture())) < 8


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"I am a text file that calls itself photo.jpg", "no JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no JPEG, PNG"),
        (b"\xff\xd8\xff\xe0", ""),
        (b"\x89PNG\r\n\x1a\n", ""),
        (b"GIF89a", ""),
        (b"\x00" * 1000, "no JPEG, PNG"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, said: str) -> None:
    """Text, vector graphics, empty files and bare magic numbers are NotAnImage, with the reason."""
    with pytest.raises(NotAnImage) as caught:
        decode(data, LIMITS, keep)
    assert said in str(caught.value)


def test_disguised_content_is_named() -> None:
    """The message says that the declared type is not what was found."""
    with pytest.raises(NotAnImage, match="declared as image/jpeg"):
        decode(b"hello", LIMITS, keep, declared_type="image/jpeg")


def test_content_beats_the_declared_type() -> None:
    """A PNG that is declared as JPEG (a renamed file) is simply read."""
    image = decode(encoded(picture()), LIMITS, keep, declared_type="image/jpeg")
    assert image.size == SIZE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_truncated_files_are_refused(kind: str, share: float) -> None:
    """Half an upload is not classified as if the rest were gray."""
    data = encoded(picture((200, 150)), kind)
    with pytest.raises(NotAnImage):
        decode(data[: int(len(data) * share)], LIMITS, keep)


def test_formats_outside_of_the_list_are_refused() -> None:
    """Formats that Pillow could read but nobody needs stay closed."""
    with pytest.raises(NotAnImage, match="no JPEG, PNG"):
        decode(encoded(picture(), "ICO"), LIMITS, keep)


def test_lab_colours_become_rgb() -> None:
    """A TIFF in the LAB colour space is converted, not refused."""
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    lab = ImageCms.applyTransform(picture(), to_lab)
    assert lab is not None
    assert closeness(pixels(encoded(lab, "TIFF")), np.asarray(picture())) < 8


def test_too_many_bytes_are_refused_with_both_numbers() -> None:
    """The byte limit is checked before Pillow sees the file."""
    with pytest.raises(ImageTooLarge, match=r"11 bytes; at most 10"):
        decode(b"x" * 11, ImageLimits(max_bytes=10, max_pixels=1), keep)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "WEBP", "JPEG", "BMP"])
def test_bomb_is_refused_by_its_header(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image above the pixel limit never reaches a decoder."""
    data = encoded(Image.new("L", (1001, 1000)), kind)

    def explode(*_: object) -> None:
        raise AssertionError("a pixel was decoded")

    with Image.open(io.BytesIO(data)) as opened:
        monkeypatch.setattr(type(opened), "load", explode)
    with pytest.raises(ImageTooLarge, match=r"1001 x 1000 = 1001000 pixels; at most 1000000"):
        decode(data, LIMITS, keep)


def test_huge_bomb_is_refused_without_warning() -> None:
    """Far above the limit, where Pillow itself raises, the answer is the same and nothing leaks."""
    data = encoded(Image.new("1", (3000, 3000)))
    with warnings.catch_warnings(record=True) as caught:
        with pytest.raises(ImageTooLarge):
            decode(data, LIMITS, keep)
        with pytest.raises(ImageTooLarge):
            decode(encoded(Image.new("1", (1200, 1200))), LIMITS, keep)
    assert caught == []


def test_image_at_the_limit_is_read() -> None:
    """The limit itself is allowed."""
    assert decode(encoded(Image.new("1", (1000, 1000))), LIMITS, keep).size == (1000, 1000)


@pytest.mark.parametrize(("size", "kept"), [((2, 5000), (2, 64)), ((5000, 2), (64, 2))])
def test_extreme_shapes_keep_their_centre(size: tuple[int, int], kept: tuple[int, int]) -> None:
    """A thread of pixels is cut, or resizing its short side would need gigabytes."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (0, 0, size[0] // 3 or 2, size[1] // 3 or 2))
    got = decode(encoded(image), LIMITS, keep)
    assert got.size == kept
    assert set(got.get_flattened_data()) == {(255, 0, 0)}


def test_big_jpeg_is_decoded_at_a_smaller_scale_only() -> None:
    """The draft keeps at least the asked side and shows the same picture."""
    data = encoded(picture((1600, 600)), "JPEG", quality=95)
    small = decode(data, ImageLimits(10**6, 10**6, draft_side=140), keep)
    assert small.size == (400, 150)
    full = decode(data, ImageLimits(10**6, 10**6), keep)
    assert full.size == (1600, 600)
    assert closeness(np.asarray(small), np.asarray(full.resize(small.size))) < 2


def test_error_of_the_transform_is_not_blamed_on_the_image() -> None:
    """A bug of ours must not be reported as a bad upload."""

    def broken(_: Image.Image) -> None:
        raise RuntimeError("ours")

    with pytest.raises(RuntimeError, match="ours"):
        decode(encoded(picture()), LIMITS, broken)


def _samples() -> list[bytes]:
    """Small real files, one per format, for mutation."""
    image = picture((40, 30))
    made = [encoded(image, kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")]
    return [*made, encoded(image, "JPEG", progressive=True), encoded(image.convert("P"))]


@st.composite
def mutated_files(draw: Callable[..., object]) -> bytes:
    """A real file with bytes flipped, cut out, repeated or appended."""
    data = bytearray(draw(st.sampled_from(_samples())))  # type: ignore[call-overload]
    for _ in range(draw(st.integers(1, 6))):  # type: ignore[call-overload]
        at = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 24))
        with_bytes = draw(st.binary(max_size=24))
        data[at : at + length] = with_bytes  # type: ignore[operator]
    return bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutated_files())
def test_no_bytes_crash_the_decoder(data: bytes) -> None:
    """Whatever happened to a real file: an RGB image within the limits, or a ServeError."""
    try:
        image = decode(data, LIMITS, keep)
    except ServeError as error:
        assert error.status in (400, 413)
    else:
        assert image.mode == "RGB"
        assert image.width * image.height <= LIMITS.max_pixels


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=300))
def test_no_noise_crashes_the_decoder(data: bytes) -> None:
    """Arbitrary bytes are refused or, against all odds, an image."""
    try:
        decode(data, LIMITS, keep)
    except ServeError as error:
        assert error.status in (400, 413)


def test_too_many_scans_are_refused() -> None:
    """A progressive JPEG may go over all its pixels 16 times; a small one more often."""
    data = encoded(picture((600, 600)), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    again = data[last:-2]
    assert decode(data, LIMITS, keep).size == (600, 600)
    few = data[:-2] + again * 5 + data[-2:]
    assert decode(few, LIMITS, keep).size == (600, 600)
    many = data[:-2] + again * 60 + data[-2:]
    with pytest.raises(ImageTooLarge, match="70 times"):
        decode(many, LIMITS, keep)

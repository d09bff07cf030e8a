"""Images that are broken, odd, or meant badly: made on the spot, the same ones each time."""

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, PngImagePlugin
from skimage.data import chelsea

OK = frozenset({200})
NO_IMAGE = frozenset({400})
TOO_LARGE = frozenset({413})
REFUSED = NO_IMAGE | TOO_LARGE
ANY = OK | REFUSED
"""A damaged file may still be a picture."""

CUTS = (0.02, 0.5, 0.9)
FLIPS = 3
SIDE = 96


@dataclass(frozen=True)
class Sample:
    """One file and the statuses that may answer it."""

    name: str
    data: bytes
    statuses: frozenset[int]


def samples(seed: int = 0) -> list[Sample]:
    """All of them."""
    rng = random.Random(seed)
    good = dict(_good())
    return [
        *(Sample(f"good: {name}", data, OK) for name, data in good.items()),
        *_truncated(good),
        *_flipped(good, rng),
        *_noise(rng),
        *_absurd_sizes(),
        *_bombs(),
        *_wrong_types(),
        *_polyglots(good),
        *_odd_metadata(good["jpeg"], rng),
    ]


def _good() -> Iterator[tuple[str, bytes]]:
    """Legal files in every format and mode that is accepted, odd ones included."""
    rgb = Image.fromarray(chelsea()).resize((SIDE, SIDE))
    yield "jpeg", _save(rgb, "JPEG")
    yield "jpeg progressive", _save(rgb, "JPEG", progressive=True)
    yield "jpeg cmyk", _save(rgb.convert("CMYK"), "JPEG")
    yield "jpeg grey", _save(rgb.convert("L"), "JPEG")
    for mode in ("RGB", "RGBA", "P", "1", "L", "LA", "I;16"):
        yield f"png {mode}", _save(_in_mode(rgb, mode), "PNG")
    yield "png of one pixel", _save(rgb.resize((1, 1)), "PNG")
    yield "apng", _save(rgb, "PNG", save_all=True, append_images=[rgb.rotate(90)])
    yield "gif", _save(rgb.convert("P"), "GIF")
    turned = [rgb.rotate(angle).convert("P") for angle in range(30, 360, 30)]
    yield "gif animated", _save(rgb.convert("P"), "GIF", save_all=True, append_images=turned)
    yield "webp", _save(rgb, "WEBP")
    yield "webp lossless alpha", _save(_in_mode(rgb, "RGBA"), "WEBP", lossless=True)
    yield "webp animated", _save(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(90)])
    for mode in ("RGB", "1", "P", "L"):
        yield f"bmp {mode}", _save(_in_mode(rgb, mode), "BMP")
    for mode in ("RGB", "CMYK", "I;16", "F", "1", "LAB", "YCbCr", "LA", "P"):
        yield f"tiff {mode}", _save(_in_mode(rgb, mode), "TIFF")
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits"):
        yield f"tiff {compression}", _save(rgb, "TIFF", compression=compression)
    yield "tiff not a number", _save(_strange_floats(), "TIFF")
    yield "tiff pages", _save(rgb, "TIFF", save_all=True, append_images=[rgb, rgb])
    for mode in ("RGB", "L", "1", "I;16"):
        yield f"ppm {mode}", _save(_in_mode(rgb, mode), "PPM")
    yield "ppm of one pixel", b"P3 1 1 255 1 2 3"
    yield "avif", _save(rgb, "AVIF", quality=50)
    yield "very long", _save(Image.new("RGB", (4000, 1)), "PNG")


def _truncated(good: dict[str, bytes]) -> Iterator[Sample]:
    for name, data in good.items():
        for cut in CUTS:
            yield Sample(f"{cut:.0%} of {name}", data[: int(len(data) * cut)], ANY)


def _flipped(good: dict[str, bytes], rng: random.Random) -> Iterator[Sample]:
    for name, data in good.items():
        for number in range(FLIPS):
            damaged = bytearray(data)
            # Half of the damage goes to the head, where sizes and offsets are.
            for _ in range(1 + number * 4):
                reach = min(len(damaged), 64) if rng.random() < 0.5 else len(damaged)
                damaged[rng.randrange(reach)] ^= 1 << rng.randrange(8)
            yield Sample(f"{name} with flips #{number}", bytes(damaged), ANY)


def _noise(rng: random.Random) -> Iterator[Sample]:
    heads = {
        "jpeg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
        "png": b"\x89PNG\r\n\x1a\n",
        "gif": b"GIF89a",
        "webp": b"RIFF\xff\xff\xff\x7fWEBPVP8 ",
        "bmp": b"BM",
        "tiff little": b"II*\x00",
        "tiff big": b"MM\x00*",
        "bigtiff": b"II+\x00\x08\x00\x00\x00",
        "ppm": b"P6\n",
        "avif": b"\x00\x00\x00\x1cftypavif",
    }
    for name, head in heads.items():
        yield Sample(f"{name}, nothing more", head, REFUSED)
        yield Sample(f"{name}, then noise", head + rng.randbytes(3000), REFUSED)
        yield Sample(f"{name}, then zeros", head + bytes(3000), REFUSED)
    for size in (1, 2, 100, 100_000):
        yield Sample(f"{size} bytes of noise", b"\x07" + rng.randbytes(size - 1), NO_IMAGE)


def _absurd_sizes() -> Iterator[Sample]:
    for width, height in ((0, 0), (0, 9), (9, 0), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        yield Sample(f"png {width} x {height}", _png(width, height, b""), REFUSED)
    yield Sample("gif 65535 x 65535", b"GIF89a" + b"\xff" * 4 + bytes(20), REFUSED)
    for size in (0, 1, 65535):
        frame = struct.pack(">BHHB", 8, size, size, 1) + b"\x01\x11\x00"
        head = b"\xff\xd8\xff\xc0" + struct.pack(">H", len(frame) + 2) + frame
        yield Sample(
            f"jpeg {size} x {size}", head + b"\xff\xda\x00\x08\x01\x01\x00\x00?\x00", REFUSED
        )
    for width, height in ((2**31 - 1, 2**31 - 1), (-5, 5), (0, 1), (100_000, -100_000)):
        head = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 1, 1, 0, 0)
        data = b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + head
        yield Sample(f"bmp {width} x {height}", data, REFUSED)
    for text in (
        b"P6 99999 99999 255 ",
        b"P5 0 0 255 ",
        b"P6 9 9 0 ",
        b"P4 -1 5 ",
        b"P6 9 9 70000 ",
    ):
        yield Sample(f"ppm {text.decode()}", text + bytes(100), REFUSED)
    for size in (10**6, 2**32 - 1, 0):
        yield Sample(f"tiff {size} x {size}", _tiff((256, 4, size), (257, 4, size)), REFUSED)


def _bombs() -> Iterator[Sample]:
    yield Sample("too many pixels", _save(Image.new("1", (2100, 2100)), "PNG"), TOO_LARGE)
    yield Sample("too many pixels, gif", _save(Image.new("P", (2100, 2100)), "GIF"), TOO_LARGE)
    yield Sample("too many pixels, webp", _save(Image.new("L", (2100, 2100)), "WEBP"), TOO_LARGE)
    inflated = zlib.compress(bytes(100_000_000))
    yield Sample("png: pixels that go on", _png(9, 9, inflated), ANY)
    for kind, head in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        chunk = _chunk(kind, head + inflated)
        yield Sample(f"png: {kind.decode()} bomb", _png(9, 9, _rows(9, 9), chunk), ANY)
        yield Sample(f"png: {kind.decode()} x 20", _png(9, 9, _rows(9, 9), chunk * 20), ANY)
    yield Sample(
        "png: 50,000 chunks", _png(9, 9, _rows(9, 9), _chunk(b"tEXt", b"k\0v") * 50_000), ANY
    )
    yield Sample("jpeg: 2,000 scans", _many_scans(1000, 2000), TOO_LARGE)
    yield Sample("jpeg: 40 scans of a small one", _many_scans(64, 40), ANY)
    frames = [Image.new("P", (64, 64), index % 200) for index in range(400)]
    yield Sample(
        "gif: 400 frames", _save(frames[0], "GIF", save_all=True, append_images=frames), OK
    )
    loop = bytearray(_tiff((256, 4, 9), (257, 4, 9)))
    loop[-4:] = struct.pack("<I", 8)  # the next directory is this one
    yield Sample("tiff: a loop of directories", bytes(loop), REFUSED)
    yield Sample("tiff: a tag of 4 GB", _tiff((256, 4, 9), (257, 4, 9), count=2**32 - 1), REFUSED)
    yield Sample("tiff: 5,000 tags", _tiff(*((300 + i, 4, i) for i in range(5000))), REFUSED)
    floats = Image.fromarray(np.full((1500, 1500), np.inf, dtype=np.float32))
    yield Sample("tiff: infinity", _save(floats, "TIFF", compression="tiff_lzw"), ANY)


def _wrong_types() -> Iterator[Sample]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.txt", "a" * 1000)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
    files = {
        "nothing": b"",
        "text": b"just words\n" * 50,
        "html": b"<!doctype html><script>alert(1)</script>",
        "svg": svg,
        "xml entity": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>',
        "pdf": b"%PDF-1.7\n1 0 obj\n<<>>\nendobj\n",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%id) (w) file\n",
        "pickle": b"\x80\x04\x95\x1d" + bytes(7) + b"\x8c\x05posix\x94\x8c\x06system\x94.",
        "npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,)}",
        "elf": b"\x7fELF" + bytes(100),
        "script": b"#!/bin/sh\nid\n",
        "zip": archive.getvalue(),
        "gzip": b"\x1f\x8b\x08" + bytes(50),
        "json": b'{"file": "../../etc/passwd"}',
        "path": b"/etc/passwd",
        "url": b"http://169.254.169.254/latest/meta-data/",
        "safetensors": struct.pack("<Q", 2**60) + b"{}",
        "ico": _save(Image.new("RGB", (16, 16)), "ICO"),
        "tga": _save(Image.new("RGB", (16, 16)), "TGA"),
        "jpeg 2000": _save(Image.new("RGB", (16, 16)), "JPEG2000"),
        "psd": b"8BPS\x00\x01" + bytes(100),
        "xbm": b"#define a_width 9\n#define a_height 9\nstatic char a_bits[] = {0x00};",
        "fits": b"SIMPLE  =                    T" + bytes(2000),
        "im": b"Image type: L image\r\n" + bytes(600),
        "eps in a tiff's name": b"II*\x00%!PS",
        "mp4": b"\x00\x00\x00\x18ftypmp42" + bytes(100),
    }
    for name, data in files.items():
        yield Sample(f"type: {name}", data, NO_IMAGE)


def _polyglots(good: dict[str, bytes]) -> Iterator[Sample]:
    archive = next(s.data for s in _wrong_types() if s.name == "type: zip")
    for tail_name, tail in (
        ("zip", archive),
        ("html", b"<script>alert(1)</script>"),
        ("php", b"<?php system($_GET['c']); ?>"),
        ("pdf", b"%PDF-1.7\n%%EOF"),
        ("zeros", bytes(500_000)),
    ):
        for name in ("jpeg", "png RGB", "gif", "bmp RGB"):
            yield Sample(f"{name}, {tail_name} behind", good[name] + tail, OK)
    for name in ("jpeg", "png RGB", "gif"):
        yield Sample(f"words before {name}", b"hello\n" + good[name], NO_IMAGE)
    yield Sample("gif that is a script", b"GIF89a/*" + bytes(20) + b"*/=1;alert(1)", REFUSED)
    comment = b"\xff\xfe" + struct.pack(">H", 30) + b"<?php system($_GET['c']); ?>"
    yield Sample("jpeg with a comment", good["jpeg"][:2] + comment + good["jpeg"][2:], OK)


def _odd_metadata(jpeg: bytes, rng: random.Random) -> Iterator[Sample]:
    for orientation in (0, 9, 255, 65535):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = _save(Image.open(io.BytesIO(jpeg)), "JPEG", exif=exif)
        yield Sample(f"orientation {orientation}", data, OK)
    for name, payload in (
        ("noise", rng.randbytes(60_000)),
        ("nothing", b""),
        ("a loop", b"II*\x00\x08\x00\x00\x00\x01\x00i\x87\x04\x00\x01\x00\x00\x00\x08\x00\x00\x00"),
        ("offsets beyond", b"MM\x00*\xff\xff\xff\xff" + bytes(20)),
        ("10,000 entries", b"II*\x00\x08\x00\x00\x00\x10\x27" + bytes(50_000)),
        (
            "orientation as text",
            b"II*\x00\x08\x00\x00\x00\x01\x00\x12\x01\x02\x00\x04\x00\x00\x00abc\x00",
        ),
    ):
        segment = b"Exif\x00\x00" + payload
        head = b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment
        yield Sample(f"exif: {name}", jpeg[:2] + head + jpeg[2:], OK)
    for count in (1, 255):
        profile = b"ICC_PROFILE\x00" + bytes([1, count]) + rng.randbytes(60_000)
        head = b"\xff\xe2" + struct.pack(">H", len(profile) + 2) + profile
        yield Sample(f"icc profile of {count}", jpeg[:2] + head * count + jpeg[2:], OK)
    yield Sample("60 comments", jpeg[:2] + b"\xff\xfe\xff\xff" * 1 + bytes(65533) + jpeg[2:], OK)
    text = PngImagePlugin.PngInfo()
    for index in range(500):
        text.add_text(f"key {index}", "x" * 1000, zip=True)
    yield Sample("png: 500 texts", _save(Image.new("RGB", (9, 9)), "PNG", pnginfo=text), OK)


def _save(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _in_mode(rgb: Image.Image, mode: str) -> Image.Image:
    if mode == "F":
        return Image.fromarray(np.asarray(rgb.convert("L"), dtype=np.float32) / 7 - 3)
    if mode == "I;16":
        return Image.fromarray(np.asarray(rgb.convert("L"), dtype=np.uint16) * 257)
    if mode == "RGBA":
        rgb = rgb.copy()
        rgb.putalpha(rgb.convert("L"))
        return rgb
    if mode == "LAB":
        return Image.frombytes("LAB", rgb.size, rgb.tobytes())
    return rgb.convert(mode)


def _strange_floats() -> Image.Image:
    values = np.linspace(-1e30, 1e30, 100, dtype=np.float32).reshape(10, 10)
    values[0] = np.nan
    values[1] = np.inf
    values[2] = -np.inf
    return Image.fromarray(values)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _rows(width: int, height: int) -> bytes:
    return zlib.compress((b"\x00" + bytes(width * 3)) * height)


def _png(width: int, height: int, compressed: bytes, extra: bytes = b"") -> bytes:
    head = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    end = _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + head + extra + _chunk(b"IDAT", compressed) + end


def _tiff(*tags: tuple[int, int, int], count: int = 1) -> bytes:
    """A TIFF of one directory and no pixels."""
    entries = b"".join(struct.pack("<HHII", tag, kind, count, value) for tag, kind, value in tags)
    return b"II*\x00\x08\x00\x00\x00" + struct.pack("<H", len(tags)) + entries + bytes(4)


def _many_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    image = Image.effect_noise((side, side), 60).convert("L")
    data = _save(image, "JPEG", progressive=True, quality=30)
    last = data.rindex(b"\xff\xda")
    body, end = data[last:-2], data[-2:]
    first = body[: body.index(b"\xda") + 1 + struct.unpack(">H", body[2:4])[0] + 4]
    return data[:last] + body + first * scans + end

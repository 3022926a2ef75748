"""Images to pixels: equal to transformers' own, and images that are refused."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.image_processing_backends import PilBackend

from demi.errors import InputError
from demi.processing import images
from demi.processing.description import ImageInput, Resize
from demi.processing.images import ImagePreprocessor
from demi.processing.prepared import RawRows
from demi.tensors import DType, TensorSpec
from tests.raw_inputs import IMAGE, png

SPEC = {"pixel_values": TensorSpec("pixel_values", DType.FP32, ("batch", "channels", "height", "width"))}


def pixels(data: bytes, description: ImageInput = IMAGE) -> np.ndarray:
    """Return the pixels of one image."""
    found = ImagePreprocessor(description, SPEC)
    return found.stack(found.read(RawRows((data,))))["pixel_values"]


def noise(width: int, height: int) -> bytes:
    """Return an image of random pixels."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


@given(
    width=st.integers(1, 40),
    height=st.integers(1, 40),
    edge=st.integers(1, 30),
    crop=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    number=st.sampled_from(
        [(0, "nearest"), (1, "lanczos"), (2, "bilinear"), (3, "bicubic"), (4, "box"), (5, "hamming")]
    ),
    square=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_pixels_are_those_of_transformers(width, height, edge, crop, number, square):
    """Bit for bit, for any size, filter and crop."""
    data = noise(width, height)
    size = {"height": edge, "width": edge + 1} if square else {"shortest_edge": edge}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    theirs = PilBackend(
        do_resize=True, size=size, resample=number[0], do_center_crop=True,
        crop_size={"height": crop[0], "width": crop[1]}, do_rescale=True, rescale_factor=1 / 255,
        do_normalize=True, image_mean=mean, image_std=std,
    )  # fmt: skip
    ours = ImageInput(resize=Resize(number[1], **size), crop=crop, mean=tuple(mean), std=tuple(std))

    wanted = theirs(images=Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]

    assert wanted.tobytes() == pixels(data, ours).tobytes()


def test_an_image_is_turned_upright():
    """The orientation in its metadata is followed."""
    picture = Image.new("RGB", (4, 2))
    picture.putpixel((0, 0), (255, 255, 255))
    exif = picture.getexif()
    exif[0x0112] = 3  # upside down
    file = io.BytesIO()
    picture.save(file, "PNG", exif=exif)

    assert 1.0 == pixels(file.getvalue(), ImageInput())[0, 0, 1, 3]


def test_gray_and_channels_last():
    """A model of gray pixels, with the channels last."""
    found = pixels(png((255, 255, 255), (3, 2)), ImageInput(mode="L", channels="last"))

    assert ((1, 2, 3, 1), 1.0) == (found.shape, found.min())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_usual_formats_are_read(form):
    """What cameras and browsers write."""
    assert (1, 3, 4, 4) == pixels(png(form=form)).shape


def bomb(width: int, height: int) -> bytes:
    """Return a PNG whose header promises an enormous image."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "image 0 is not an image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image 0 is not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "image 0 is not an image"),
        (png(form="TIFF"), "image 0 is not an image"),
        (png(size=(64, 64))[:60], "image 0 cannot be read"),
        (noise(50, 50)[:3000], "image 0 cannot be read"),
        (bomb(100_000, 100_000), "image 0 has too many pixels"),
        (bomb(10_000, 10_000), "10000 x 10000 pixels"),
        (bomb(40_000, 1), "40000 x 1 pixels"),
    ],
)
def test_damaged_and_enormous_images_are_refused(data, message):
    """Before they are unpacked."""
    with pytest.raises(InputError, match=message):
        pixels(data)


def test_an_image_that_becomes_enormous_is_refused(monkeypatch):
    """A long thin one, resized by its shorter side."""
    monkeypatch.setattr(images, "MOST_RESIZED", 1000)

    with pytest.raises(InputError, match="10 x 400 pixels after resizing"):
        pixels(noise(1, 40), ImageInput(resize=Resize("box", shortest_edge=10)))


@given(st.binary(max_size=200), st.integers(0, 60))
@settings(deadline=None)
def test_damage_never_escapes(junk, place):
    """Any bytes in any place of a file: pixels, or an InputError."""
    good = png()
    data = good[:place] + junk + good[place + len(junk) :]

    assert (1, 3, 4, 4) == outcome(data) or str(outcome(data)).startswith("image 0")


def outcome(data: bytes) -> object:
    """Return the shape of an image's pixels, or the error."""
    try:
        return pixels(data).shape
    except InputError as error:
        return error.message

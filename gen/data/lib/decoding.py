"""Decoding of pictures that may be anybody's: upright, over a background, in 8 bits; or refused by name."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, NamedTuple

from gen.config.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FORMATS", "SUFFIXES", "Header", "Unreadable", "check_scaled", "decode", "read_header"]

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
FORMATS = ("BMP", "JPEG", "PNG", "WEBP")  # no other decoder runs, whatever a file's name: EPS would start Ghostscript
PNG_DEPTH = 24  # offset of the byte that holds a PNG's bits per channel
GREY = ("1", "L", "LA", "La")  # modes of PIL
TURNS = {  # EXIF orientation -> what sets the picture upright, of PIL.Image.Transpose
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class Header(NamedTuple):
    """Facts at the beginning of a picture's file: the size as it is shown, in pixels, and whether it is grey."""

    width: int
    height: int
    grey: bool


class Unreadable(UserError):
    """A picture that cannot be decoded."""


def read_header(where: str, data: bytes) -> Header:
    """Read a picture's header, without decoding the picture.

    Args:
        where: names the picture, for the error.
        data: the file's bytes.

    Raises:
        Unreadable: for what is no picture.
        UserError: for what may be a decompression bomb, is deeper than 8 bits, or animated.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                deep = image.mode.startswith(("I", "F")) or (image.format == "PNG" and data[PNG_DEPTH] > 8)
                width, height = image.size
                turned = _orientation(image) >= 5
                animated = image.format != "MPO" and getattr(image, "n_frames", 1) > 1  # MPO: a photo and its preview
                grey = image.mode in GREY
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UserError(f"{where} has more than {Image.MAX_IMAGE_PIXELS} pixels: refused") from error
        except Exception as error:  # decoders of broken files raise anything
            raise _unreadable(where, error) from error
    if deep:
        raise UserError(f"{where} has more than 8 bits a channel: convert it to 8 bits first")
    if animated:
        raise UserError(f"{where} is animated: save the frames that are meant as pictures")
    return Header(*((height, width) if turned else (width, height)), grey)


def check_scaled(where: str, width: int, height: int, side: int) -> None:
    """Refuse a picture that scaling makes huge, before memory is taken.

    Args:
        where: names the picture.
        width, height: of it, in pixels.
        side: the longer side of the size that it is to cover.

    Raises:
        UserError: if it had more pixels then than PIL decodes.
    """
    from PIL import Image

    short, long = sorted((width, height))
    if side * (side * long / short) > (Image.MAX_IMAGE_PIXELS or float("inf")):
        raise UserError(
            f"{where} is {long} pixels long and {short} wide: scaled to {side} it has more than "
            f"{Image.MAX_IMAGE_PIXELS} pixels: refused"
        )


def decode(where: str, data: bytes, channels: int = 3, background: int = 255) -> Image:
    """Decode a picture as viewers show it: "L" or "RGB", turned by its EXIF orientation.

    Args:
        where: names the picture, for the error.
        data: the file's bytes.
        channels: 1 for grey, 3 for colour.
        background: grey level under transparent pixels.

    Raises:
        Unreadable: names it.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            image.load()
            shown = _upright(image)
            if shown.has_transparency_data:
                below = Image.new("RGBA", shown.size, (background, background, background, 255))
                shown = Image.alpha_composite(below, shown.convert("RGBA"))
            mode = "RGB" if channels == 3 else "L"
            return shown if shown.mode == mode else shown.convert(mode)
    except Exception as error:  # decoders of broken files raise anything
        raise _unreadable(where, error) from error


def _orientation(image: Image) -> int:
    from PIL import ExifTags

    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF data say nothing, in viewers too
        return 1


def _upright(image: Image) -> Image:
    from PIL.Image import Transpose

    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(Transpose[turn])


def _unreadable(where: str, error: Exception) -> Unreadable:
    from PIL import UnidentifiedImageError

    unknown = isinstance(error, UnidentifiedImageError)
    reason = "no picture of a known format" if unknown else " ".join(str(error).split()) or type(error).__name__
    return Unreadable(
        f"{where} cannot be decoded ({reason}); "
        "--data.skip_corrupt true (in Python skip_corrupt=True) leaves such pictures out"
    )

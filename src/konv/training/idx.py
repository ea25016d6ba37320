"""The IDX file format of the MNIST family: a header of big-endian numbers, then the bytes of one array.

Header: two zero bytes, one byte for the type (0x08 = unsigned byte, the only one these data sets use), one byte for the
number of axes, then one unsigned 32-bit number per axis. A file may be compressed with gzip; its first two bytes tell.
Format: Y. LeCun, C. Cortes, C. Burges, *The MNIST database of handwritten digits*, "File formats".
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib

import numpy as np

GZIP_MAGIC = b"\x1f\x8b"
UNSIGNED_BYTE = 0x08
LARGEST = 1 << 31  # bytes; far above 60,000 images of 28 x 28, far below what would exhaust a machine


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """The content of a file, decompressed if it is a gzip file.

    Raises
    ------
    OSError
        The file cannot be read.
    ValueError
        It begins like a gzip file but is damaged or cut short, or it holds more than 2 GiB.
    """
    with open(path, "rb") as file:
        compressed = file.read(2) == GZIP_MAGIC
    try:
        with gzip.open(path, "rb") if compressed else open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: damaged or incomplete gzip file ({error})") from None
    if len(content) > LARGEST:
        raise ValueError(f"{path}: more than {LARGEST} bytes, which is no file of the MNIST family")
    return content


def parse_idx(content: bytes, source: str = "IDX data") -> np.ndarray:
    """The array of an IDX file of unsigned bytes.

    Parameters
    ----------
    content : bytes
        The whole file, decompressed.
    source : str
        What to call it in messages.

    Returns
    -------
    array : uint8 array
        A read-only view of ``content``, shaped as the header says.

    Raises
    ------
    ValueError
        The header is cut short or is no IDX header, the type is not unsigned byte, or the number of bytes differs from
        the product of the header's sizes.

    Examples
    --------
    >>> parse_idx(bytes([0, 0, 8, 2,  0, 0, 0, 2,  0, 0, 0, 3,  1, 2, 3, 4, 5, 6]))
    array([[1, 2, 3],
           [4, 5, 6]], dtype=uint8)
    """
    if len(content) < 4:
        raise ValueError(f"{source}: {len(content)} bytes, but an IDX file begins with 4 bytes of magic number")
    zeros, kind, axes = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != UNSIGNED_BYTE or axes == 0:
        raise ValueError(
            f"{source}: magic number 0x{content[:4].hex()} is not that of an IDX file of unsigned bytes "
            "(0x000008 and the number of axes, as in 0x00000803 for images and 0x00000801 for labels)"
        )
    begin = 4 + 4 * axes
    if len(content) < begin:
        raise ValueError(f"{source}: {len(content)} bytes, but a header of {axes} axes has {begin}")
    shape = struct.unpack_from(f">{axes}I", content, 4)
    expected, found = math.prod(shape), len(content) - begin
    if found != expected:
        sizes = " x ".join(map(str, shape))
        how = "cut short" if found < expected else "too long"
        raise ValueError(f"{source}: {how}: the header says {sizes} = {expected} bytes, the file has {found}")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array of an IDX file of unsigned bytes, gzip-compressed or not.

    Raises
    ------
    OSError, ValueError
        As :func:`read_bytes` and :func:`parse_idx`.
    """
    return parse_idx(read_bytes(path), str(path))

# SPDX-License-Identifier: Apache-2.0
"""Image files written byte by byte, of kinds that Pillow can read but not write."""

import struct
import zlib

LITTLE, BIG = "<", ">"


def write_tiff(
    path,
    content,
    size,
    bits,
    *,
    photometric=1,
    sample_format=1,
    extra=(),
    order=LITTLE,
    separate=False,
    orientation=None,
):
    """An uncompressed TIFF. content: the samples of all rows. size: (H, W). bits: of each sample of a pixel."""
    height, width = size
    num = len(bits)
    strips = num if separate else 1
    tags = [
        (256, "I", [width]),
        (257, "I", [height]),
        (258, "H", list(bits)),
        (259, "H", [1]),
        (262, "H", [photometric]),
        (273, "I", None),
        (277, "H", [num]),
        (278, "I", [height]),
        (279, "I", [len(content) // strips] * strips),
        (284, "H", [2 if separate else 1]),
        (339, "H", [sample_format] * num),
    ]
    if orientation is not None:
        tags.append((274, "H", [orientation]))
    if extra:
        tags.append((338, "H", list(extra)))
    tags.sort()
    start = 8 + 2 + 12 * len(tags) + 4  # of the values that do not fit into their tag
    spilled_size = sum(
        len(values or [0] * strips) * struct.calcsize(kind)
        for _, kind, values in tags
        if len(values or [0] * strips) * struct.calcsize(kind) > 4
    )
    first = start + spilled_size
    entries, spilled = b"", b""
    for tag, kind, values in tags:
        if values is None:
            values = [first + i * (len(content) // strips) for i in range(strips)]
        packed = struct.pack(f"{order}{len(values)}{kind}", *values)
        head = struct.pack(f"{order}HHI", tag, {"H": 3, "I": 4}[kind], len(values))
        if len(packed) > 4:
            entries += head + struct.pack(f"{order}I", start + len(spilled))
            spilled += packed
        else:
            entries += head + packed.ljust(4, b"\0")
    magic = b"II*\0" if order == LITTLE else b"MM\0*"
    path.write_bytes(
        magic + struct.pack(f"{order}IH", 8, len(tags)) + entries + struct.pack(f"{order}I", 0) + spilled + content
    )
    return path


def write_png(path, size, depth, kind, rows, transparent=None, step=0):
    """rows: the bytes of each row. kind: 0 gray, 2 RGB, 4 gray and alpha, 6 RGBA, as the format counts. step: the bytes
    of a pixel, to write rows as differences to the pixel before, as a PNG may."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = size
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    if step:
        rows = [bytes((a - b) % 256 for a, b in zip(row, bytes(step) + row, strict=False)) for row in rows]
    key = b"" if transparent is None else chunk(b"tRNS", transparent)
    pixels = chunk(b"IDAT", zlib.compress(b"".join(bytes([step > 0]) + row for row in rows)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + key + pixels + chunk(b"IEND", b""))
    return path

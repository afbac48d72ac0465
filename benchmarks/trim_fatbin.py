"""Keeps the GPU code of one architecture in a CUDA library, so that it packs small.

``python -m benchmarks.trim_fatbin LIBRARY ARCHITECTURE`` overwrites the code of all others with
zeros. CUDA selects by the headers, which stay: it never reads what was overwritten.
"""

import struct
import sys
from pathlib import Path

MAGIC = struct.pack("<I", 0xBA55ED50)
CONTAINER = struct.Struct("<IHHQ")  # magic, version, size of this header, bytes that follow
ENTRY = struct.Struct(
    "<HHIQIIHHI"
)  # kind, ?, size of this header, bytes that follow, …, architecture
MACHINE_CODE = 2


def trim(library: bytearray, architecture: int) -> int:
    """Overwrite the code of other architectures in place; bytes of the code that is kept.

    Raises ValueError if there is none.
    """
    kept = 0
    position = library.find(MAGIC)
    while position >= 0:
        _, version, header, size = CONTAINER.unpack_from(library, position)
        entry, end = position + header, position + header + size
        if version != 1 or header != CONTAINER.size or end > len(library):
            end = position + len(MAGIC)  # the same four bytes by chance
        else:
            while entry < end:
                kind, _, header, size, *_, arch = ENTRY.unpack_from(library, entry)
                code = slice(entry + header, entry + header + size)
                if (kind, arch) == (MACHINE_CODE, architecture):
                    kept += size
                else:
                    library[code] = bytes(size)
                entry = code.stop
        position = library.find(MAGIC, end)
    if not kept:
        raise ValueError(f"the library has no code for architecture {architecture}")
    return kept


if __name__ == "__main__":
    path, wanted = Path(sys.argv[1]), int(sys.argv[2])
    content = bytearray(path.read_bytes())
    print(f"{path.name}: {trim(content, wanted) / 1e6:.1f} MB of code for architecture {wanted}")
    path.write_bytes(content)

"""The zip archive that torch.save makes of one tensor: found where its bytes lie, and written around raw bytes.

No reader of the format looks at the zip's CRC-32 of a tensor, so it is neither checked nor worked out: it would cost
more than writing does.
"""

import io
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from math import prod
from typing import IO, Any

from megatron_urpo.policy.weights.rows import ITEM_BYTES, Spec, num_bytes
from megatron_urpo.policy.weights.torch_pickle import Call, Named, Persistent, dumps

STORAGES = {
    "BFloat16Storage": "bfloat16", "HalfStorage": "float16", "FloatStorage": "float32", "DoubleStorage": "float64",
}  # fmt: skip
DAMAGED = (
    OSError, ValueError, KeyError, EOFError, TypeError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile,
)  # fmt: skip
"""What reading a file that is no such archive may raise."""
Place = tuple[int, Spec]
"""Where the bytes of a tensor begin in the file, and what they are."""
_ALIGNMENT = 64
_VERSION = b"3\n"


class _TensorUnpickler(pickle.Unpickler):
    """Gives (dtype, offset in the storage, shape, strides) of the one tensor in an archive."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, shape, strides, *_: (storage, offset, tuple(shape), tuple(strides))
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> str:
        dtype = pid[1]
        if dtype not in ITEM_BYTES:
            raise pickle.UnpicklingError(f"it holds a storage of {dtype!r}")
        return str(dtype)


class _Window(io.RawIOBase):
    """A part of a file as a file of its own, for zipfile."""

    def __init__(self, file: Any, start: int, length: int):
        self._file, self._start, self._length, self._at = file, start, length, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._length}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._at)
        self._file.seek(self._start + self._at)
        data: bytes = self._file.read(left if size is None or size < 0 else min(size, left))
        self._at += len(data)
        return data


def find_tensor(file: IO[bytes], start: int, length: int) -> Place:
    """The tensor of the archive at `start` of `file`. Raises DAMAGED."""
    archive = zipfile.ZipFile(_Window(file, start, length))  # type: ignore[arg-type]
    members = {info.filename.split("/", 1)[-1]: info for info in archive.infolist()}
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise ValueError("a part is compressed")

    def begin(info: zipfile.ZipInfo) -> int:
        file.seek(start + info.header_offset)
        header = file.read(30)
        name, extra = struct.unpack("<HH", header[26:30])
        return start + info.header_offset + 30 + int(name) + int(extra)

    file.seek(begin(members["data.pkl"]))
    dtype, offset, shape, strides = _TensorUnpickler(io.BytesIO(file.read(members["data.pkl"].file_size))).load()
    data = members["data/0"]
    skipped = offset * ITEM_BYTES[dtype]
    if strides != _strides(shape) or skipped + num_bytes(dtype, shape) > data.file_size:
        raise ValueError(f"a part is not laid out row by row (shape {shape}, strides {strides})")
    return begin(data) + skipped, (dtype, shape)


def around_tensor(dtype: str, shape: tuple[int, ...], start: int = 0) -> tuple[bytes, bytes]:
    """What stands before and after the bytes of a tensor, in an archive at `start` of a file; the bytes are aligned."""
    size, strides = num_bytes(dtype, shape), _strides(shape)
    kind = next(name for name, known in STORAGES.items() if known == dtype)
    storage = Persistent(("storage", Named("torch", kind), "0", "cpu", size // ITEM_BYTES[dtype]))
    hooks = Call(Named("collections", "OrderedDict"), ())
    tensor = Call(Named("torch._utils", "_rebuild_tensor_v2"), (storage, 0, shape, strides, False, hooks))
    archive = _Archive(start)
    before = archive.member("data.pkl", dumps(tensor)) + archive.member("byteorder", b"little")
    before += archive.header("data/0", size, 0, _ALIGNMENT)
    return before, archive.member("version", _VERSION) + archive.end()


def plain_archive(value: Any) -> bytes:
    """What torch.save makes of a value without tensors."""
    archive = _Archive(0)
    members = (("data.pkl", dumps(value)), ("byteorder", b"little"), ("version", _VERSION))
    return b"".join(archive.member(name, content) for name, content in members) + archive.end()


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a tensor laid out row by row, in elements."""
    return tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))


class _Archive:
    """A zip archive in the making, its members as they are; whoever makes it writes them one after the other."""

    _LOCAL, _CENTRAL, _END = struct.Struct("<4s5H3L2H"), struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s4H2LH")

    def __init__(self, start: int):
        """At `start` of a file; places within count from there."""
        self._start, self._at = start, 0
        self._directory: list[bytes] = []

    def member(self, name: str, content: bytes) -> bytes:
        return self.header(name, len(content), zlib.crc32(content)) + content

    def header(self, name: str, size: int, checksum: int, alignment: int = 1) -> bytes:
        """Stands before the `size` bytes of a member, which then begin at a multiple of `alignment` in the file."""
        path = f"archive/{name}".encode()
        common = 0, 0, 0, 0, 0, checksum, size, size, len(path)
        begin = self._start + self._at + self._LOCAL.size + len(path) + 4
        padding = -begin % alignment
        extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # the field that torch pads with
        self._directory.append(self._CENTRAL.pack(b"PK\1\2", 0, *common, 0, 0, 0, 0, 0, self._at) + path)
        header = self._LOCAL.pack(b"PK\3\4", *common, len(extra)) + path + extra
        self._at += len(header) + size
        return header

    def end(self) -> bytes:
        directory, count = b"".join(self._directory), len(self._directory)
        return directory + self._END.pack(b"PK\5\6", 0, 0, count, count, len(directory), self._at, 0)

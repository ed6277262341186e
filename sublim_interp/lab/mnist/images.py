"""Images of digits: scikit-learn's own, which come with the package, or IDX files such as MNIST's."""

import gzip
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sublim_interp.core.errors import SublimError
from sublim_interp.core.keys import digest_file, sha256_of

EMBEDDED = "digits"
"""The name of the images that come with the package."""

CLASSES = 10

_DIGITS = Path(__file__).with_name("digits.npz")
_HELD_OUT = 360
"""Of the embedded images, the last so many are to test on."""

_PARTS = {"train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
          "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")}  # fmt: skip
_IMAGES, _LABELS = 0x803, 0x801
"""How IDX files of bytes begin: with three dimensions, with one."""


@dataclass(frozen=True)
class Images:
    """Images of digits with their labels, to train on and to test on; pixels lie between −1 and 1."""

    train: Float[Tensor, "image pixel"]
    train_labels: Int[Tensor, " image"]
    test: Float[Tensor, "held_out pixel"]
    test_labels: Int[Tensor, " held_out"]

    @property
    def pixels(self) -> int:
        """Pixels of an image."""
        return self.train.shape[1]


def load_images(name: str) -> Images:
    """The images of a name.

    name: `digits`, or a directory with MNIST's four IDX files, each plain or with .gz behind its name

    Raises SublimError for a file that is missing, broken, or does not fit the others.
    """
    if name == EMBEDDED:
        with zipfile.ZipFile(_DIGITS) as kept:
            images, labels = (np.lib.format.read_array(kept.open(f"{part}.npy")) for part in ("images", "labels"))
        cut = len(images) - _HELD_OUT
        return _images((images[:cut], labels[:cut]), (images[cut:], labels[cut:]), 16)
    train, test = (_read_part(Path(name), *files) for files in _PARTS.values())
    if train[0].shape[1:] != test[0].shape[1:]:
        sizes = " and ".join(" × ".join(map(str, part[0].shape[1:])) for part in (train, test))
        raise SublimError(f"images {name}: train and t10k hold images of other sizes, {sizes} pixels")
    return _images(train, test, 255)


def digest_images(name: str) -> str:
    """What tells these images from others: a digest over their files. Raises SublimError as `load_images` does."""
    if name == EMBEDDED:
        return digest_file(_DIGITS)
    return sha256_of({file: digest_file(_find(Path(name), file)) for part in _PARTS.values() for file in part})


def _images(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], white: int) -> Images:
    parts = []
    for pixels, labels in (train, test):
        scaled = torch.from_numpy(pixels.astype(np.float32)).flatten(1) * (2 / white) - 1
        parts += [scaled, torch.from_numpy(labels.astype(np.int64))]
    return Images(*parts)


def _find(directory: Path, file: str) -> Path:
    found = [path for path in (directory / file, directory / f"{file}.gz") if path.is_file()]
    if not found:
        needed = ", ".join(name for part in _PARTS.values() for name in part)
        raise SublimError(
            f"images {directory}: no {file}; needed are the IDX files {needed}, plain or .gz (--images DIR says where)"
        )
    return found[0]


def _read_part(directory: Path, images: str, labels: str) -> tuple[np.ndarray, np.ndarray]:
    pixels, said = read_idx(_find(directory, images), _IMAGES), read_idx(_find(directory, labels), _LABELS)
    if len(pixels) != len(said):
        raise SublimError(f"images {directory}: {images} holds {len(pixels)}, {labels} {len(said)}")
    if len(said) == 0 or said.max() >= CLASSES:
        raise SublimError(f"images {directory}: {labels} holds no label, or one above {CLASSES - 1}")
    return pixels, said


def read_idx(path: Path, magic: int) -> np.ndarray:
    """What an IDX file of bytes holds.

    path: the file, plain or gzipped (.gz)
    magic: how it must begin, which says how many dimensions it has

    Raises SublimError for what is no such file. Source: yann.lecun.com/exdb/mnist.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SublimError(f"images {path}: cannot be read ({error})") from None
    count = magic & 0xFF
    size = 4 * (count + 1)
    if len(data) < size or int.from_bytes(data[:4]) != magic:
        raise SublimError(f"images {path}: no IDX file of bytes in {count} dimensions, which begins {magic:08x}")
    shape = struct.unpack(f">{count}I", data[4:size])
    body = np.frombuffer(data[size:], dtype=np.uint8)
    if len(body) != math.prod(shape):
        raise SublimError(f"images {path}: {len(body)} bytes of pixels or labels, where its head says {shape}")
    return body.reshape(shape)

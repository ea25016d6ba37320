"""The house: no import runs up the ladder, ``import konv`` stays light, files stay short."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import konv

PACKAGE = Path(konv.__file__).parent

# From the roof down. A module imports from lower rungs, and from its own package on its own rung, never from above.
LADDER = [
    ["konv.__main__"],
    ["konv.cli"],
    ["konv.commands"],
    ["konv.checks"],
    ["konv.training", "konv.explain", "konv.bench"],
    ["konv.torch"],
    ["konv"],  # the public surface; konv/__init__.py
    ["konv.book"],
    ["konv.layers"],
    ["konv.down"],
    ["konv.rectified"],
    ["konv.ops", "konv.pooling", "konv.unfolding"],
    ["konv.engine.plan"],
    ["konv.engine"],  # one file per algorithm
    ["konv.textbook"],
    ["konv.gradcheck", "konv.info", "konv.arrays"],
    ["konv.gradcheck_result", "konv.gradcheck_parameters"],
    ["konv.lending"],
    ["konv.segments"],
    ["konv.geometry"],
    ["konv.shapes"],
    ["konv.arguments"],
    ["konv.names"],
]

# Heavy, or not installed for everyone: the packages whose modules may import them when they are imported themselves.
HEAVY = {
    "torch": ["konv.torch"],
    "typer": ["konv.commands"],
    "rich": ["konv.commands"],
    "sklearn": [],
    "matplotlib": [],
    "pooch": [],
    "PIL": [],
    "numba": ["konv.engine"],
    "llvmlite": ["konv.engine"],
    "scipy": [],
    "ml_dtypes": [],
    "onnx": [],
}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def place(module):
    """(rung, the entry of the ladder that the module belongs to): of the entries that fit, the longest name."""
    fitting = [
        (len(entry), rung, entry)
        for rung, entries in enumerate(LADDER)
        for entry in entries
        if module == entry or (entry != "konv" and module.startswith(entry + "."))
    ]
    assert fitting, f"{module} stands on no rung: add it to LADDER"
    _, rung, entry = max(fitting)
    return rung, entry


def imports(module, at_import=False):
    """Absolute names of what a module imports, anywhere or (``at_import``) outside functions; not for type checkers only."""
    path = MODULES[module]
    found = []

    def visit(node):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.orelse:
                visit(child)
            return
        if at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.append((inner if inner in MODULES else source, node.lineno))
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


def test_every_module_stands_on_a_rung():
    assert len(MODULES) >= 20
    for module in MODULES:
        place(module)


@pytest.mark.parametrize("module", MODULES)
def test_no_import_runs_up_the_ladder(module):
    rung, entry = place(module)
    for name, line in imports(module):
        if name.split(".")[0] != "konv":
            continue
        if module == "konv" and name == "konv":
            continue
        other_rung, other_entry = place(name)
        allowed = other_rung > rung or (other_rung == rung and other_entry == entry)
        assert allowed, f"{module}, line {line}: imports {name}, from above"


def test_no_two_modules_import_each_other():
    waiting = {
        module: {n for n, _ in imports(module, at_import=True) if n in MODULES and n != module} for module in MODULES
    }
    for module in MODULES:  # a package's __init__ runs before its modules, which is not an import of theirs
        waiting[module] = {n for n in waiting[module] if not module.startswith(n + ".")}
    while waiting:
        free = [module for module, needed in waiting.items() if not needed & waiting.keys()]
        assert free, f"a circle of imports within {sorted(waiting)}"
        for module in free:
            del waiting[module]


@pytest.mark.parametrize("module", MODULES)
def test_heavy_packages_are_imported_where_they_are_needed(module):
    _, entry = place(module)
    for name, line in imports(module, at_import=True):
        owners = HEAVY.get(name.split(".")[0])
        assert owners is None or entry in owners, (
            f"{module}, line {line}: import {name} inside the function that needs it"
        )


@pytest.mark.parametrize("module", MODULES)
def test_a_file_has_a_docstring(module):
    text = MODULES[module].read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)) or not text.strip(), f"{module} does not say what it is for"


FOLDERS = [module for module, path in MODULES.items() if module.startswith("konv.engine") and path.stem == "__init__"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_map_of_a_folder_of_the_engine_names_every_file_and_folder_once(folder):
    text = ast.get_docstring(ast.parse(MODULES[folder].read_text(encoding="utf-8")))
    drawn = re.findall(r"\b\w+(?:\.py|/)", "".join(re.findall(r"^    .*$", text.partition("::\n\n")[2], re.MULTILINE)))
    inside = {path for path in MODULES[folder].parent.iterdir() if path.stem != "__init__" and path.name[0] not in "_."}
    names = [f"{path.name}/" if path.is_dir() else path.name for path in inside]
    if folder == "konv.engine":  # who asks the algorithms, and who asks him
        names = [*(set(names) - {"plan.py"}), "ops.py"]
    assert sorted(drawn) == sorted(names)


def called(module, node, known):
    """The functions of the package that a function, or a class when it is made, names: (module, name)."""
    own = {argument.arg for argument in ast.walk(node) if isinstance(argument, ast.arg)}
    found = set()
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id not in own:
            found.add(known[module].get(part.id))
        if isinstance(part, ast.Attribute):
            base = known[module].get(part.value.id) if isinstance(part.value, ast.Name) else None
            if base in MODULES:
                found.add(known[base].get(part.attr))
            elif part.attr in ("declines", "workspace", "blocking", "share"):  # of some algorithm: of any
                found |= {names[part.attr] for names in known.values() if part.attr in names}
    return found - {None}


def test_what_is_remembered_is_forgotten_with_the_number_of_threads():
    """A cached function from which get_threads() can be reached has ``threads`` among its arguments."""
    trees = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in MODULES.items()}
    known, functions = {module: {} for module in MODULES}, {}
    for module, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("konv"):
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    known[module][alias.asname or alias.name] = inner if inner in MODULES else (node.module, alias.name)
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                known[module][node.name], functions[module, node.name] = (module, node.name), node
    calls = {}
    for (module, name), node in functions.items():
        made = [m for m in node.body if getattr(m, "name", "") in ("__init__", "__post_init__")]
        parts = made if isinstance(node, ast.ClassDef) else [node]
        calls[module, name] = set().union(*(called(module, part, known) for part in parts))
    reach = {("konv.engine.threads", "get_threads")}
    while more := {caller for caller, names in calls.items() if names & reach} - reach:
        reach |= more
    cached = {f for f, node in functions.items() if any("cache" in ast.unparse(d) for d in node.decorator_list)}
    assert len(cached) > 50 and len(reach & cached) > 20
    assert not {f for f in reach & cached if "threads" not in {a.arg for a in functions[f].args.args}}


PROBE = """
import json, sys, time
import numpy
began = time.perf_counter()
import konv
print(json.dumps({"seconds": time.perf_counter() - began, "modules": sorted(sys.modules)}))
"""


def test_import_konv_is_light():
    runs = []
    for _ in range(3):
        output = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True).stdout
        runs.append(json.loads(output))
    print("import konv (after NumPy):", ", ".join(f"{run['seconds'] * 1000:.0f} ms" for run in runs))
    loaded = {name.split(".")[0] for name in runs[0]["modules"]}
    assert not loaded & HEAVY.keys()
    ours = {name for name in runs[0]["modules"] if name.startswith("konv.")}
    assert not {name for name in ours if place(name)[0] < place("konv")[0]}, (
        "the public surface loads what stands above it"
    )


def test_the_public_names_exist_and_are_documented():
    assert sorted(konv.__all__) == sorted(set(konv.__all__))
    for name in konv.__all__:
        thing = getattr(konv, name)
        assert thing.__doc__ and thing.__module__.startswith("konv"), name
    contract = """conv conv_backward conv_transpose conv_transpose_backward im2col col2im unfold fold geometry plan gradcheck
        info Convolution ConvolutionTranspose Pooling AveragePooling DownConv CausalConv1d Affine ReLU BatchNormalization
        Dropout SoftmaxWithLoss Sequential SGD Momentum Adam"""
    assert not set(contract.split()) - set(konv.__all__)


def test_torch_is_loaded_when_first_used():
    pytest.importorskip("torch")
    probe = "import sys, konv; assert 'torch' not in sys.modules; konv.torch.DownConv; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'convolve'"):
        konv.convolve  # noqa: B018


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("Conv2d", "Convolution.*; for PyTorch's tensors konv.torch.Conv2d"),
        ("conv2d", "conv, .*konv.torch.conv2d"),
        ("MaxPooling", "Pooling"),
    ],
)
def test_an_unknown_name_tells_the_near_ones(name, near):
    with pytest.raises(AttributeError, match=f"no attribute '{name}'; near: .*{near}"):
        getattr(konv, name)
    with pytest.raises(AttributeError, match=r"no attribute '__wrapped__'$"):
        konv.__wrapped__  # noqa: B018


@pytest.mark.parametrize(
    ("name", "near"), [("Conv2D", "Conv2d, conv2d"), ("Conv1D", "Conv1d, conv1d"), ("SegmentConv", "DownConv")]
)
def test_an_unknown_name_of_the_pytorch_face_tells_the_near_ones(name, near):
    pytest.importorskip("torch")
    with pytest.raises(AttributeError, match=f"module 'konv.torch' has no attribute '{name}'; near: .*{near}"):
        getattr(konv.torch, name)
    assert not hasattr(konv.torch, "__wrapped__")

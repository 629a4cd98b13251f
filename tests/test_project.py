"""The project as a whole: pins, tree, licence, imports, committed runs and committed notebooks."""

import ast
import graphlib
import json
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from rainlab import __version__, runs

pytest.importorskip("packaging", reason="the environment of environment.yml has it")
yaml = pytest.importorskip("yaml", reason="the environment of environment.yml has it")

from packaging.requirements import Requirement  # noqa: E402
from packaging.specifiers import SpecifierSet  # noqa: E402
from packaging.utils import canonicalize_name  # noqa: E402

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
SECTION = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
MODULES = sorted((ROOT / "rainlab").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUNS = sorted((ROOT / "figures" / "runs").glob("*"))

TOP_LEVEL = {"notebooks", "rainlab", "data_prep", "figures", "tests", "environment.yml", "pyproject.toml"}
TOP_LEVEL |= {"README.md", "Makefile", "dodo.py", "LICENSE", "CITATION.cff", ".ci", ".gitignore"}
CORE = {"torch", "numpy", "einops", "safetensors", "tqdm"}
ALSO_AT_TOP = {
    "plot.py": {"matplotlib"},
    "staircase.py": {"matplotlib"},
    "dots.py": {"matplotlib"},
    "figures.py": {"matplotlib", "PIL"},
}
ALSO_AT_TOP |= {"widgets.py": {"anywidget", "ipywidgets", "traitlets", "PIL"}, "plan.py": {"pandas"}}
PINNED = ("dev", "export", "fid", "fp8", "rtx")  # the extras that environment.yml installs


def requirements(*extras):
    """What pyproject.toml asks for, by canonical name."""
    lines = PROJECT["dependencies"] + [line for extra in extras for line in PROJECT["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def pins():
    """environment.yml's pip section without `-e .`, by canonical name."""
    lines = next(entry["pip"] for entry in SECTION if isinstance(entry, dict))
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line != "-e ."}


# -- environment -----------------------------------------------------------------------------------------------------


def test_every_direct_dependency_is_pinned_and_nothing_else():
    assert pins().keys() == requirements(*PINNED).keys()


@pytest.mark.parametrize("name", sorted(pins()))
def test_pin_is_exact_and_inside_its_range(name):
    pin, wanted = pins()[name], requirements(*PINNED)[name]
    ((operator, version),) = [(part.operator, part.version) for part in pin.specifier]
    assert operator == "==" and "*" not in version
    assert wanted.specifier.contains(version), f"{pin} lies outside {wanted}"
    assert str(pin.marker) == str(wanted.marker)


def test_conda_entries_are_python_and_pip_with_the_range_of_pyproject():
    entries = [entry for entry in SECTION if isinstance(entry, str)]
    matches = [re.fullmatch(r"([a-z0-9_.-]+)(?: ?([<>=!][0-9.<>=!,]*))?", entry) for entry in entries]
    assert all(matches), f"not plain conda match specifications: {entries}"
    assert {match[1]: SpecifierSet(match[2] or "") for match in matches} == {
        "python": SpecifierSet(PROJECT["requires-python"]),
        "pip": SpecifierSet(),
    }


def test_make_installs_the_pip_section():
    command = re.search(r"sed -n .*?(?= >)", (ROOT / "Makefile").read_text("utf-8"))[0]
    installed = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert installed.splitlines() == next(entry["pip"] for entry in SECTION if isinstance(entry, dict))


def test_tensorrt_is_an_extra_and_named_in_the_environment_as_a_comment():
    assert {"tensorrt", "torch-tensorrt"} == requirements("tensorrt").keys() - requirements().keys()
    assert re.search(r"^ +# - tensorrt\b", (ROOT / "environment.yml").read_text("utf-8"), re.MULTILINE)


# -- tree, version, licence ------------------------------------------------------------------------------------------


def tracked():
    """The files that git tracks or would add, as paths relative to the root."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"not a git checkout: {error}")
    return [Path(name) for name in listing.split("\0") if name and (ROOT / name).exists()]


def test_top_level_holds_nothing_else():
    assert {path.parts[0] for path in tracked()} <= TOP_LEVEL


def test_tracked_files_are_small_and_no_pickles():
    large = [path for path in tracked() if (ROOT / path).stat().st_size > 40 * 2**20]
    pickles = [path for path in tracked() if path.suffix in {".pth", ".pt", ".ckpt"}]
    assert not large and not pickles


def test_one_version_and_one_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == __version__ == metadata.version("rainlab")
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text and "END OF TERMS AND CONDITIONS" in text


# -- imports ---------------------------------------------------------------------------------------------------------


def imports(tree, inside_functions=True):
    """Full names of the modules that a syntax tree imports; `from rainlab import x` counts as `rainlab.x`."""
    names = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            own = node.module == "rainlab" or node.module.startswith("rainlab.")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if own else {node.module}
        elif inside_functions or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names |= imports(node, inside_functions)
    return names


def foreign(tree, inside_functions=True):
    """Top-level names of the imported modules that are neither Python's nor this project's."""
    tops = {name.split(".")[0] for name in imports(tree, inside_functions)}
    ours = {"rainlab", "data_prep", "dodo", "golden"} | {file.stem for file in (ROOT / "tests").glob("*.py")}
    return tops - set(sys.stdlib_module_names) - ours


def cell_trees(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return [ast.parse(re.sub(r"^[%!].*", "", source, flags=re.MULTILINE)) for source in sources]


def test_everything_imported_is_a_declared_dependency():
    distributions = metadata.packages_distributions()
    scripts = [*MODULES, *(ROOT / "data_prep").rglob("*.py"), ROOT / "dodo.py"]
    used = set().union(*(foreign(ast.parse(path.read_text("utf-8"))) for path in scripts))
    used = used.union(*(foreign(tree) for path in NOTEBOOKS for tree in cell_trees(path)))
    tests = set().union(*(foreign(ast.parse(path.read_text("utf-8"))) for path in (ROOT / "tests").glob("*.py")))
    everywhere, ours = (
        requirements("detect", "cluster", "memory", "tensorrt", *PINNED),
        requirements("detect", "cluster", *PINNED),
    )
    for names, declared in ((used, everywhere), (tests, ours)):
        # a package may be a shell around others, as tensorrt-rtx is
        known = {n for n in names if {canonicalize_name(d) for d in (n, *distributions.get(n, ()))} & declared.keys()}
        undeclared = names - known
        assert not undeclared, "add to pyproject.toml and environment.yml"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_modules_import_only_the_core_at_the_top(path):
    at_top = foreign(ast.parse(path.read_text("utf-8")), inside_functions=False)
    assert at_top <= CORE | ALSO_AT_TOP.get(path.name, set())


WINGS = ["base", "method", "data", "training", "baselines", "measure", "show"]  # each imports those before it
METHOD_MAY = {"rainlab.config", "rainlab.files"}  # of the base: the method is to be read alone


def import_graph():
    """Module -> the modules of this package that it imports anywhere, but for what `rainlab/__init__` imports late."""
    files = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {}
    for module, path in files.items():
        found = imports(ast.parse(path.read_text("utf-8")), inside_functions=module != "rainlab")
        graph[module] = {name if name in files else name.rpartition(".")[0] for name in found} & files.keys()
    return graph


def wing(module):
    first = module.split(".")[1:2]
    return WINGS.index(first[0]) if first and first[0] in WINGS else 0


def test_modules_do_not_import_each_other_in_circles():
    assert list(graphlib.TopologicalSorter(import_graph()).static_order())


def test_imports_point_downwards():
    graph = import_graph()
    up = [f"{a} -> {b}" for a, found in graph.items() for b in found if wing(b) > wing(a)]
    beside = [f"{a} -> {b}" for a, found in graph.items() for b in found
              if wing(a) == WINGS.index("method") and wing(b) == 0 and b not in METHOD_MAY | {"rainlab"}]  # fmt: skip
    assert not up and not beside
    assert {wing(module) for module in graph} == set(range(len(WINGS)))


def test_every_wing_says_what_it_is_for():
    for folder in (path for path in (ROOT / "rainlab").iterdir() if (path / "__init__.py").is_file()):
        text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text("utf-8")))
        assert folder.name in WINGS and "mports" in text and len(text.splitlines()) <= 4, folder.name


# -- committed runs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.name)
def test_committed_run_is_complete_and_named_by_its_content(path):
    assert {file.name for file in path.iterdir()} - {runs.VALUES, runs.PICTURES} == set(runs.FILES)
    config, metrics, provenance = (json.loads((path / file).read_text("utf-8")) for file in runs.FILES)
    assert path.name == runs.run_id(config["name"], config["config"], config["version"], config["inputs"])
    columns = {"metric", "value", "ci_low", "ci_high", "n", "protocol"}
    assert metrics and all(columns <= row.keys() for row in metrics)
    assert provenance["run"] == path.name and provenance["versions"]["torch"]


# -- committed notebooks ---------------------------------------------------------------------------------------------


def notebook_faults(notebook):
    """What is wrong with a committed notebook (parsed JSON), as a list of sentences."""
    faults = []
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    parameters = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(parameters) != 1:
        faults.append(f"{len(parameters)} cells are tagged parameters, expected one")
    for cell in parameters:
        faults += parameter_faults("".join(cell["source"]))
    if [cell["execution_count"] for cell in code] != list(range(1, len(code) + 1)):
        faults.append("cells were not executed once each from top to bottom")
    for number, cell in enumerate(code):
        if len("".join(cell["source"]).splitlines()) > 20:
            faults.append(f"code cell {number} has more than 20 lines")
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                faults.append(f"code cell {number} has an error output")
            if output.get("name") == "stderr":
                faults.append(f"code cell {number} has stderr output: strip it")
    trained_later = set(re.findall(r'train_stage\(\w+, "(\w+)"', "\n".join("".join(cell["source"]) for cell in code)))
    for number, cell in enumerate(code):  # a new preset has no shipped weights
        source = "".join(cell["source"])
        early = set(re.findall(r'trained\(\w+, "(\w+)"', source)) & trained_later
        faults += [f"code cell {number} loads {stage} before its training" for stage in sorted(early)]
        trained_later -= set(re.findall(r'train_stage\(\w+, "(\w+)"', source))
    found = re.findall(r"(?<![\w.])/(?:work|root|home|tmp|Users)/[^\s\"'\\]*", readable(notebook))
    return faults + [f"absolute path {path}" for path in sorted(set(found))]


def parameter_faults(source):
    """What in a parameters cell is not `name = scalar  # comment` (or `name: type = scalar  # comment`)."""
    faults, lines = [], source.splitlines()
    for node in ast.parse(source).body:
        line = lines[node.end_lineno - 1]
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        value = getattr(node, "value", None)
        value = value.operand if isinstance(value, ast.UnaryOp) else value  # -1
        if not (len(targets) == 1 and isinstance(targets[0], ast.Name) and isinstance(value, ast.Constant)):
            faults.append(f"parameter is not a scalar: {line}")
        elif not re.search(r"  # \S", line):
            faults.append(f"parameter has no comment: {line}")
    return faults


def readable(notebook):
    """The notebook's text without pictures and embedded videos, whose base64 holds any letters."""
    without = json.dumps(notebook, default=str)
    without = re.sub(r'"(image|video|audio)/[^"]*": (\[[^\]]*\]|"[^"]*")', "", without)
    return re.sub(r"base64,[\w+/=\\]+", "", without)


def test_the_tour_is_there():
    assert ROOT / "notebooks" / "00_tour.ipynb" in NOTEBOOKS, "`make lab` opens it"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_committed_notebook(path):
    faults = notebook_faults(json.loads(path.read_text("utf-8")))
    assert not faults, "; ".join(faults)


# -- the README ------------------------------------------------------------------------------------------------------

README = (ROOT / "README.md").read_text("utf-8")


def test_readme_is_short_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 120
    links = re.findall(r"\]\((?!http)([^)]+)\)", README)
    assert len(links) > 15 and not [link for link in links if not (ROOT / link).exists()]
    assert (ROOT / "figures" / "tour_film.webp").stat().st_size < 1.5e6


def test_readme_s_costs_are_the_notebooks():
    table = dict(re.findall(r"^\| \[(\w+)\]\(notebooks/.*\| (\d+) s \|$", README, re.MULTILINE))
    assert table.keys() == {path.stem for path in NOTEBOOKS}
    for path in NOTEBOOKS:
        title = "".join(json.loads(path.read_text("utf-8"))["cells"][0]["source"])
        assert re.search(r"^Cost: about (\d+) seconds", title, re.MULTILINE)[1] == table[path.stem], path.name
    assert sum(map(int, table.values())) <= 30 * len(table) and max(map(int, table.values())) <= 90


def test_readme_s_python_runs_as_it_stands(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "stream.png").stat().st_size > 10_000


def code_cell(source, count, *outputs, tags=()):
    metadata = {"tags": list(tags)}
    return {"cell_type": "code", "source": source, "execution_count": count, "outputs": outputs, "metadata": metadata}


PARAMETERS = 'steps = 30  # of the demonstration\nseed: int = -1  # any\nname = "a"  # of the run'
LOAD, TRAIN = 'stages.trained(full, "stage2")', 'stages.train_stage(shown, "stage2", where)'
PICTURE = {"output_type": "display_data", "data": {"image/png": "iVBO/tmp/x", "text/html": "base64,AA/tmp/x"}}


@pytest.mark.parametrize(
    "fault, cells",
    [
        (None, [code_cell(PARAMETERS, 1, tags=["parameters"]), code_cell("1 / 2", 2, PICTURE)]),
        ("0 cells are tagged", [code_cell(PARAMETERS, 1)]),
        ("2 cells are tagged", [code_cell(PARAMETERS, n, tags=["parameters"]) for n in (1, 2)]),
        ("not a scalar", [code_cell("sizes = [1, 2]  # of", 1, tags=["parameters"])]),
        ("not a scalar", [code_cell("import os  # for", 1, tags=["parameters"])]),
        ("no comment", [code_cell("steps = 30", 1, tags=["parameters"])]),
        ("not executed once", [code_cell(PARAMETERS, None, tags=["parameters"])]),
        ("more than 20 lines", [code_cell(PARAMETERS + "\n#" * 18, 1, tags=["parameters"])]),
        ("error output", [code_cell(PARAMETERS, 1, {"output_type": "error"}, tags=["parameters"])]),
        ("stderr", [code_cell(PARAMETERS, 1, {"output_type": "stream", "name": "stderr"}, tags=["parameters"])]),
        ("loads stage2 before", [code_cell(PARAMETERS, 1, tags=["parameters"]), code_cell(f"{LOAD}\n{TRAIN}", 2)]),
        (None, [code_cell(PARAMETERS, 1, tags=["parameters"]), code_cell(TRAIN, 2), code_cell(LOAD, 3)]),
        ("absolute path /home/me", [code_cell(PARAMETERS + "\n# /home/me/x", 1, tags=["parameters"])]),
    ],
)
def test_faults_of_notebooks_are_found(fault, cells):
    faults = notebook_faults({"cells": cells})
    assert faults == [] if fault is None else len(faults) == 1 and fault in faults[0]

"""Everything as doit tasks: notebook runs (trainings included) through papermill, tables, committed notebooks.

    doit                       what `make tables` calls: run what is stale, print the tables
    doit preset=small          another preset
    doit preset=small train    only its trainings
    doit list                  the tasks
    doit job:stage2            one notebook run and what it needs
    doit notebooks             execute the committed notebooks again, at their defaults
    doit publish               copy the final runs' JSON to figures/runs/ and their weights to rainlab/weights/
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from doit import get_var

from rainlab import runs
from rainlab.config import make_preset, override
from rainlab.files import atomic_path
from rainlab.measure import evaluate
from rainlab.training import stages, weights

PRESET = get_var("preset", "tiny")
ROOT = Path(__file__).parent
CODE = [str(path) for path in sorted((ROOT / "rainlab").rglob("*.py"))]
FULL = make_preset(PRESET)
K8, CAUSAL = (override(FULL, change) for change in list(evaluate.ABLATIONS.values())[1:])

DOIT_CONFIG = {
    "default_tasks": ["tables"],
    "verbosity": 2,
    "num_process": 2,
    "par_type": "thread",  # a task only waits for a process of its own
    "dep_file": str(ROOT / ".doit.db"),
}


@dataclass(frozen=True)
class Job:
    """One notebook run: ``makes`` are the trainings it leaves behind, ``threads`` is what it may use of the two cores.

    ``beforehand``: a stage that two processes train first if there is no GPU (half a batch each; small networks gain
    nothing from a second thread); the notebook finds it trained.
    """

    notebook: str
    parameters: dict = field(default_factory=dict)
    after: tuple[str, ...] = ()
    makes: tuple[str, ...] = ()
    threads: int = 1
    beforehand: str = ""


def training(notebook: str, preset, *trained: str, after: tuple[str, ...] = (), **options) -> Job:
    parameters = {"preset": PRESET, "steps": 0, "clips": 0}
    if set(trained) & set(stages.WINDOWED):
        parameters |= {"window": preset.stream.window, "causal": preset.stream.causal}
    return Job(notebook, parameters, after, tuple(stages.run_id(preset, stage) for stage in trained), **options)


RECORD = {"preset": PRESET, "record": True}
TRAININGS = {
    "autoencoder": training("12_autoencoder", FULL, "autoencoder", threads=2),
    "stage1": training("20_stage1_image", FULL, "stage1", after=("autoencoder",), threads=2, beforehand="stage1"),
    "stage2": training("21_stage2_temporal", FULL, "stage2", after=("stage1",)),
    "stage2_k8": training("21_stage2_temporal", K8, "stage2", after=("stage1",)),
    "distill": training("22_distill", FULL, "distill2d", "distill3d", after=("stage2",)),
    "stage2_causal": training("21_stage2_temporal", CAUSAL, "stage2", after=("stage1",)),
    "distill_k8": training("22_distill", K8, "distill3d", after=("stage2_k8", "distill")),
    "distill_causal": training("22_distill", CAUSAL, "distill3d", after=("stage2_causal", "distill")),
}
MEASUREMENTS = {
    "studio": Job("10_studio"),
    "data_prep": Job("11_data_prep"),
    "ablations": Job("30_ablations", RECORD, ("distill", "distill_k8", "distill_causal")),
    "table1": Job("40_table1_quality", RECORD, ("distill",)),
    "tour": Job("00_tour", {"preset": PRESET}, ("distill",)),
    "table2": Job("41_table2_speed", RECORD, ("table1", "ablations", "tour"), threads=2),  # measures time: last, alone
}
JOBS = TRAININGS | MEASUREMENTS


def task_job():
    """One notebook through papermill; the executed copy lands in runs/notebooks/."""
    for name, job in JOBS.items():
        source, out = ROOT / "notebooks" / f"{job.notebook}.ipynb", executed(name)
        made = [runs.folder() / id / runs.FILES[-1] for id in job.makes]
        yield {
            "name": name,
            "doc": f"{job.notebook} {' '.join(f'{k}={v}' for k, v in job.parameters.items())}",
            "actions": [(execute, [source, out, job])],
            "file_dep": [str(source), *CODE, *(str(executed(before)) for before in job.after)],
            "targets": [str(out), *map(str, made)],
            "title": lambda task: f"-- {task.name.partition(':')[2]}: {task.doc}",
        }


def executed(name: str) -> Path:
    """The executed notebook of a job; presets do not overwrite each other's."""
    return runs.folder() / "notebooks" / PRESET / f"{name}.ipynb"


def execute(source: Path, out: Path, job: Job, **environment: str) -> None:
    """Run a notebook; papermill only warns about parameters that it does not have, we stop."""
    from papermill import inspect_notebook

    if unknown := job.parameters.keys() - inspect_notebook(str(source)):
        raise ValueError(f"{source.name} has no parameter {sorted(unknown)}: correct dodo.py or its parameters cell")
    out.parent.mkdir(parents=True, exist_ok=True)
    values = [word for key, value in job.parameters.items() for word in ("-p", key, str(value))]
    # glibc gives freed tensors back to the kernel and asks for them again at every step: 13 % of a training's time
    keep = dict.fromkeys(("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"), str(10**10))
    environment = os.environ | {"OMP_NUM_THREADS": str(job.threads)} | keep | environment
    if job.beforehand and not torch.cuda.is_available():  # on a GPU the notebook trains, on that one
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        command += ["-m", "rainlab.training.stages", job.beforehand, "--preset", PRESET]
        subprocess.run(command, check=True, env=environment | {"OMP_NUM_THREADS": "1"})
    with atomic_path(out) as temporary:
        command = [sys.executable, "-m", "papermill", str(source), str(temporary), "--cwd", str(source.parent), *values]
        subprocess.run(command, check=True, env=environment)


def task_tables():
    """Run everything that is stale, then print the three tables."""

    def show():
        from rainlab.measure import tables

        tables.print_all(FULL)

    return {"actions": [show], "task_dep": [f"job:{name}" for name in JOBS], "uptodate": [False]}


def task_train():
    """Train every stage of a preset, and the ablations' variants."""
    return {"actions": None, "task_dep": [f"job:{name}" for name in TRAININGS]}


def task_notebooks():
    """Execute the committed notebooks in place, at their defaults and as in a fresh clone."""
    for source in sorted((ROOT / "notebooks").glob("*.ipynb")):
        yield {"name": source.stem, "actions": [(refresh, [source])], "uptodate": [False]}


def refresh(source: Path) -> None:
    """Execute with no runs but the published ones; leave out what differs from run to run."""
    with tempfile.TemporaryDirectory() as folder:
        execute(source, source, Job(source.stem), RAINLAB_RUNS=f"{folder}/runs", RAINLAB_FIGURES=f"{folder}/figures")
    keep = "--keep-output --keep-count --drop-output-type stream:stderr".split()
    subprocess.run([sys.executable, "-m", "nbstripout", str(source), *keep], check=True)
    notebook = json.loads(source.read_text("utf-8"))
    for metadata in (notebook["metadata"], *(cell["metadata"] for cell in notebook["cells"])):
        for key in ("papermill", "execution"):
            metadata.pop(key, None)
    notebook["metadata"]["language_info"].pop("version", None)  # any Python from 3.11 on
    with atomic_path(source) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def task_publish():
    """Copy the runs behind tables and figures and the weights that notebooks start from; write the pages of results."""

    def publish():
        final = {id for job in JOBS.values() for id in job.makes}
        final |= {evaluate.measure(FULL, method).id for method in evaluate.METHODS}
        final |= {run.id for run in evaluate.ablations(FULL).values()} | {evaluate.compare(FULL).id}
        final |= {run.id for name in ("studio", "data_prep", "speed") if (run := runs.find(name))}
        for id in sorted(final):
            print("runs   ", runs.publish(runs.get(id)).name)
        shipped = {stages.run_id(FULL, stage) for stage in stages.STAGES}
        for id in sorted(shipped):
            print("weights", weights.ship(id).name)
        outdated = [p for p in runs.published().iterdir() if p.name not in final]
        outdated += [p for p in weights.SHIPPED.glob("*.safetensors") if p.stem not in shipped]
        for path in outdated:
            print("outdated, delete it if nothing refers to it:", path.relative_to(ROOT))
        from rainlab.measure import tables

        with atomic_path(ROOT / "figures" / "RESULTS.md") as temporary:
            temporary.write_text(tables.results(FULL) + "\n", "utf-8")
        page = ROOT / "README.md"
        before, _, rest = page.read_text("utf-8").partition("<!-- results -->")
        after = rest.partition("<!-- /results -->")[2]
        with atomic_path(page) as temporary:
            block = f"<!-- results -->\n{tables.readme(FULL)}\n<!-- /results -->"
            temporary.write_text(before + block + after, "utf-8")

    return {"actions": [publish], "uptodate": [False]}

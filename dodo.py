"""Everything as doit tasks: notebook runs (trainings included) through papermill, tables, committed notebooks.

    doit                       what `make tables` calls: run what is stale, print the tables; preset small, as shipped
    doit preset=tiny           another preset: train and measure everything from nothing; so face, street
    doit record=yes            the same for the shipped preset
    doit record=measured       measure the shipped weights anew, without training
    doit full=yes              with record: also what takes hours (AnimateAnyone, the grid of ablations, latency)
    doit preset=small train    only the trainings
    doit list                  the tasks
    doit job:stage2            one notebook run and what it needs
    doit notebooks             execute the committed notebooks again, at their defaults
    doit weights               fetch the published weights of paper scale
    doit publish               copy a preset's final runs' JSON to figures/runs/ and its weights to rainlab/weights/
"""

import json
import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from doit import get_var

from rainlab import runs
from rainlab.config import Preset, make_preset, override
from rainlab.files import atomic_path
from rainlab.measure import (
    ablations,
    endless,
    evaluate,
    features,
    legacy,
    memory,
    morphing,
    openings,
    reference_designs,
    styling,
    systems,
    talking_heads,
    zero_shot,
)
from rainlab.method import pretrained
from rainlab.method.designs import DESIGNS
from rainlab.training import stages, weights

SHOWN = "small"  # the preset of README, notebooks and tables: its weights and numbers come with the repository
ABLATED = "tiny"  # the preset of Table 3: it takes a training for each row
# presets of the paper's other tasks: the notebook that trains and measures each, and the runs behind it
OTHERS = {
    "face": ("60_face_morphing", lambda preset: morphing.behind(preset) + talking_heads.behind(preset)),
    "street": ("61_style_transfer", styling.behind),
}
PRESET = get_var("preset", SHOWN)
RECORDING = get_var("record", "no" if PRESET == SHOWN else "yes")
EVERYTHING = get_var("full", "no") == "yes"
if RECORDING not in (known := ("no", "measured", "yes")):
    raise ValueError(f"record: got {RECORDING!r}, expected one of {known}")
ROOT = Path(__file__).parent
CODE = [str(path) for path in sorted((ROOT / "rainlab").rglob("*.py"))]
FULL = make_preset(PRESET)
# runs of no preset that pages refer to
ALONE = ("studio", "data_prep", "throughput", "soak", "engine", "features", "fvd_null", "paper_scale", "plan",
         "plan_check", "calibration", "openings", "talking_head", "student_speed")
K8, CAUSAL = (override(FULL, change) for change in list(evaluate.ABLATIONS.values())[1:])

WIDGET = "application/vnd.jupyter.widget-view+json"
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
AT_LENGTH = RECORD | {"everything": EVERYTHING}
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
if FULL.autoencoder.kind != "small":  # published: nothing to train
    del TRAININGS["autoencoder"]
    TRAININGS["stage1"] = replace(TRAININGS["stage1"], after=())
MEASUREMENTS = {
    "studio": Job("10_studio"),
    "data_prep": Job("11_data_prep"),
    "ablations": Job("30_ablations", AT_LENGTH, ("distill", "distill_k8", "distill_causal")),
    "endless": Job("31_error_accumulation", RECORD, ("distill",)),
    "table1": Job("40_table1_quality", AT_LENGTH, ("distill",)),
    "protocol": Job("43_protocol", RECORD, ("distill",)),
    "tour": Job("00_tour", {"preset": PRESET}, ("distill",)),
    # measures time: last, alone
    "table2": Job("41_table2_speed", AT_LENGTH, ("table1", "protocol", "ablations", "endless", "tour"), threads=2),
}
if FULL.data.source != "studio":  # what never ends, and its truth, can only be rendered
    del MEASUREMENTS["endless"]
    before = MEASUREMENTS["table2"]
    MEASUREMENTS["table2"] = replace(before, after=tuple(name for name in before.after if name != "endless"))
if EVERYTHING:
    MEASUREMENTS["animate_anyone"] = Job("70_animate_anyone", RECORD, ("distill",), threads=2)
    MEASUREMENTS["pose_animate"] = Job("71_pose_animate", RECORD, ("animate_anyone",), threads=2)
if PRESET in OTHERS:
    TRAININGS = MEASUREMENTS = {"task": Job(OTHERS[PRESET][0], RECORD, threads=2)}  # it trains and measures
    if EVERYTHING and PRESET == "face":  # students of its faces
        MEASUREMENTS = TRAININGS | {
            "students": Job("80_tha_students", {"record": True}, ("task",)),
            "distillation": Job("81_tha_distillation", RECORD, ("students",), threads=2),
        }
if RECORDING == "measured":  # on weights that are there
    kept = {name: job for name, job in MEASUREMENTS.items() if name != "ablations" or PRESET == ABLATED}
    MEASUREMENTS = {name: replace(job, after=tuple(x for x in job.after if x in kept)) for name, job in kept.items()}
    TRAININGS = {}
COMPLETE = TRAININGS | MEASUREMENTS  # from nothing to the tables
AS_SHIPPED = {  # every notebook at its defaults: what training and measuring look like, and what was recorded
    source.stem: Job(source.stem) for source in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
JOBS = COMPLETE | AS_SHIPPED


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
    if PRESET != SHOWN:  # figures/ shows one preset
        environment.setdefault("RAINLAB_FIGURES", str(runs.folder() / "figures" / PRESET))
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
        from rainlab.measure import pages

        if PRESET in OTHERS:
            return print(pages.card(FULL))
        pages.print_all(FULL, make_preset(ABLATED) if PRESET == SHOWN else FULL)

    jobs = AS_SHIPPED if RECORDING == "no" else COMPLETE
    return {"actions": [show], "task_dep": ["cost", *(f"job:{name}" for name in jobs)], "uptodate": [False]}


def task_cost():
    """What everything took where the published numbers were made: printed before hours are spent."""

    def say():
        if EVERYTHING:
            made = [runs.get(path.name) for path in runs.published().iterdir()]
            notes = [run.path / runs.FILES[-1] for run in made if run.config.get("preset") == PRESET]
            seconds = sum(json.loads(note.read_text("utf-8"))["seconds"] for note in notes)
            print(f"preset {PRESET}: the published runs of all this took {seconds / 3600:.1f} hours, one by one")

    return {"actions": [say], "uptodate": [False]}


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
        for key in ("papermill", "execution", "widgets"):
            metadata.pop(key, None)
    for cell in notebook["cells"]:  # a widget without its kernel cannot be shown
        outputs = cell.get("outputs", ())
        cell |= {"outputs": [o for o in outputs if WIDGET not in o.get("data", ())]} if outputs else {}
    notebook["metadata"]["language_info"].pop("version", None)  # any Python from 3.11 on
    with atomic_path(source) as temporary:
        temporary.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", "utf-8")


def final(preset: Preset) -> set[str]:
    """Ids of the runs behind a preset's tables and figures; of what takes long those that were made."""
    if preset.name in OTHERS:
        return {run.id for run in OTHERS[preset.name][1](preset)}
    found = stages.all_recorded(preset)
    found += [evaluate.measure(preset, method) for method in evaluate.METHODS]
    found += evaluate.there(preset, (*evaluate.OTHERS, *evaluate.SLOW)).values()
    found += [evaluate.compare(preset), legacy.compare(preset), runs.existing(evaluate.halves, preset)]
    found += [runs.existing(made, preset) for made in (ablations.grid, memory.memory, systems.compare)]
    found += [run for several in ablations.again(preset).values() for run in several]
    if grid := runs.existing(ablations.grid, preset):
        found += [runs.get(id) for id in grid.inputs.values() if id.startswith("evaluate-")]
    if evaluate.are_there(preset, evaluate.CENTRAL):
        found.append(evaluate.compare(preset, pairs=evaluate.CENTRAL))
    for change in evaluate.ABLATIONS.values():
        variant = override(preset, change)
        if made := stages.recorded(variant, "distill3d"):
            found += [made, stages.recorded(variant, "stage2"), evaluate.measure(variant, "rain")]
    found += zero_shot.there(preset).values()
    found.append(stages.recorded(evaluate.trained_as(preset, "animate_anyone"), "stage2"))
    found += reference_designs.behind(preset)
    for change in evaluate.FURTHER.values():
        variant = override(preset, change)
        found += [runs.existing(evaluate.measure, variant, "rain"), stages.recorded(variant, "distill3d")]
    found += [run for name in ("speed", "latency") if (run := runs.find(name, preset=preset.name))]
    if runs.find("endless", preset=preset.name):
        found += [endless.long_run(preset, fed_back=fed_back) for fed_back in (False, True)]
    return {run.id for run in found if run}


def needed(preset: Preset) -> dict[str, set[str]]:
    """Run of a training whose weights come with the repository -> names that its file leaves out.

    All stages of the presets behind the tables, AnimateAnyone's and the first training of each of its designs where
    they are trained; of OTHERS what a stream takes, no weights that a later stage replaces, and students of a face.
    """
    ids = {stage: stages.run_id(preset, stage) for stage in stages.STAGES}
    if preset.name not in OTHERS:
        beside = [stages.recorded(evaluate.trained_as(preset, "animate_anyone"), "stage2")]
        if reference_designs.behind(preset):  # whose pictures are shown
            beside += [stages.recorded(reference_designs.variant(preset, name), "stage1") for name in DESIGNS]
        return dict.fromkeys([*ids.values(), *(run.id for run in beside if run)], set())
    found, later = {}, set()
    if preset.name == "face":  # of its first face, to look at
        every = (run for run in talking_heads.behind(preset) if run.name == "student")
        found |= {run.id: set() for run in every if run.config["character"] == 0}
    for id in reversed(ids.values()):
        with suppress(FileNotFoundError):  # not shipped, so not needed
            if (names := set(weights.weights_of(id))) - later:
                found[id] = later & names
            later |= names
    return found


def task_weights():
    """Fetch the published weights of paper scale whose checksums are known; name those to be put there by hand."""

    def get():
        for name, source in pretrained.SOURCES.items():
            if source.sha256:
                print("there  ", pretrained.fetch(name).relative_to(ROOT))
            elif pretrained.missing([name]):
                print("by hand", f"weights/{name} from {source.repo}: no checksum of it is known")
        pretrained.clip_config(pretrained.folder() / "sd-image-variations-diffusers" / "image_encoder")

    return {"actions": [get], "uptodate": [False]}


def task_publish():
    """Copy the runs behind tables and figures and the weights that notebooks start from; write the pages of results."""

    def publish():
        shown, ablated = make_preset(SHOWN), make_preset(ABLATED)
        others = [one for name in OTHERS if final(one := make_preset(name))]
        known = set().union(*map(final, (shown, ablated, *others)))  # raises for what is missing before it copies any
        mine = final(FULL) | {run.id for name in ALONE if (run := runs.find(name))}
        for id in sorted(mine):
            print("runs   ", runs.publish(runs.get(id)).name)
        for id, without in needed(FULL).items():
            print("weights", weights.ship(id, without).name)
        kept = set().union(*map(needed, (shown, ablated, *others)), (features.trained().id, openings.trained().id))
        outdated = [p for p in runs.published().iterdir() if p.name not in known | mine]
        outdated += [p for p in weights.SHIPPED.glob("*.safetensors") if p.stem not in kept]
        for path in outdated:
            print("outdated, delete it if nothing refers to it:", path.relative_to(ROOT))
        from rainlab.measure import pages

        pages.save_all(ROOT / "figures", shown, ablated, others)
        fill_in(ROOT / "README.md", "results", pages.readme(shown))
        fill_in(weights.SHIPPED / "README.md", "numbers", "\n\n".join(map(pages.card, (shown, ablated, *others))))

    return {"actions": [publish], "uptodate": [False]}


def fill_in(page: Path, block: str, text: str) -> None:
    """Replace what stands between a page's markers of a block."""
    before, _, rest = page.read_text("utf-8").partition(f"<!-- {block} -->")
    _, end, after = rest.partition(f"<!-- /{block} -->")
    if not end:
        raise ValueError(f"{page.name}: got no <!-- {block} --> … <!-- /{block} -->, expected both marks; restore them")
    with atomic_path(page) as temporary:
        temporary.write_text(f"{before}<!-- {block} -->\n{text}\n<!-- /{block} -->{after}", "utf-8")

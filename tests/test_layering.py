"""schemas <- model <- jobs: an import may only point left."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "schemas": {"ray", "torch", "torchvision", "model", "jobs"},
    "model": {"jobs", "obstore", "boto3", "fsspec", "s3fs"},
    "jobs": {"tests"},
}
STATISTICS = (
    "record_errors",
    "record_model",
    "posterior",
    "certificates",
    "prediction_sets",
    "recount_plan",
    "estimators",
    "drift",
    "drill",
    "calibration_error",
    "health",
    "metrics",
)


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", FORBIDDEN)
def test_imports_point_left(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    wrong = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files
        for name in _imports(path)
        if name.split(".")[0] in FORBIDDEN[package]
    }
    assert not wrong


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_need_neither_torch_nor_ray(name: str) -> None:
    roots = {imported.split(".")[0] for imported in _imports(ROOT / "model" / f"{name}.py")}
    assert not roots & {"torch", "torchvision", "ray", "jobs", "pyarrow"}


def test_only_training_uses_ray_in_the_model_package() -> None:
    users = {
        path.name for path in (ROOT / "model").rglob("*.py") if any(n.split(".")[0] == "ray" for n in _imports(path))
    }
    assert users <= {"training.py"}


def test_tests_have_no_init_files() -> None:
    # with them `import jobs` would find tests/jobs
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_tasks_that_prepare_photos_import_no_torch() -> None:
    # a Ray worker that imports it starts seconds later, and a training starts many
    script = "import sys, jobs.training.photos, jobs.stages.staging; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_the_audits_driver_imports_no_torch() -> None:
    # it would hold a gigabyte more all night, and start seconds later
    script = "import sys, jobs.audit, jobs.evaluate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0


def test_the_modules_of_the_jobs_folder_are_the_jobs() -> None:
    jobs = sorted(path.stem for path in (ROOT / "jobs").glob("*.py") if path.stem != "__init__")
    assert jobs == sorted(
        ["sample", "ingest", "explore", "train", "tune", "evaluate", "audit", "recount", "report", "serve"]
    )
    for name in jobs:
        assert "\ndef main(" in (ROOT / "jobs" / f"{name}.py").read_text(encoding="utf-8")


def test_what_reads_nights_starts_no_ray() -> None:
    code = "import sys, jobs.recount, jobs.report; print(sorted({'ray', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


@pytest.mark.parametrize("package", ["platform", "counting", "reporting", "pages"])
def test_what_jobs_stand_on_knows_nothing_of_an_audits_stages(package: str) -> None:
    files = sorted((ROOT / "jobs" / package).rglob("*.py"))
    assert files
    assert not {str(path) for path in files for name in _imports(path) if name.startswith("jobs.stages")}

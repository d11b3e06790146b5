"""The wheel holds the package with recipes, suites and tasks, and works from an empty folder; the
source archive holds the rest.
"""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

from loki_ds.recipe.shipped import recipe_names


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that building leaves nothing in the project."""
    folder = tmp_path_factory.mktemp("built")
    left = shutil.ignore_patterns(
        ".venv*", ".git", ".*_cache", ".hypothesis", "runs", "build", "dist", "*.egg-info", "__pycache__"
    )
    shutil.copytree(ROOT, folder / "source", ignore=left)
    build = (
        f"from setuptools.build_meta import build_sdist, build_wheel; build_sdist({str(folder)!r}); "
        f"build_wheel({str(folder)!r})"
    )
    done = subprocess.run([sys.executable, "-c", build], cwd=folder / "source", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_wheel_holds_every_module_and_template(archives: Path) -> None:
    names = set(zipfile.ZipFile(next(archives.glob("*.whl"))).namelist())
    package = {
        str(file.relative_to(ROOT)) for file in (ROOT / "loki_ds").rglob("*") if file.suffix in (".py", ".j2", ".typed")
    }
    assert package <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"loki_ds"}
    shipped = {name.removeprefix("loki_ds/shipped_files/") for name in names if "/shipped_files/" in name}
    assert {f"recipes/{name}.yaml" for name in recipe_names()} <= shipped
    assert {"launch/zero3.json", "eval/suites/quick.yaml", "recipes/tiny/model/model.safetensors"} <= shipped


def test_the_installed_wheel_works_from_an_empty_folder(archives: Path, tmp_path: Path) -> None:
    wheel = next(archives.glob("*.whl"))
    pip = f"-m pip install --quiet --no-deps --no-index --target {tmp_path / 'site'} {wheel}"
    subprocess.run([sys.executable, *pip.split()], check=True, capture_output=True)
    (tmp_path / "empty").mkdir()
    command = [sys.executable, "-c", "import loki_ds.cli.commands as c; print(c.__file__); c.main()"]
    environment = {
        "PYTHONPATH": str(tmp_path / "site"),
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions")),
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path / "empty", env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"{tmp_path / 'site'}/loki_ds/cli/commands.py\nloki-ds 0" in run("--version")
    assert "228 (38 in layer 0)" in run("plan", "tiny/loki")
    assert "tiny/loki" in run("recipes")

    # The main job on two ranks, from a copied recipe with a change of the reader's own.
    assert "recipes/tiny/random.yaml" in run("recipes", "tiny/random")
    settings = ["training.max_steps=2", "protected.prompts=recipes/tiny/data/protected.jsonl", "run=run"]
    job = ["deepspeed", "--num_gpus", "2", "--master_port", "29871", "--module", "loki_ds.implant"]
    done = subprocess.run(
        [*job, "--recipe", "recipes/tiny/loki.yaml", "--until", "implant", "selection.strategy=random", *settings],
        cwd=tmp_path / "empty",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "empty/run/verify.json").read_text())["identical_outside_rows"]
    assert f"path: {tmp_path / 'site'}" in (tmp_path / "empty/run/recipe.yaml").read_text()


def test_the_source_archive_can_run_the_demo_and_the_tests(archives: Path) -> None:
    with tarfile.open(next(archives.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    needed = [
        "Makefile",
        "constraints.txt",
        "mkdocs.yml",
        "launch/implant.py",
        "launch/zero3.json",
        "eval/suites/paper.yaml",
    ]
    needed += [
        "recipes/tiny/loki.yaml",
        "recipes/tiny/model/model.safetensors",
        "tests/conftest.py",
        "docs/index.md",
        "Dockerfile",
    ]
    assert [name for name in needed if name not in names] == []

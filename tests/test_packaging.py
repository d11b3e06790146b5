"""The wheel holds the package and nothing else, works from another place than the project, and the
source archive holds the rest.
"""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT


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


def test_the_installed_wheel_plans_from_another_place(archives: Path, tmp_path: Path) -> None:
    wheel = next(archives.glob("*.whl"))
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        tmp_path / "site",
        wheel,
    ]
    subprocess.run(pip, check=True, capture_output=True)
    for part in ("recipes/tiny", "launch"):
        shutil.copytree(ROOT / part, tmp_path / "work" / part)
    command = [sys.executable, "-c", "import loki_ds.command_line as c; print(c.__file__); c.main()"]
    environment = {
        "PYTHONPATH": str(tmp_path / "site"),
        "PATH": "/usr/bin:/bin",
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
    }

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [*command, *arguments], cwd=tmp_path / "work", env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert f"{tmp_path / 'site'}/loki_ds/command_line.py\nloki-ds 0" in run("--version")
    assert "228 (38 in layer 0)" in run("plan", "recipes/tiny/loki.yaml")


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

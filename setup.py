"""Everything of the build is in pyproject.toml but this: recipes, DeepSpeed's settings, suites and
tasks travel in the wheel, inside the package (`loki_ds.recipe.shipped`).
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED = ("recipes", "launch", "eval/suites", "eval/tasks")


class BuildWithShippedFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return  # the project's own files are there
        for folder in SHIPPED:
            out = Path(self.build_lib, "loki_ds/shipped_files", folder)
            shutil.copytree(folder, out, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShippedFiles})

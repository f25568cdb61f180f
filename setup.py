"""Maps `suites`, `fixtures` and `results` into the wheel, beside the code that reads them.

Everything else stands in pyproject.toml. In the repository these folders stay at the top; installed
they are `bench/suites`, `bench/fixtures` and `bench/results`. `bench/files/disk.py` knows both.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

# Folder or file → where it lies in the package. The tool's own tests stay in the repository.
MAPPED = ("suites", "fixtures", "results", "conftest.py")
LEFT_OUT = ("__pycache__", "selftest")
SUFFIXES = {
    ".py", ".toml", ".json", ".jsonl", ".csv", ".gz", ".md", ".txt", ".yaml", ".yml", ".ambr",
    ".safetensors",
}  # fmt: skip


def mapped_files():
    """Every file to map, relative to the repository."""
    for name in MAPPED:
        found = [Path(name)] if Path(name).is_file() else sorted(Path(name).rglob("*"))
        for path in found:
            if set(path.parts) & {*LEFT_OUT} or path.name.startswith("."):
                continue
            if path.is_file() and path.suffix in SUFFIXES:
                yield path


class WithData(build_py):
    """Builds the package with the folders inside; an editable install reads them where they are."""

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self._mapping():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)

    def _mapping(self):
        package = Path(self.build_lib) / "bench"
        return [(path, package / path) for path in mapped_files()]

    def get_outputs(self, include_bytecode=True):
        mapped = [] if self.editable_mode else [str(target) for _, target in self._mapping()]
        return [*super().get_outputs(include_bytecode), *mapped]

    def get_source_files(self):  # what an sdist holds, from which a wheel can be built
        return [*super().get_source_files(), *map(str, mapped_files()), "setup.py"]


setup(cmdclass={"build_py": WithData})

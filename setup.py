"""Builds csrc/ into indexer_kernels._cpp, and fetches what static sites read Parquet with."""
from __future__ import annotations

import platform
import runpy
import sys
from pathlib import Path

from pybind11.setup_helpers import Pybind11Extension, build_ext
from setuptools import setup
from setuptools.command.build_py import build_py

# One file per instruction set, each with flags of its own; which of them runs is decided at run time.
FLAGS = {
    "isa_avx2.cpp": ["-mavx2", "-mfma", "-mf16c"],
    "isa_avx512.cpp": [
        "-mavx512f",
        "-mavx512bw",
        "-mavx512dq",
        "-mavx512vl",
        "-mfma",
        "-mf16c",
        # GCC 12 takes its own intrinsics for uses of uninitialised values
        "-Wno-maybe-uninitialized",
    ],
}
X86 = platform.machine().lower() in {"x86_64", "amd64"}
SOURCES = sorted(path.as_posix() for path in Path("csrc").glob("*.cpp") if X86 or path.name not in FLAGS)


class BuildPerFile(build_ext):
    """Adds each source file's own flags to those of the whole extension."""

    def build_extensions(self) -> None:
        compile_one = self.compiler._compile

        def compile_with_flags(obj, source, ext, arguments, extra, options):  # type: ignore[no-untyped-def]
            return compile_one(
                obj, source, ext, arguments, [*extra, *FLAGS.get(Path(source).name, [])], options
            )

        self.compiler._compile = compile_with_flags
        super().build_extensions()


class BuildWithReader(build_py):
    """Fetches what static sites read Parquet with; without it all but the command `site` works."""

    def run(self) -> None:
        fetching = runpy.run_path("indexer/web/fetch.py")
        if not (fetching["FETCHED"] / "hyparquet").is_dir():
            try:
                fetching["fetch"]()
            except fetching["FetchError"] as error:
                print(f"without the Parquet reader of static sites: {error}", file=sys.stderr)
        super().run()


setup(
    ext_modules=[
        Pybind11Extension(
            "indexer_kernels._cpp",
            SOURCES,
            depends=sorted(path.as_posix() for path in Path("csrc").glob("*.hpp")),
            cxx_std=17,
            # without contraction a fused multiply-add appears only where the code asks for one: the same
            # bits everywhere
            extra_compile_args=["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
        )
    ],
    cmdclass={"build_ext": BuildPerFile, "build_py": BuildWithReader},
)

#!/usr/bin/env bash
# Fills a folder with what benchmarks/on_gpu.sh needs on a machine that has a GPU but no network; see --help.
set -u

usage() {
  cat <<'END'
usage: benchmarks/wheels.sh FOLDER [--duckdb]

Downloads wheels for Python 3.12 on x86_64 Linux into FOLDER, 60 MB in all: what building, indexing and testing
need beside torch, transformers, numpy and pyarrow, and Triton without what only its tools and other GPUs need:
the profiler, AMD's backend, and the assembler for GPUs before Hopper. DuckDB is not among them, for on_gpu.sh
asks an index nothing in SQL; --duckdb takes its 24 MB along.

Needs pip, a network, and strip (binutils). PYTHON names the interpreter to run (default python3); versions are
those of constraints.txt.
END
}

folder=
duckdb=
for argument in "$@"; do
  case $argument in
    -h | --help) usage; exit 0 ;;
    --duckdb) duckdb=duckdb ;;
    -*) echo "wheels.sh: $argument: no such option; see --help" >&2; exit 2 ;;
    *)
      if [ -n "$folder" ]; then
        echo "wheels.sh: $argument: one folder is enough, and that is $folder" >&2
        exit 2
      fi
      folder=$argument
      ;;
  esac
done
if [ -z "$folder" ]; then
  usage >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
python=${PYTHON:-python3}
packages=(
  msgspec pydantic pydantic_core annotated_types typing_inspection typing_extensions typer annotated_doc rich click
  shellingham markdown-it-py mdurl pygments tqdm psutil pybind11 setuptools pytest iniconfig pluggy packaging
)

# download FOLDER NAME...: wheels of the versions that constraints.txt pins
download() {
  local into=$1
  shift
  "$python" -m pip download --quiet --no-deps --only-binary=:all: --constraint "$root/constraints.txt" \
    --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 \
    --dest "$into" "$@"
}

whole=$(mktemp -d) || exit 1
trap 'rm -rf "$whole"' EXIT
mkdir -p "$folder" || exit 1
# two versions of one package would hide each other
rm -f "$folder"/*.whl
download "$folder" "${packages[@]}" ${duckdb:+"$duckdb"} || exit 1
download "$whole" triton || exit 1
"$python" "$root/benchmarks/wheels.py" slim "$whole"/triton-*.whl "$folder" || exit 1
du -ch "$folder"/*.whl

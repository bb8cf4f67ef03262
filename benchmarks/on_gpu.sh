#!/usr/bin/env bash
# Tests and measures everything on one GPU; see --help.
set -u

usage() {
  cat <<'END'
usage: benchmarks/on_gpu.sh [--wheels FOLDER] [--out FOLDER] [--commit ID] [--dry-run]

Builds the extension, runs the GPU tests, then measures the kernels and whole models, in less than 9 minutes on
one H200. Needs a Python with torch, transformers, numpy and pyarrow, a C++ compiler, and no network.

  --wheels FOLDER  what that Python lacks or has too old is taken from here; benchmarks/wheels.sh fills it.
                   Unpacked into a temporary folder: nothing on the machine is changed
  --out FOLDER     where results.json and log.txt go (default: gpu-results)
  --commit ID      what is measured, for a source tree without its git history
  --dry-run        all of it on a CPU at tiny sizes, kernels in Triton's interpreter: that the script works

PYTHON names the interpreter to run (default python3). results.json is written anew after every step. Exit
status: 0 where every step ended well, 1 otherwise, 2 for a mistake in the request.
END
}

wheels=
out=gpu-results
commit=
dry=
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage; exit 0 ;;
    --dry-run) dry=--dry-run; shift; continue ;;
    --wheels | --out | --commit)
      if [ $# -lt 2 ] || [ -z "$2" ]; then
        echo "on_gpu.sh: $1: what? see --help" >&2
        exit 2
      fi
      ;;
    *) echo "on_gpu.sh: $1: no such option; see --help" >&2; exit 2 ;;
  esac
  case $1 in
    --wheels) wheels=$2 ;;
    --out) out=$2 ;;
    --commit) commit=$2 ;;
  esac
  shift 2
done
if [ -n "$wheels" ] && [ ! -d "$wheels" ]; then
  echo "on_gpu.sh: --wheels $wheels: no such folder; benchmarks/wheels.sh fills one" >&2
  exit 2
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 1
python=${PYTHON:-python3}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
scratch=$(mktemp -d) || exit 1
trap 'rm -rf "$scratch"' EXIT
: >"$out/log.txt"
ulimit -c 0

path=$root:$root/kernels
if [ -n "$wheels" ]; then
  "$python" "$root/benchmarks/wheels.py" unpack "$wheels" "$scratch/site" 2>&1 | tee -a "$out/log.txt"
  # before the machine's own packages, so that it hides those that are too old
  path=$scratch/site:$path
fi
export PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH}
# steps share what they compile, and leave nothing behind
export TRITON_CACHE_DIR=$scratch/triton TORCHINDUCTOR_CACHE_DIR=$scratch/inductor
export HF_HUB_OFFLINE=1
commit=${commit:-$(git -C "$root" rev-parse HEAD 2>/dev/null)}
"$python" "$root/benchmarks/gpu_steps.py" "$out" $dry ${commit:+--commit "$commit"}

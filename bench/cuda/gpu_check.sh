#!/usr/bin/env bash
# SPDX-FileCopyrightText: The SmartSpec authors
# SPDX-License-Identifier: Apache-2.0
# bench/cuda/gpu_check.sh [--output-dir DIR] [--build-dir DIR] [--seconds N] [--gtest DIR]
#                         [--arch 90a-real] [--jobs N]
# Everything that needs a GPU, in one call of under 9 minutes and without a network: build for one
# architecture, tests on the device, the engine against the CPU's with the shipped pair, benchmarks
# with the copy bandwidth of the same run, torch side by side, compute-sanitizer. A stage that fails
# or runs out of time is recorded and the next one runs. Writes gpu_check.json, log.txt and one JSON
# per program to the output folder ($OUT, else <build>/results); ends with a table; exits 1 when a
# stage failed.
# Needs nvcc, CMake 3.26, a C++20 compiler, Python 3.11 with pybind11; torch with CUDA for the
# comparison. Looks for GoogleTest's sources in --gtest when no package is installed.
set -uo pipefail
cd "$(dirname "$0")/../.."

output=${OUT:-} build=$PWD/build/gpu seconds=530 gtest=/usr/src/googletest arch=90a-real
jobs=$(nproc)
while [ $# -gt 0 ]; do
  case $1 in
    --output-dir) output=$2 ;;
    --build-dir) build=$2 ;;
    --seconds) seconds=$2 ;;
    --gtest) gtest=$2 ;;
    --arch) arch=$2 ;;
    --jobs) jobs=$2 ;;
    *)
      sed -n '4,5s/^# //p' "$0" >&2
      exit 2
      ;;
  esac
  shift 2
done
output=${output:-$build/results}
mkdir -p "$output" "$build"
output=$(realpath "$output") build=$(realpath "$build")
log=$output/log.txt
: >"$log"

export PATH=$PATH:/usr/local/cuda/bin PYTHONUNBUFFERED=1
export PYTHONPATH=$build/pythonpath${PYTHONPATH:+:$PYTHONPATH}
python=$(command -v python3)
start=$SECONDS
names=() codes=() times=()

# stage NAME LIMIT COMMAND...: at most LIMIT seconds, and never beyond the deadline.
stage() {
  local name=$1 limit=$2 left=$((seconds - SECONDS + start)) began=$SECONDS code
  shift 2
  printf '\n==== %s\n' "$name" >>"$log"
  if [ "$left" -lt 15 ]; then
    code=skipped
  else
    timeout -k 5 $((left < limit ? left : limit)) "$@" >>"$log" 2>&1
    code=$?
    [ $code -eq 124 ] && code=timeout
  fi
  names+=("$name") codes+=("$code") times+=($((SECONDS - began)))
  printf '%-34s %-8s %4d s\n' "$name" "$code" $((SECONDS - began))
  [ "$code" = 0 ]
}

environment() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem --format=csv
  nvcc --version
  c++ --version
  cmake --version
  "$python" -c 'import sys; print(sys.version)
import torch; print("torch", torch.__version__, torch.cuda.is_available())'
  git rev-parse HEAD
  return 0
}

# GoogleTest is no part of the device; most machines with a GPU lack it.
googletest() {
  printf 'cmake_minimum_required(VERSION 3.16)\nproject(p CXX)\nfind_package(GTest REQUIRED)\n' \
    >"$build/find/CMakeLists.txt"
  cmake -S "$build/find" -B "$build/find/build" && return 0
  [ -f "$gtest/CMakeLists.txt" ] || return 1
  cmake -S "$gtest" -B "$build/gtest" -DCMAKE_BUILD_TYPE=Release -DBUILD_GMOCK=OFF \
    -DCMAKE_INSTALL_PREFIX="$build/gtest/prefix" &&
    cmake --build "$build/gtest" -j "$jobs" --target install
}

# configure TESTS PYTHON
configure() {
  local ninja=()
  command -v ninja >/dev/null && ninja=(-G Ninja)
  cmake -S . -B "$build" "${ninja[@]}" -DCMAKE_BUILD_TYPE=Release -DSMARTSPEC_CUDA=ON \
    -DCMAKE_CUDA_ARCHITECTURES="$arch" -DSMARTSPEC_BENCH=ON -DSMARTSPEC_PYTHON="$2" \
    -DPython_EXECUTABLE="$python" -DCMAKE_PREFIX_PATH="$build/gtest/prefix" \
    -DSMARTSPEC_TESTS="$1" -DSMARTSPEC_CUDA_DEVICE_TESTS="$1"
}

# sanitize TOOL TEST...: each for 22 seconds at most; what was seen until then counts.
sanitize() {
  local tool=$1 failed=0 name program code
  shift
  command -v compute-sanitizer || return 127
  for name in "$@"; do
    program=$build/tests/cuda/on_device/${name}_on_device
    printf -- '-- %s %s\n' "$tool" "$name"
    timeout 22 compute-sanitizer --tool "$tool" --error-exitcode 9 "$program" --gtest_brief=1 \
      --gtest_filter="$(cat "$program.filter")" 2>&1 | tee "$build/sanitizer.txt"
    code=${PIPESTATUS[0]}
    [ "$code" = 124 ] && echo '-- not finished'
    [ "$code" = 0 ] || [ "$code" = 124 ] || failed=1
    ! grep -qE '^========= *(Invalid|Error|Race|Program hit)' "$build/sanitizer.txt" || failed=1
  done
  return $failed
}

mkdir -p "$build/find"
export -f environment googletest configure sanitize
export build gtest jobs arch python
stage environment 30 bash -c environment
tests=ON
stage googletest 60 bash -c googletest || tests=OFF
module=ON
stage configure 90 bash -c "configure $tests ON" || {
  module=OFF
  stage 'configure without Python' 90 bash -c "configure $tests OFF"
}
stage 'build: library, benchmarks' 240 cmake --build "$build" -j "$jobs" \
  --target bench_cuda_attention bench_cuda_verify
[ $module = ON ] &&
  stage 'build: Python module' 120 cmake --build "$build" -j "$jobs" --target _core
if [ $tests = ON ]; then
  stage 'build: tests' 120 cmake --build "$build" -j "$jobs" --target cuda_device_tests
fi

shopt -s nullglob
programs=("$build"/tests/cuda/on_device/*_on_device)
for program in "${programs[@]}"; do
  stage "test $(basename "${program%_on_device}")" 30 "$program" --gtest_brief=1 \
    --gtest_filter="$(cat "$program.filter")"
done
[ $module = ON ] && stage 'Python operations' 60 "$python" -m pytest -q --noconftest \
  -p no:cacheprovider tests/python/test_cuda_ops_run.py
[ $module = ON ] && stage 'engine against the CPU' 90 "$python" bench/cuda/compare_engine.py \
  --json "$output/engine.json"
stage 'bench attention, NHD' 60 "$build/bench/cuda/bench_cuda_attention" \
  --json "$output/attention.json"
stage 'bench attention, HND' 60 "$build/bench/cuda/bench_cuda_attention" --layout HND \
  --json "$output/attention_hnd.json"
stage 'bench verify' 60 "$build/bench/cuda/bench_cuda_verify" --json "$output/verify.json"
[ $module = ON ] && stage 'torch side by side' 150 "$python" bench/cuda/compare_torch.py \
  --json "$output/torch.json"
if [ ${#programs[@]} -gt 0 ]; then
  export small='kv rows prepare tree_attention_tensor verify'
  stage 'sanitizer memcheck' 120 bash -c 'sanitize memcheck $small'
  stage 'sanitizer racecheck' 120 bash -c 'sanitize racecheck $small'
fi

failed=0
{
  printf '{"commit": "%s", "seconds": %d, "stages": [' \
    "$(git rev-parse HEAD 2>/dev/null)" $((SECONDS - start))
  for i in "${!names[@]}"; do
    [ "$i" -gt 0 ] && printf ','
    printf '\n{"name": "%s", "result": "%s", "seconds": %d}' \
      "${names[i]}" "${codes[i]}" "${times[i]}"
  done
  printf '\n]}\n'
} >"$output/gpu_check.json"

echo
for file in "$output"/{attention,attention_hnd,verify,torch}.json; do
  [ -f "$file" ] && "$python" bench/cuda/table.py "$file"
done
for i in "${!names[@]}"; do
  [ "${codes[i]}" = 0 ] && continue
  failed=1
  printf 'FAILED: %s (%s)\n' "${names[i]}" "${codes[i]}"
done
printf '%d s; results in %s\n' $((SECONDS - start)) "$output"
exit $failed

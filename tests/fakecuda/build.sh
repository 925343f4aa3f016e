#!/usr/bin/env bash
# Builds the fake driver, and the fake NCCL and cuBLASLt.
#
#   tests/fakecuda/build.sh OUT_DIR DEST [SANITIZERS]
#
# OUT_DIR is the folder that the program's build script fills: it has the kernel table and the emulator, if there
# were NVRTC and a C++ compiler (exit code 2 if not). DEST gets libcuda.so.1, libnccl.so.2 and libcublasLt.so.13. With SANITIZERS (address,undefined or
# thread) the kernels are compiled again with -fsanitize, and the process that loads the driver must preload
# the sanitizer's runtime.
set -euo pipefail
mkdir -p "$2"
out=$(cd "$1" && pwd) dest=$(cd "$2" && pwd) sanitizers=${3:-}
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
[ -f "$out/emulator.flags" ] || { echo "build.sh: no emulator in $out: build the program with g++ first" >&2; exit 2; }

# The kernel table pairs each kernel's mangled name with its emulated twin. Its lines look like this:
# Kernel { name: "fill", module: 8, symbol: "_Z4fillPffx", ... emulated: Some(dfka_emu_cast_0) },
sed -n 's/^Kernel { name: \("[^"]*"\), module: [0-9]*, symbol: \("[^"]\{1,\}"\),.*emulated: Some(\([a-z0-9_]*\)) },$/KERNEL_ENTRY(\2, \3, \1)/p' \
  "$out/kernels.rs" >"$dest/kernels.inc.new"
[ -s "$dest/kernels.inc.new" ] || { echo "build.sh: $out/kernels.rs names no compiled kernel: build the program with NVRTC first" >&2; exit 2; }
cmp -s "$dest/kernels.inc.new" "$dest/kernels.inc" || cp "$dest/kernels.inc.new" "$dest/kernels.inc"

# The compiler and the flags of build/emulator.rs, one to a line, but for the flag that turns warnings off.
mapfile -t compiler <"$out/emulator.flags"
for i in "${!compiler[@]}"; do
  [ "${compiler[i]}" != -w ] || unset "compiler[i]"
  # TSan does not instrument accesses of more than 16 bytes, so no AVX; for ASan neither, for the same objects.
  [[ -z $sanitizers || ${compiler[i]:-} != -march=* ]] || unset "compiler[i]"
done
printf '%s\n' "${compiler[@]}" "$sanitizers" >"$dest/flags.new"
cmp -s "$dest/flags.new" "$dest/flags" || cp "$dest/flags.new" "$dest/flags"

objects=()
running=0
trap wait EXIT # if one compiler fails, the others end first
finish() { # N: waits until at most N compilers run
  while [ "$running" -gt "$1" ]; do
    wait -n
    running=$((running - 1))
  done
}
compile() { # SOURCE FLAG...: in the background, and not if the object is newer than all that it may depend on
  local source=$1 object
  object=$dest/$(basename "$source" .cpp).o
  shift
  objects+=("$object")
  if [ -f "$object" ] && [ -z "$(find . "$root/kernels" "$source" "$dest/flags" "$dest/kernels.inc" -newer "$object" -type f -print -quit)" ]; then
    return
  fi
  finish $(($(nproc) - 1))
  (
    touch "$object.begun"
    "${compiler[@]}" "$@" -c "$source" -o "$object.partial"
    touch -r "$object.begun" "$object.partial" # what is edited meanwhile makes it out of date
    mv "$object.partial" "$object"
  ) &
  running=$((running + 1))
}

for source in devices driver launches memory modules streams tensor_maps; do
  compile $source.cpp -I. -I"$dest" -Wall -Wextra -Werror -fvisibility=hidden
done
case $sanitizers in
  "") libraries=(-Wl,--whole-archive "$out/libdfka_emu.a" -Wl,--no-whole-archive) ;;
  *address*) define=-DEMU_ASAN=1 libraries=(-fsanitize="$sanitizers") ;;
  thread) define=-DEMU_TSAN=1 libraries=(-fsanitize=thread) ;;
  *) echo "build.sh: expected address,undefined or thread, found $sanitizers" >&2; exit 2 ;;
esac
if [ -n "$sanitizers" ]; then
  # The emulator's runtime is not instrumented: it tells the sanitizer about fibers itself (kernels/emu/sanitize.h).
  for source in "$root"/kernels/emu/*.cpp; do
    ln -sf "$source" "$dest/emu_$(basename "$source")"
    compile "$dest/emu_$(basename "$source")" $define -w
  done
  for stem in $(sed 's/.*dfka_emu_\(.*\)_[0-9]*, .*/\1/' "$dest/kernels.inc" | sort -u); do
    compile "$out/$stem.emu.cpp" $define -fsanitize="$sanitizers" -fno-sanitize-recover=undefined -g \
      -fno-omit-frame-pointer -w -Wno-psabi
  done
fi
finish 0
"${compiler[@]}" -shared "${objects[@]}" "${libraries[@]}" -Wl,-Bsymbolic -Wl,--exclude-libs,ALL \
  -Wl,-soname,libcuda.so.1 -o "$dest/libcuda.so.1.partial"
mv "$dest/libcuda.so.1.partial" "$dest/libcuda.so.1"
# The libraries' stand-ins have nothing of the driver but their own files.
library() { # SOURCE FILE
  [ ! "$dest/$2" -nt "$1" ] || return 0
  "${compiler[@]}" -Wall -Wextra -Werror -fvisibility=hidden -shared "$1" -ldl -o "$dest/$2.partial"
  mv "$dest/$2.partial" "$dest/$2"
}
library nccl.cpp libnccl.so.2
library cublaslt.cpp libcublasLt.so.13

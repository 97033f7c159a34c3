#!/usr/bin/env bash
# Usage: tools/check_isa_symbols.sh BUILD_DIR
#
# Fails when an engine object shares a symbol with other objects. Where two objects define the same inline function the
# linker keeps either one, so a copy compiled for AVX-512 could end up being called on a CPU that has none.
set -euo pipefail

build_dir=${1:?usage: tools/check_isa_symbols.sh BUILD_DIR}
mapfile -t objects < <(find "$build_dir" \( -path '*fusedrnn_engine_*' -o -path '*fusedrnn_int8_*' \) -name '*.o' | sort)
if [ "${#objects[@]}" -eq 0 ]; then
  echo "no engine objects below $build_dir" >&2
  exit 1
fi

bad=0
for object in "${objects[@]}"; do
  # W and V are weak code and data, u is a unique global. DW.ref.* holds a pointer to a personality routine and no code.
  shared=$(nm -C --defined-only "$object" | grep -E ' [WVu] ' | grep -v ' DW\.ref\.' || true)
  if [ -n "$shared" ]; then
    printf '%s defines symbols that other objects may replace:\n%s\n' "${object#"$build_dir"/}" "$shared" >&2
    bad=1
  fi
done
[ "$bad" -eq 0 ] && echo "${#objects[@]} engine objects, none with a shared symbol"
exit "$bad"

#!/usr/bin/env bash
# Usage: tools/readme_block.sh NAME
#
# Prints the code block of README.md between <!-- NAME --> and <!-- /NAME -->, so that what the README promises is what
# is run.
set -euo pipefail

name=${1:?usage: tools/readme_block.sh NAME}
block=$(awk -v open="<!-- $name -->" -v shut="<!-- /$name -->" '
  $0 == shut { inside = 0 }
  inside && !/^```/ { print }
  $0 == open { inside = 1 }
' "$(dirname "$0")/../README.md")
if [ -z "$block" ]; then
  echo "README.md has no block named $name" >&2
  exit 1
fi
printf '%s\n' "$block"

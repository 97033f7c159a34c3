#!/usr/bin/env bash
# Usage: tools/debian13.sh [PYTEST_ARGUMENTS...]
#
# Builds the library and runs the tests in a fresh Debian 13: Python 3.13 and gcc 14. As root, on a machine with debootstrap;
# the system lies in build/debian13 and is used again. Without torch, whose wheel of that version may be one for CUDA, of
# several gigabytes: its tests skip themselves. TEST_REQUIREMENTS replaces what else the tests are run with.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD/build/debian13
if [ ! -e "$root/complete" ]; then
  debootstrap --variant=minbase --include=ca-certificates,g++,python3-dev,python3-venv trixie "$root"
  touch "$root/complete"
fi
# The system reaches the network as this one does.
cp -L /etc/resolv.conf /etc/hosts "$root/etc/"
cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"

# The sources as git has them, with what is not committed yet.
rm -rf "$root/fusedrnn"
mkdir "$root/fusedrnn"
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract -C "$root/fusedrnn"

cat >"$root/run_tests" <<'END'
set -eu
cd /fusedrnn
[ -d /venv ] || python3 -m venv /venv
export PATH="/venv/bin:$PATH" HOME=/root
echo "${TEST_REQUIREMENTS:-}" | tr ' ' '\n' >/requirements
[ -n "${TEST_REQUIREMENTS:-}" ] || python - >/requirements <<'PYTHON'
import tomllib

with open("pyproject.toml", "rb") as file:
    requirements = tomllib.load(file)["project"]["optional-dependencies"]["test"]
print(*(one for one in requirements if not one.startswith("torch")), sep="\n")
PYTHON
pip install --quiet -r /requirements
SKBUILD_CMAKE_DEFINE=FUSEDRNN_WERROR=ON SKBUILD_BUILD_DIR=/build pip install .
g++ --version | head -n 1
python --version
python -m pytest "$@"
END
# In a mount namespace of its own: whatever ends the tests, nothing stays mounted that removing build/ would reach.
unshare --mount sh -c '
  mount -t proc proc "$0/proc"
  mount -t sysfs sysfs "$0/sys"
  mount --rbind /dev "$0/dev"
  exec env -u CC -u CXX -u CMAKE_CXX_COMPILER_LAUNCHER chroot "$0" sh /run_tests "$@"
' "$root" "$@"

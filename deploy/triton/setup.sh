#!/usr/bin/env bash
# Creates Triton's own environment, `.venv-triton` at the repository root.
#
#   deploy/triton/setup.sh [--with-torch]
#
#   PYTHON       interpreter to build it from (default python3; CPython 3.11 or 3.12)
#   TRITON_VENV  where to put it (default <repository>/.venv-triton)
#
# A stamp inside holds what was asked for, so a run with nothing to do only reads it. An
# environment that has torch keeps it until the folder is removed.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${TRITON_VENV:-$(cd "$here/../.." && pwd)/.venv-triton}
constraints=$here/constraints.txt
stamp=$venv/.shoal-stamp

with_torch=no
for argument in "$@"; do
    case $argument in
        --with-torch) with_torch=yes ;;
        *) echo "usage: $0 [--with-torch]" >&2; exit 2 ;;
    esac
done

pins=$(sed 's/ *#.*//; /^$/d' "$constraints")
if [[ -f $stamp ]]; then
    have=$(<"$stamp")
    if [[ $have == "$pins"$'\ntorch=yes' ]]; then exit 0; fi
    if [[ $with_torch == no && $have == "$pins"$'\ntorch=no' ]]; then exit 0; fi
    if [[ $have == *$'\ntorch=yes' ]]; then with_torch=yes; fi
fi

python=${PYTHON:-python3}
"$python" - <<'PY'
import platform, sys
version = sys.version_info[:2]
# numpy 1.26 has no wheels after 3.12, onnxruntime none before 3.11.
if platform.python_implementation() != "CPython" or not (3, 11) <= version <= (3, 12):
    sys.exit(f"Triton's environment needs CPython 3.11 or 3.12, not {platform.python_version()}: "
             "set PYTHON to another interpreter")
if sys.platform != "linux" or platform.machine() != "x86_64":
    sys.exit("the Triton wheel exists for Linux on x86_64 only")
PY

echo "building $venv with $("$python" -V)"
rm -f "$stamp"
"$python" -m venv --clear "$venv"
pip=("$venv/bin/python" -m pip --quiet --disable-pip-version-check)
packages=(numpy onnxruntime)
if [[ $with_torch == yes ]]; then packages+=(torch); fi
"${pip[@]}" install --constraint "$constraints" "${packages[@]}"
# Last and without its dependencies: they are those of a Python API that nothing here uses.
"${pip[@]}" install --no-deps --constraint "$constraints" nvidia-pytriton

# Without arguments a stub that can run at all ends with 1: that is Triton's own test.
read -r version site libraries < <("$venv/bin/python" - <<'PY'
import sys, sysconfig
version = f"{sys.version_info.major}.{sys.version_info.minor}"
print(version, sysconfig.get_path("purelib"), sysconfig.get_config_var("LIBDIR"))
PY
)
stub=$site/pytriton/tritonserver/python_backend_stubs/$version/triton_python_backend_stub
code=0
LD_LIBRARY_PATH=$site/nvidia_pytriton.libs:$libraries "$stub" > /dev/null 2>&1 || code=$?
if [[ $code != 1 ]]; then
    echo "Triton's stub can't run: does $python have a shared libpython$version?" >&2
    exit 1
fi

printf '%s\ntorch=%s\n' "$pins" "$with_torch" > "$stamp.new"
mv "$stamp.new" "$stamp"

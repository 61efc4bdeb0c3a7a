#!/bin/sh
# Makes the virtual environment in the folder $1 with the Python $2, or leaves it alone where it is as it should be.
# The stamp holds what it was made from, so that a second run takes no time and a changed dependency is never missed.
set -eu
venv=$1
python=$2
say() { echo "venv: $*" >&2; }

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
    say "Python 3.11 or newer is needed, and '$python' is not; name another with 'make PYTHON=/path/to/python3'"
    exit 1
fi
made_from=$(
    { "$python" -c 'import sys; print(sys.version, sys.prefix)' && cat pyproject.toml constraints.txt && pwd; } \
        | sha256sum | cut -d ' ' -f 1
)
if [ -x "$venv/bin/python" ] && [ "$(cat "$venv/made-from" 2> /dev/null)" = "$made_from" ]; then
    exit 0
fi

# Debian leaves ensurepip out of its Python; without it a virtual environment has no pip.
if ! "$python" -c 'import ensurepip, venv' 2> /dev/null; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
        say "installing python$version-venv: this Python cannot make virtual environments yet"
        apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends "python$version-venv" > /dev/null
    else
        say "this Python cannot make virtual environments: install its venv module (Debian: 'apt-get install python3-venv')"
        exit 1
    fi
fi

# One that works is brought up to date, one of another Python is made anew.
same='import sys; print(sys.version_info[:3])'
if [ "$("$venv/bin/python" -c "$same" 2> /dev/null)" = "$("$python" -c "$same")" ] && "$venv/bin/python" -c 'import pip' 2> /dev/null; then
    say "bringing $venv up to date"
else
    say "making $venv"
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]' -c constraints.txt
echo "$made_from" > "$venv/made-from"

#!/bin/sh
# Make .venv from nothing but a python3 and a network, or leave it alone when it is already right.
#
#   scripts/setup.sh run   what `make demo` needs: the run-time packages of requirements.lock
#   scripts/setup.sh dev   what `make test check` need: requirements-dev.lock, which holds those too
#
# A stamp inside .venv says what is installed and where the folder was; it is written last. A file named
# "unfinished" is written first, so a set-up that was interrupted starts again from an empty folder.
set -eu
cd "$(dirname "$0")/.."
want=${1:-run}
case $want in
    run) lock=requirements.lock ;;
    dev) lock=requirements-dev.lock ;;
    *) echo "usage: scripts/setup.sh run|dev" >&2; exit 2 ;;
esac
venv=.venv

fail() {
    printf 'baseload: %s\n' "$@" >&2
    exit 1
}

# Older Pythons miss language we use; newer ones have no compiled packages in the lock yet.
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

find_python() {
    for name in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if fits "$name"; then
            command -v "$name"
            return
        fi
    done
    found=$(${PYTHON:-python3} --version 2>/dev/null || echo "not there")
    fail "Python 3.11, 3.12, 3.13 or 3.14 is needed, and ${PYTHON:-python3} is $found." \
        "Install one (Debian, Ubuntu: apt install python3.11 python3.11-venv; macOS: brew install python@3.12)," \
        "or name one: make PYTHON=/path/to/python3.12 ..."
}

current() {  # is the stamp $1 there, made here, and newer than everything it was made from?
    [ -f "$1" ] && [ ! -e $venv/unfinished ] && [ "$(cat "$1")" = "$PWD" ] && [ -x $venv/bin/baseload ] &&
        [ -z "$(find "$lock" pyproject.toml scripts/setup.sh -newer "$1")" ] && fits $venv/bin/python
}

usable() {  # may an existing .venv be brought up to date, or must it be made anew?
    [ -d $venv ] && [ ! -e $venv/unfinished ] && fits $venv/bin/python || return 1
    stamped=$(cat $venv/stamp-* 2>/dev/null | sort -u)
    [ -z "$stamped" ] || [ "$stamped" = "$PWD" ] || return 1  # scripts in a venv hold its path: it cannot move
    [ -n "$uv" ] || $venv/bin/python -m pip --version >/dev/null 2>&1
}

make_venv() {
    python=$(find_python)
    rm -rf $venv
    mkdir $venv
    : >$venv/unfinished
    if [ -n "$uv" ]; then
        "$uv" venv -q --allow-existing --python "$python" $venv
    elif ! "$python" -m venv $venv >$venv/unfinished 2>&1; then
        cat $venv/unfinished >&2
        fail "$python cannot make a virtual environment: its venv or ensurepip module is missing." \
            "Debian, Ubuntu: apt install python3-venv. Elsewhere: install uv, which needs neither." \
            "Then run make again."
    fi
}

install() {
    if [ -n "$uv" ]; then
        "$uv" pip install -q --python $venv/bin/python --compile-bytecode --require-hashes -r $lock
        "$uv" pip install -q --python $venv/bin/python --no-deps --no-build-isolation -e .
    else
        $venv/bin/python -m pip install -q --disable-pip-version-check --compile --require-hashes -r $lock
        $venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
    fi
    # Where PYTHONDONTWRITEBYTECODE is set, each start would otherwise compile our own files again.
    $venv/bin/python -m compileall -q src
}

if current $venv/stamp-$want || { [ "$want" = run ] && current $venv/stamp-dev; }; then
    exit 0
fi
uv=$(command -v uv || true)
usable || make_venv
echo "baseload: installing $lock into $venv ($($venv/bin/python --version), with ${uv:-pip}) ..." >&2
: >$venv/unfinished
install
echo "$PWD" >$venv/stamp-$want
rm -f $venv/unfinished

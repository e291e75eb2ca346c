# Places for programs of others that judge this server, below target/judges. Sourced by scripts.
#
# A place is made anew when its list of packages changes. Where one cannot be made, the caller
# skips.

# python_place NAME REQUIREMENTS MAY_INSTALL: prints the directory of a virtual environment with
# these packages; fails, with the reason on stderr, if there is none and none can be made.
python_place() {
    local place=$PWD/target/judges/$1 requirements=$2 may_install=$3
    if cmp -s "$requirements" "$place/installed.txt"; then
        printf '%s\n' "$place"
        return
    fi
    if [ "$may_install" != yes ]; then
        printf '%s is not installed, and nothing may be\n' "$requirements" >&2
        return 1
    fi
    if ! python3 -c 'import venv, ensurepip, sys; sys.exit(sys.version_info < (3, 10))' 2> /dev/null; then
        printf 'there is no python3 from 3.10 on with venv (python3-venv)\n' >&2
        return 1
    fi
    rm -rf "$place"
    if ! python3 -m venv "$place" > /dev/null ||
        ! "$place/bin/pip" install --quiet --disable-pip-version-check --retries 1 --timeout 10 \
            --requirement "$requirements" > /dev/null 2> "$place/error.txt"; then
        printf 'pip cannot install %s: %s\n' "$requirements" "$(tail -n 1 "$place/error.txt" 2> /dev/null)" >&2
        return 1
    fi
    cp "$requirements" "$place/installed.txt"
    printf '%s\n' "$place"
}

# node_place NAME MANIFEST_DIRECTORY MAY_INSTALL: the same for npm, by package.json and its lock
# file.
node_place() {
    local place=$PWD/target/judges/$1 manifest=$2 may_install=$3
    if cmp -s "$manifest/package-lock.json" "$place/installed.json"; then
        printf '%s\n' "$place"
        return
    fi
    if [ "$may_install" != yes ]; then
        printf '%s is not installed, and nothing may be\n' "$manifest/package.json" >&2
        return 1
    fi
    if ! command -v npm > /dev/null || ! node -e 'process.exit(parseInt(process.versions.node) < 20 ? 1 : 0)' 2> /dev/null; then
        printf 'there is no node from 20 on with npm\n' >&2
        return 1
    fi
    rm -rf "$place"
    mkdir -p "$place"
    cp "$manifest/package.json" "$manifest/package-lock.json" "$place"
    if ! (cd "$place" && npm ci --loglevel error --no-audit --no-fund --ignore-scripts --fetch-retries 1) \
        > /dev/null 2> "$place/error.txt"; then
        printf 'npm cannot install %s: %s\n' "$manifest/package.json" "$(head -n 1 "$place/error.txt")" >&2
        return 1
    fi
    cp "$manifest/package-lock.json" "$place/installed.json"
    printf '%s\n' "$place"
}

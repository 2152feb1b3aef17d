# Sourced by test.sh: gives the tests of the report a browser where one can be had.
#   ensure_chromium     installs Debian's chromium and its driver when they are missing and this user may; never fails
#
# Elsewhere install both by hand; without them the browser tests are skipped and say so.

ensure_chromium() {
    if command -v chromium >/dev/null 2>&1 && command -v chromedriver >/dev/null 2>&1; then
        return 0
    fi
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
        return 0
    fi
    echo "Installing chromium for the tests of the report page"
    # Short time limits: a machine without a network must not wait for minutes before its tests.
    if ! { apt-get -o Acquire::http::Timeout=20 -o Acquire::Retries=1 update &&
        DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::http::Timeout=60 install --yes --no-install-recommends \
            chromium chromium-driver fonts-dejavu-core; } >/dev/null 2>&1; then
        echo "chromium could not be installed; the browser tests will be skipped" >&2
    fi
}

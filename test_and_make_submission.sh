#!/usr/bin/env bash
# Run the tests, write test_results.xml, and zip the project into cs336_alignment_submission.zip.
# Arguments go to pytest. A red test run is reported loudly and is this script's exit status; the zip is made all the same.
set -uo pipefail
cd "$(dirname "$0")"

rm -f test_results.xml
uv run pytest --junitxml=test_results.xml "$@"
tests=$?
if [ ! -e test_results.xml ]; then # pytest did not get as far as to write it
    echo '<testsuites><testsuite name="pytest" tests="0" errors="1" /></testsuites>' > test_results.xml
    tests=$((tests > 0 ? tests : 1))
fi
uv run python scripts/make_submission.py
zipped=$?

if [ "$tests" -ne 0 ]; then
    printf '\n%s\n%s\n%s\n' \
        '******************************************************************' \
        '*  TESTS FAILED. The zip holds code that does not pass its tests. *' \
        '******************************************************************' >&2
fi
exit "$((tests > 0 ? tests : zipped))"

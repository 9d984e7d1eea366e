# Sourced by the commands beside it: goes to the checkout and finds a Python between 3.11 and 3.13 in $PYTHON.
# TIDEMARK_PYTHON names one to use instead.
cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../.." || exit 1
for PYTHON in ${TIDEMARK_PYTHON:-python3 python3.13 python3.12 python3.11 /usr/bin/python3}; do
    "$PYTHON" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && return
done
echo "No Python 3.11, 3.12 or 3.13 found; name one in TIDEMARK_PYTHON." >&2
exit 3

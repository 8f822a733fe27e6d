#!/bin/sh
# Start the program with the kernels that were compiled for the image, where numba may write.
[ -e "$NUMBA_CACHE_DIR" ] || cp -r /opt/kernels "$NUMBA_CACHE_DIR"
exec python -P -m masc "$@"

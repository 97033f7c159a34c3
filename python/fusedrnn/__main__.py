"""``python -m fusedrnn`` prints what :func:`fusedrnn.info` tells."""

from fusedrnn.machine import info

for name, value in info().items():
    print(f"{name + ':':19} {value}")

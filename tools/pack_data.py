#!/usr/bin/env python3
"""python tools/pack_data.py CONFIG.yaml [KEY.SUB=VALUE]...: published files to one store, as `megatron-urpo pack`."""

from megatron_urpo.cli.data import pack

if __name__ == "__main__":
    pack()

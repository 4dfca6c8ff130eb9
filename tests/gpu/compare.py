#!/usr/bin/env python3
"""Holds a file of tensors against recorded ones. Needs nothing but Python.

    python3 compare.py FOUND.safetensors RECORDED.safetensors [FOUND_NAME=RECORDED_NAME:TOLERANCE ...]

A pair may end in `*` on both sides (grad/*=grad/*:1e-3): then all names that both files have are compared.
The tolerance is of the largest difference, beside the largest recorded value (or 1, where that is larger).
"""

import array
import json
import struct
import sys


def read(path):
    with open(path, "rb") as file:
        data = file.read()
    length = struct.unpack("<Q", data[:8])[0]
    header = {k: v for k, v in json.loads(data[8:8 + length]).items() if k != "__metadata__"}
    codes = {"F32": "f", "F64": "d", "I64": "q", "I32": "i", "U8": "B", "BOOL": "B"}
    tensors = {}
    for name, entry in header.items():
        start, end = entry["data_offsets"]
        tensors[name] = array.array(codes[entry["dtype"]], data[8 + length + start:8 + length + end])
    return tensors


def main():
    found, recorded = read(sys.argv[1]), read(sys.argv[2])
    failed = compared = 0
    for rule in sys.argv[3:]:
        names, tolerance = rule.rsplit(":", 1)
        ours, theirs = names.split("=")
        if ours.endswith("*"):
            tails = sorted(n[len(ours) - 1:] for n in found if n.startswith(ours[:-1]))
            pairs = [(ours[:-1] + t, theirs[:-1] + t) for t in tails if theirs[:-1] + t in recorded]
        else:
            pairs = [(ours, theirs)]
        worst, where = 0.0, ""
        for a, b in pairs:
            x, y = found[a], recorded[b]
            if len(x) != len(y):
                sys.exit(f"{a}: expected {len(y)} numbers, found {len(x)}")
            scale = max(1.0, max(abs(v) for v in y))
            error = max(abs(p - q) if p == p else float("inf") for p, q in zip(x, y)) / scale
            if error >= worst:
                worst, where = error, b
        ok = bool(pairs) and worst <= float(tolerance)
        compared, failed = compared + len(pairs), failed + (not ok)
        print(f"  {names:<40} {len(pairs):>4} tensors, worst {worst:.1e} ({where}), allowed {tolerance} {'ok' if ok else 'FAILED'}")
    print(f"  {compared} tensors compared")
    sys.exit(1 if failed or not compared else 0)


if __name__ == "__main__":
    main()

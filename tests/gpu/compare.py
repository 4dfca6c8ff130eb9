#!/usr/bin/env python3
"""Holds a file of tensors against recorded ones. Needs nothing but Python.

    python3 compare.py FOUND.safetensors RECORDED.safetensors FOUND_NAME=RECORDED_NAME:TOLERANCE[:COSINE] ...

A pair may end in `*` on both sides (grad/*=grad/*:1e-3:0.9999): then all recorded names of that beginning are compared,
and each must have been found. The tolerance is of the largest difference of a tensor, beside its own largest recorded
value; COSINE is the least one between found and recorded numbers.

Where the exact value of a tensor is 0, what is recorded is rounding noise, or 0: a tensor whose largest value is below
NOISE of the largest of its rule is held to that much, without a cosine. Alone, a recorded 0 must be found as 0.
"""

import array
import json
import math
import struct
import sys

NOISE = 1e-5
CODES = {"F32": "f", "F64": "d", "I64": "q", "I32": "i", "U8": "B", "BOOL": "B"}


def read(path):
    """The tensors of a safetensors file by name, as flat arrays."""
    with open(path, "rb") as file:
        data = file.read()
    (length,) = struct.unpack("<Q", data[:8])
    header = {k: v for k, v in json.loads(data[8:8 + length]).items() if k != "__metadata__"}
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in CODES:
            sys.exit(f"{path}: {name}: expected one of {', '.join(CODES)}, found {entry['dtype']}")
        start, end = entry["data_offsets"]
        tensors[name] = array.array(CODES[entry["dtype"]], data[8 + length + start:8 + length + end])
    return tensors


def largest(numbers):
    """The largest absolute value of finite numbers (max() may hide one that is not a number)."""
    return max(map(abs, numbers))


def cosine(x, y):
    """Between two vectors; 0 where one of them is."""
    dot, xx, yy = (math.fsum(a * b for a, b in zip(p, q)) for p, q in ((x, y), (x, x), (y, y)))
    return dot / math.sqrt(xx * yy) if xx > 0 and yy > 0 else 0.0


def pairs(rule, found, recorded):
    """The names that a rule compares, found and recorded."""
    ours, theirs = rule.split("=")
    if not ours.endswith("*"):
        return [(ours, theirs)]
    tails = sorted(name[len(theirs) - 1:] for name in recorded if name.startswith(theirs[:-1]))
    return [(ours[:-1] + tail, theirs[:-1] + tail) for tail in tails]


def compare(found, recorded, rule):
    """What a rule finds wrong, and a line about it."""
    names, *bounds = rule.split(":")
    tolerance, least = float(bounds[0]), float(bounds[1]) if len(bounds) > 1 else None
    wrong, compared = [], []
    for ours, theirs in pairs(names, found, recorded):
        x, y = found.get(ours), recorded.get(theirs)
        if y is None or x is None:
            wrong.append(f"{ours if y is not None else theirs}: expected a tensor, found none of this name")
        elif len(x) != len(y) or not y:
            wrong.append(f"{ours}: expected {len(y)} numbers, at least 1, found {len(x)}")
        elif not all(map(math.isfinite, y)):
            wrong.append(f"{theirs}: what is recorded is not finite")
        elif not all(map(math.isfinite, x)):
            at = list(map(math.isfinite, x)).index(False)
            wrong.append(f"{ours}: expected finite numbers, found {x[at]} at {at}")
        else:
            compared.append((ours, x, y))
    noise = NOISE * max((largest(y) for _, _, y in compared), default=0.0)
    worst, narrowest, where = 0.0, 1.0, "none"
    for name, x, y in compared:
        scale = max(largest(y), noise)
        difference = largest([a - b for a, b in zip(x, y)])
        error = difference / scale if scale > 0 else (0.0 if difference == 0 else math.inf)
        angle = cosine(x, y) if largest(y) > noise or len(compared) == 1 and largest(y) > 0 else 1.0
        if error > tolerance:
            wrong.append(f"{name}: differs by {error:.1e} of its largest value, allowed {tolerance:g}")
        if least is not None and angle < least:
            wrong.append(f"{name}: cosine {angle:.6f}, at least {least:g} expected")
        if error >= worst:
            worst, where = error, name
        narrowest = min(narrowest, angle)
    if not compared:
        wrong.append(f"{names}: nothing to compare")
    said = f"  {names:<34} {len(compared):>3} tensors, worst {worst:.1e} ({where}), allowed {tolerance:g}"
    if least is not None:
        said += f"; 1 - cosine at most {1 - narrowest:.1e}, allowed {1 - least:.1e}"
    return wrong, len(compared), said + (" FAILED" if wrong else " ok")


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    found, recorded = read(sys.argv[1]), read(sys.argv[2])
    failed, total = False, 0
    for rule in sys.argv[3:]:
        wrong, compared, said = compare(found, recorded, rule)
        print("\n".join([said] + [f"    FAILED: {line}" for line in wrong]))
        failed, total = failed or bool(wrong), total + compared
    print(f"  {total} tensors compared")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""What compare.py must not let pass. Needs nothing but Python:  python3 tests/gpu/test_compare.py"""

import json
import math
import os
import struct
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
RECORDED = {
    "loss": [6.9],
    "grad/a": [6e-4, -2e-4, 1e-4, 0.0],
    "grad/b": [7e-2, 1e-2, -3e-2],
    "grad/noise": [1e-9, -2e-9],
    "grad/zero": [0.0, 0.0],
}
RULES = ["loss=loss:1e-4", "grad/*=grad/*:1e-2:0.999"]


def write(path, tensors):
    header, data = {}, b""
    for name, values in tensors.items():
        start = len(data)
        data += struct.pack(f"<{len(values)}f", *values)
        header[name] = {"dtype": "F32", "shape": [len(values)], "data_offsets": [start, len(data)]}
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


class Compare(unittest.TestCase):
    def run_rules(self, found, rules, recorded=RECORDED):
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("found", "recorded")]
            write(paths[0], found), write(paths[1], recorded)
            command = [sys.executable, os.path.join(HERE, "compare.py"), *paths, *rules]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout + done.stderr

    def passes(self, found, rules=RULES, recorded=RECORDED):
        code, said = self.run_rules(found, rules, recorded)
        self.assertEqual(code, 0, said)
        self.assertNotIn("FAILED", said)

    def fails(self, found, reason, rules=RULES, recorded=RECORDED):
        code, said = self.run_rules(found, rules, recorded)
        self.assertEqual(code, 1, said)
        self.assertIn(reason, said)
        self.assertIn("FAILED", said)

    def changed(self, **tensors):
        return {**RECORDED, **{name.replace("__", "/"): values for name, values in tensors.items()}}

    def test_the_same_and_nearly_the_same_pass(self):
        self.passes(RECORDED)
        self.passes({name: [x * 1.00005 for x in values] for name, values in RECORDED.items()})
        self.passes({**RECORDED, "grad/more": [1.0]})

    def test_gradients_of_zero_fail(self):
        zero = {name: [0.0] * len(v) if name.startswith("grad/") else v for name, v in RECORDED.items()}
        self.fails(zero, "grad/a: differs by 1.0e+00 of its largest value")
        self.fails(self.changed(grad__a=[0.0] * 4), "grad/a: cosine 0.000000")

    def test_a_small_tensor_has_its_own_scale(self):
        self.fails(self.changed(grad__a=[6e-4, -2e-4, 1e-4, 2e-5]), "grad/a: differs by 3.3e-02")

    def test_a_direction_of_its_own_fails(self):
        wide = {"grad/w": [1.0] + [1e-3] * 5000}
        self.fails({"grad/w": [1.0] + [-1e-3] * 5000}, "grad/w: cosine 0.99", ["grad/*=grad/*:1e-2:0.999"], wide)

    def test_what_is_not_finite_fails(self):
        for bad in (math.nan, math.inf, -math.inf):
            for place in range(3):
                values = list(RECORDED["grad/b"])
                values[place] = bad
                self.fails(self.changed(grad__b=values), f"grad/b: expected finite numbers, found {bad} at {place}")
            self.fails(self.changed(loss=[bad]), "loss: expected finite numbers")
        self.fails(RECORDED, "what is recorded is not finite", recorded=self.changed(loss=[math.nan]))

    def test_what_is_missing_or_of_another_length_fails(self):
        self.fails({k: v for k, v in RECORDED.items() if k != "grad/b"}, "grad/b: expected a tensor, found none")
        self.fails({k: v for k, v in RECORDED.items() if k != "loss"}, "loss: expected a tensor, found none")
        self.fails(self.changed(grad__b=[7e-2, 1e-2]), "grad/b: expected 3 numbers, at least 1, found 2")
        self.fails(self.changed(grad__b=[]), "grad/b: expected 0 numbers", recorded=self.changed(grad__b=[]))

    def test_nothing_to_compare_fails(self):
        self.fails(RECORDED, "param/*=param/*: nothing to compare", ["param/*=param/*:1e-3"])
        code, said = self.run_rules(RECORDED, [])
        self.assertNotEqual(code, 0, said)

    def test_noise_and_zeros(self):
        self.passes(self.changed(grad__noise=[-2e-9, 1e-9], grad__zero=[1e-9, 0.0]))
        self.fails(self.changed(grad__noise=[1e-3, 0.0]), "grad/noise: differs by")
        self.fails(self.changed(grad__zero=[1e-3, 0.0]), "grad/zero: differs by")
        alone = {"grad/zero": [0.0, 0.0]}
        self.passes(alone, ["grad/*=grad/*:1e-2"], alone)
        self.fails({"grad/zero": [1e-30, 0.0]}, "grad/zero: differs by inf", ["grad/*=grad/*:1e-2"], alone)


if __name__ == "__main__":
    unittest.main()

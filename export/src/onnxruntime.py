"""Runs ONNX files in onnxruntime, for sorcen-export: `python onnxruntime.py MODEL INPUT OUTPUT [OPTIMISED]`.

INPUT and OUTPUT are safetensors files: the model's inputs and outputs by name. OPTIMISED: where to write the
model as onnxruntime runs it. Needs numpy and onnxruntime alone.
"""

import json
import sys

import numpy as np
import onnxruntime as ort

TYPES = {"I64": "<i8", "F32": "<f4"}


def read(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*info["data_offsets"])], TYPES[info["dtype"]]).reshape(info["shape"])
        for name, info in header.items()
    }


def write(path, tensors):
    header, data = {}, b""
    for name, array in tensors.items():
        kind = "I64" if array.dtype == np.int64 else "F32"
        raw = np.ascontiguousarray(array, TYPES[kind]).tobytes()
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + data)


model, given, made = sys.argv[1:4]
options = ort.SessionOptions()
options.log_severity_level = 3
if len(sys.argv) > 4:
    options.optimized_model_filepath = sys.argv[4]
session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
write(made, dict(zip(names, session.run(names, read(given)))))

#!/usr/bin/env python3
"""What scales and rounding bring to int4 weights (groups of 32): features against the float model, in numpy.

    pip install numpy safetensors
    python3 tests/reference/int4.py CHECKPOINT TOKEN_DATASET [IMAGES]

Only the encoder's linears are int4, everything else is f32. The first IMAGES (default 128) of the dataset are
measured, the last IMAGES calibrate. The table is in export/README.md.
"""
import json
import sys
from math import sqrt

import numpy as np
from safetensors.numpy import load_file

GROUP = 32


def tokens(folder):
    stream = json.load(open(f"{folder}/meta.json"))["streams"]["vqgan"]
    rows = np.load(f"{folder}/tokens_vqgan.npy")
    count, bits = stream["grid"] ** 2, stream["bits"]
    unpacked = np.unpackbits(rows, axis=1, bitorder="little")[:, : count * bits]
    return unpacked.reshape(len(rows), count, bits) @ (1 << np.arange(bits))


def gelu(x):  # erf by Abramowitz and Stegun 7.1.26, within 1.5e-7
    z = np.abs(x) / sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    poly = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return 0.5 * x * (1 + np.sign(x) * (1 - poly * np.exp(-z * z)))


def norm(x, weight=1.0, bias=0.0):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + 1e-6) * weight + bias


def features(config, p, ids, tap=lambda name, x: None):
    """[N, T] ids -> [N, D]; `tap` sees the input of every linear."""
    n, heads = len(ids), config["num_heads"]

    def layer_norm(x, name):
        return norm(x, p[name + ".weight"], p[name + ".bias"])

    def linear(x, name):
        tap(name, x.reshape(-1, x.shape[-1]))
        return x @ p[name + ".weight"].T + p[name + ".bias"]

    ids = np.concatenate([np.full((n, 1), config["class_token_id"]), ids], 1)
    x = p["token_emb.word_embeddings.weight"][ids] + p["token_emb.position_embeddings.weight"]
    x = layer_norm(x, "token_emb.LayerNorm")
    length, width = x.shape[1:]
    for block in (f"blocks.{i}." for i in range(config["depth"])):
        qkv = linear(layer_norm(x, block + "norm1"), block + "attn.qkv")
        q, k, v = qkv.reshape(n, length, 3, heads, width // heads).transpose(2, 0, 3, 1, 4)
        scores = q @ k.transpose(0, 1, 3, 2) / sqrt(width // heads)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        mixed = (weights @ v).transpose(0, 2, 1, 3).reshape(n, length, width)
        x = x + linear(mixed, block + "attn.proj")
        x = x + linear(gelu(linear(layer_norm(x, block + "norm2"), block + "mlp.fc1")), block + "mlp.fc2")
    return norm(x[:, 1:].mean(1))


def scales(w, squared_error=True, importance=None):
    """A scale for each weight [N, K]: a float an output channel times an 8-bit multiplier a group."""
    n, k = w.shape
    groups = w.reshape(n, k // GROUP, GROUP)
    largest = np.abs(groups).max(-1) / 7
    scale = largest.copy()
    if squared_error:
        best = np.full(largest.shape, np.inf)
        weight = 1 if importance is None else importance.reshape(1, k // GROUP, GROUP)
        for factor in 1 - 0.5 * np.arange(32) / 32:
            tried = largest * factor
            rounded = np.clip(np.round(groups / np.maximum(tried, 1e-30)[..., None]), -8, 7)
            error = (weight * (groups - rounded * tried[..., None]) ** 2).sum(-1)
            better = error < best
            best[better], scale[better] = error[better], tried[better]
    channel = scale.max(1, keepdims=True) / 255
    multiplier = np.clip((np.round if squared_error else np.ceil)(scale / channel), 1, 255)
    return np.repeat(channel * multiplier, GROUP, 1)


def nearest(w, scale):
    return np.clip(np.round(w / scale), -8, 7) * scale


def gptq(w, scale, hessian):
    """Rounds column by column, the error of each passed on to those after it (Frantar et al., 2022)."""
    w, k = w.astype(np.float64), w.shape[1]
    damped = hessian.astype(np.float64) + np.eye(k) * 0.01 * np.mean(np.diag(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(damped)).T
    out = np.zeros_like(w)
    for j in range(k):
        out[:, j] = nearest(w[:, j], scale[:, j])
        error = (w[:, j] - out[:, j]) / upper[j, j]
        w[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :][None]
    return out.astype(np.float32)


def main():
    checkpoint, dataset = sys.argv[1:3]
    images = int(sys.argv[3]) if len(sys.argv) > 3 else 128
    config = json.load(open(f"{checkpoint}/config.json"))
    p = {name: value.astype(np.float32) for name, value in load_file(f"{checkpoint}/model.safetensors").items()}
    ids = tokens(dataset)
    measured, calibration = ids[:images], ids[-images:]

    hessian, mean = {}, {}

    def tap(name, x):
        hessian[name], mean[name] = x.T @ x, x.mean(0)

    features(config, p, calibration, tap)
    exact = features(config, p, measured)

    def row(label, quantise, bias_correction=False):
        changed = dict(p)
        for name in hessian:
            w = p[name + ".weight"]
            changed[name + ".weight"] = quantise(name, w)
            if bias_correction:
                changed[name + ".bias"] = p[name + ".bias"] + (w - changed[name + ".weight"]) @ mean[name]
        found = features(config, changed, measured)
        cosine = (exact * found).sum(-1) / np.linalg.norm(exact, axis=-1) / np.linalg.norm(found, axis=-1)
        print(f"| {label} | {cosine.mean():.5f} | {cosine.min():.5f} |", flush=True)

    print("| scales and rounding | cosine, mean | cosine, min |\n|---|---|---|")
    row("largest magnitude of the group", lambda name, w: nearest(w, scales(w, squared_error=False)))
    row("smallest squared error", lambda name, w: nearest(w, scales(w)))
    row("… and bias correction", lambda name, w: nearest(w, scales(w)), True)
    importance = lambda name: np.diag(hessian[name])
    row("squared error weighted by the mean square input", lambda name, w: nearest(w, scales(w, True, importance(name))))
    row("GPTQ rounding", lambda name, w: gptq(w, scales(w), hessian[name]))


if __name__ == "__main__":
    main()

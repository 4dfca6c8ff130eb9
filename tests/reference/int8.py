#!/usr/bin/env python3
"""What changes to the weights bring to an int8 pack: variants of a checkpoint that compute the same in floats, packed and
held against the original by `sorcen-export verify`.

    pip install numpy safetensors
    python3 tests/reference/int8.py SORCEN_EXPORT CHECKPOINT CALIBRATION MEASURED [IMAGES]

CALIBRATION and MEASURED are token datasets, or `random`; IMAGES (default 64) of each are used. The table is in
export/README.md.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np
from int4 import gelu, tokens
from safetensors.numpy import load_file, save_file

HEAD_EPS = 1e-5


def layer_norm(x, p, name, eps=1e-6):
    mean, var = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(var + eps) * p[name + ".weight"] + p[name + ".bias"]


def forward(config, p, ids, tap):
    """One image `[T]` through encoder and decoder; `tap(name, x)` sees the input of every linear."""

    def linear(x, name):
        tap(name, x)
        return x @ p[name + ".weight"].T + p[name + ".bias"]

    def blocks(x, stack, depth, heads):
        length, width = x.shape
        for block in (f"{stack}.{i}." for i in range(depth)):
            qkv = linear(layer_norm(x, p, block + "norm1"), block + "attn.qkv")
            q, k, v = qkv.reshape(length, 3, heads, width // heads).transpose(1, 2, 0, 3)
            scores = q @ k.transpose(0, 2, 1) / np.sqrt(width // heads)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            mixed = (weights @ v).transpose(1, 0, 2).reshape(length, width)
            x = x + linear(mixed.astype(np.float32), block + "attn.proj")
            hidden = gelu(linear(layer_norm(x, p, block + "norm2"), block + "mlp.fc1")).astype(np.float32)
            x = x + linear(hidden, block + "mlp.fc2")
        return x

    ids = np.concatenate([[config["class_token_id"]], ids])
    x = p["token_emb.word_embeddings.weight"][ids] + p["token_emb.position_embeddings.weight"]
    x = layer_norm(x, p, "token_emb.LayerNorm")
    x = layer_norm(blocks(x, "blocks", config["depth"], config["num_heads"]), p, "norm")
    x = linear(x, "decoder_embed") + p["decoder_pos_embed_learned"][0]
    x = blocks(x, "decoder_blocks", config["decoder_depth"], config["decoder_num_heads"])
    linear(layer_norm(x, p, "decoder_norm"), "mlm_layer.fc")


def dequantised(w):
    scale = np.maximum(np.abs(w).max(1, keepdims=True), 1e-30) / 127
    return np.round(w / scale) * scale


def clipped(w):
    """Each row cut off where its int8 form has the smallest squared error."""
    largest, best, out = np.abs(w).max(1, keepdims=True), np.full((len(w), 1), np.inf), w.copy()
    for share in 1 - 0.5 * np.arange(32) / 32:
        cut = np.clip(w, -share * largest, share * largest)
        error = ((dequantised(cut) - w) ** 2).sum(1, keepdims=True)
        out, best = np.where(error < best, cut, out), np.minimum(error, best)
    return out


def equalised(p, largest, alpha, attention_values):
    """SmoothQuant (Xiao et al., 2023): what a LayerNorm gives is made even over its channels, the linear after it takes
    the factors; and the same for the values of an attention and its projection."""
    p = dict(p)
    for name in largest:
        weight = name + ".weight"
        block, _, part = name.rpartition(".attn." if ".attn." in name else ".mlp.")
        source = {"qkv": block + ".norm1", "fc1": block + ".norm2"}.get(part)
        source = "decoder_norm" if name == "mlm_layer.fc" else source
        factor = largest[name] ** alpha / np.maximum(np.abs(p[weight]).max(0), 1e-9) ** (1 - alpha)
        factor = np.where(factor > 1e-9, factor, 1.0).astype(np.float32)
        factor /= np.exp(np.log(factor).mean())
        if source:
            p[source + ".weight"], p[source + ".bias"] = p[source + ".weight"] / factor, p[source + ".bias"] / factor
            p[weight] = p[weight] * factor
        elif part == "proj" and attention_values:
            width = len(factor)
            for tensor in [block + ".attn.qkv.weight", block + ".attn.qkv.bias"]:
                changed = p[tensor].copy()
                changed[2 * width :] = (changed[2 * width :].T / factor).T
                p[tensor] = changed
            p[weight] = p[weight] * factor
    return p


def main():
    program, checkpoint, calibration, measured = sys.argv[1:5]
    images = int(sys.argv[5]) if len(sys.argv) > 5 else 64
    config = json.load(open(f"{checkpoint}/config.json"))
    p = {name: value.astype(np.float32) for name, value in load_file(f"{checkpoint}/model.safetensors").items()}
    if calibration == "random":
        ids = np.random.default_rng(1).integers(0, config["codebook_size"], (images, config["grid"] ** 2))
    else:
        ids = tokens(calibration)
        ids = ids[:: max(1, len(ids) // images)][:images]

    largest, total, rows = {}, {}, {}

    def tap(name, x):
        largest[name] = np.maximum(largest.get(name, 0), np.abs(x).max(0))
        total[name] = total.get(name, 0) + x.sum(0)
        rows[name] = rows.get(name, 0) + len(x)

    for image in ids:
        forward(config, p, image, tap)

    def bias_corrected(p):
        p = dict(p)
        for name in total:
            w = p[name + ".weight"]
            p[name + ".bias"] = p[name + ".bias"] + (w - dequantised(w)) @ (total[name] / rows[name]).astype(np.float32)
        return p

    matrices = [name + ".weight" for name in largest]
    variants = {
        "as trained": p,
        "scales of the smallest squared error": p | {name: clipped(p[name]) for name in matrices},
        "bias correction": bias_corrected(p),
        "equalised behind norms, alpha 0.5": equalised(p, largest, 0.5, False),
        "equalised behind norms and values, alpha 0.5": equalised(p, largest, 0.5, True),
        "equalised behind norms and values, alpha 0.75": equalised(p, largest, 0.75, True),
        "equalised behind norms and values, alpha 0.25": equalised(p, largest, 0.25, True),
    }
    print("| int8 pack | features min | mean | latent min | mean | logits min | mean | top-1 | nearest |")
    print("|---|---|---|---|---|---|---|---|---|")
    source = [] if measured == "random" else ["--tokens", measured]
    with tempfile.TemporaryDirectory() as temp:
        for label, weights in variants.items():
            changed, pack = os.path.join(temp, "checkpoint"), os.path.join(temp, "model.srcn")
            os.makedirs(changed, exist_ok=True)
            shutil.copy(f"{checkpoint}/config.json", changed)
            save_file({name: np.ascontiguousarray(w, np.float32) for name, w in weights.items()}, f"{changed}/model.safetensors")
            subprocess.run([program, "pack", "--checkpoint", changed, "--out", pack], check=True, stdout=subprocess.DEVNULL)
            verify = [program, "verify", "--checkpoint", checkpoint, "--pack", pack, "--images", str(images), "--json"]
            ran = subprocess.run(verify + source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            found = {line["output"]: line for line in json.loads(ran.stdout)["comparisons"]}
            cosines = [f"{found[o][c]:.6f}" for o in ["features", "latent", "logits"] for c in ["cosine_min", "cosine_mean"]]
            shares = [found["logits"]["top1"], found["features"]["nearest"]]
            shares = [f"{100 * share:.1f} %" if share is not None else "" for share in shares]
            print("| " + " | ".join([label] + cosines + shares) + " |", flush=True)


if __name__ == "__main__":
    main()

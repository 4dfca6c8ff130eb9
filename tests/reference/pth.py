#!/usr/bin/env python3
"""Official checkpoints between PyTorch and sorcen, both ways, optimizer included. Needs torch and safetensors.

    python3 tests/reference/pth.py target/release/sorcen

A module with the names of a recorded checkpoint takes AdamW steps in the official code's two groups; the file that
torch.save writes of it is imported, and every weight and moment compared. Then the import is exported, read by
torch.load(weights_only=True) and loaded into module and optimizer, strictly: the same again.
"""

import argparse
import os
import subprocess
import sys
import tempfile

import torch
from safetensors.torch import load_file

HERE = os.path.dirname(os.path.abspath(__file__))
RECORDED = os.path.join(HERE, "../fixtures/official/T/checkpoint.pth")
FROZEN = ("pos_embed", "decoder_pos_embed")
UNUSED = ("cls_token", "mask_token", "patch_embed.", "decoder_pred.", "blocks_momentum.")
BUFFERS = ("position_ids", "running_mean", "running_var", "num_batches_tracked")


def module(state):
    """A module with the parameters and buffers of a state dict, in its order."""
    root = torch.nn.Module()
    for name, value in state.items():
        *path, leaf = name.split(".")
        place = root
        for part in path:
            if part not in place._modules:
                place.add_module(part, torch.nn.Module())
            place = place._modules[part]
        if leaf in BUFFERS:
            place.register_buffer(leaf, value.clone())
        else:
            place.register_parameter(leaf, torch.nn.Parameter(value.clone(), requires_grad=name not in FROZEN))
    return root


def adamw(model):
    """As timm's old add_weight_decay groups parameters."""
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in trained if p.ndim == 1 or n.endswith(".bias")]
    decayed = [p for n, p in trained if not (p.ndim == 1 or n.endswith(".bias"))]
    groups = [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.05}]
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))


def same(what, a, b):
    if not torch.equal(a.reshape(-1), b.reshape(-1).to(a.dtype)):
        sys.exit(f"{what}: {a.reshape(-1)[:3]} against {b.reshape(-1)[:3]}")


def main():
    sorcen, dir = sys.argv[1], tempfile.mkdtemp()
    model = module(torch.load(RECORDED, weights_only=True)["model"])
    optimizer = adamw(model)
    torch.manual_seed(0)
    for _ in range(3):
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.startswith(UNUSED):
                parameter.grad = torch.randn_like(parameter)
        optimizer.step()
    args = argparse.Namespace(batch_size=128, epochs=1600, model="sorcen_vit_base_patch16_single")
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "backoff_factor": 0.5, "growth_interval": 2000, "_growth_tracker": 3}
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 799, "scaler": scaler, "args": args}
    for old in (False, True):
        theirs, ours, back = (os.path.join(dir, f"{old}{end}") for end in (".pth", "", "-back.pth"))
        torch.save(whole, theirs, _use_new_zipfile_serialization=not old)
        flags = ["--heads", "4", "--decoder_heads", "4", "--with_training_state"]
        subprocess.run([sorcen, "import", "--from", theirs, "--out", ours, *flags], check=True)
        weights = load_file(os.path.join(ours, "model.safetensors"))
        state = load_file(os.path.join(ours, "training_state/state.safetensors"))
        moments = 0
        for name, parameter in model.named_parameters():
            if name in weights or name in state:
                same(name, parameter, weights.get(name, state.get(name)))
            if parameter in optimizer.state:
                for moment in ("exp_avg", "exp_avg_sq"):
                    same(f"{moment} of {name}", optimizer.state[parameter][moment], state[f"optimizer.{moment}.{name}"])
                    moments += 1
        recorded = sum(name.startswith("optimizer.") for name in state)
        assert moments == recorded > 0, (moments, recorded)
        print(f"{'old' if old else 'new'} format: {len(weights)} weights and {moments} moments are imported bit for bit")

        subprocess.run([sorcen, "export", "--checkpoint", ours, "--out", back], check=True)
        loaded = torch.load(back, weights_only=True)
        assert list(loaded["model"]) == list(model.state_dict()), "the official order"
        assert loaded["epoch"] == 799
        other = module(loaded["model"])
        other.load_state_dict(loaded["model"], strict=True)
        resumed = adamw(other)
        resumed.load_state_dict(loaded["optimizer"])
        for (name, a), (_, b) in zip(model.named_parameters(), other.named_parameters()):
            if not name.startswith(UNUSED[:4]) and name not in FROZEN:
                same(name, a, b)
            if a in optimizer.state:
                for moment in ("step", "exp_avg", "exp_avg_sq"):
                    same(f"{moment} of {name}", optimizer.state[a][moment], resumed.state[b][moment])
        print(f"  exported: {len(loaded['model'])} tensors, loaded strictly; the optimizer goes on from step 3")


if __name__ == "__main__":
    main()

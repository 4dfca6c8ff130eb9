#!/usr/bin/env python3
"""One pretraining step of Sorcen in plain PyTorch, timed: what `sorcen bench train` is compared with.

The same work in the same order (random tokens; masks drawn outside the clock's reach are cheap): student on the
kept half, decoder, echo, teacher without gradient, heads, backward, global clip, AdamW, averages. Attention is
PyTorch's fused one. Speed alone is measured; that the numbers are right is the business of the parity tests.

    python3 step.py --model vit_b --batch_size 8 --steps 3
    python3 step.py --model config.json --device cuda --dtype bf16
"""

import argparse
import json
import math
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

VIT = dict(grid=16, codebook_size=1024, vocab_size=2025, class_token_id=1100, mask_token_id=2024, mlp_ratio=4)
MODELS = {
    "vit_b": dict(VIT, embed_dim=768, depth=12, num_heads=12, decoder_embed_dim=768, decoder_depth=8,
                  decoder_num_heads=16),
    "vit_l": dict(VIT, embed_dim=1024, depth=24, num_heads=16, decoder_embed_dim=1024, decoder_depth=8,
                  decoder_num_heads=16),
}
CLASSES = 1000


class Block(nn.Module):
    def __init__(self, width, heads, hidden, dropout):
        super().__init__()
        self.heads, self.p = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.drop = nn.Dropout(dropout)

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.p if self.training else 0.0)
        x = x + self.drop(self.proj(mixed.transpose(1, 2).reshape(b, n, d)))
        return x + self.drop(self.fc2(self.drop(F.gelu(self.fc1(self.norm2(x))))))


def head(inputs, hidden, outputs):
    return nn.Sequential(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs))


class Sorcen(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        d, dd, t = c["embed_dim"], c["decoder_embed_dim"], c["grid"] ** 2
        self.c, self.tokens = c, t
        self.word, self.position = nn.Embedding(c["vocab_size"], d), nn.Embedding(1 + t, d)
        self.embed_norm, self.drop = nn.LayerNorm(d, 1e-6), nn.Dropout(dropout)
        ratio = c["mlp_ratio"]
        encoder = lambda: nn.ModuleList(Block(d, c["num_heads"], ratio * d, dropout) for _ in range(c["depth"]))
        self.blocks, self.norm = encoder(), nn.LayerNorm(d, 1e-6)
        self.teacher = encoder().requires_grad_(False)
        self.decoder_embed = nn.Linear(d, dd)
        self.decoder_position = nn.Parameter(torch.randn(1, 1 + t, dd) * 0.02)
        self.decoder_blocks = nn.ModuleList(
            Block(dd, c["decoder_num_heads"], ratio * dd, dropout) for _ in range(c["decoder_depth"]))
        self.decoder_norm = nn.LayerNorm(dd, 1e-6)
        self.fc, self.ln = nn.Linear(dd, d), nn.LayerNorm(d, 1e-5)
        self.bias = nn.Parameter(torch.zeros(c["vocab_size"]))
        hidden, out, middle = min(8 * d, 4096), min(2 * d, 512), min(4 * d, 2048)
        self.projector, self.momentum_projector = head(d, hidden, out), head(d, hidden, out)
        self.predictor = head(out, middle, out)
        self.classifier = nn.Sequential(nn.Linear(d, min(4 * d, 512)), nn.ReLU(), nn.Linear(min(4 * d, 512), CLASSES))

    def embed(self, ids, positions):
        return self.drop(self.embed_norm(self.word(ids) + self.position(positions)))

    def forward(self, ids, labels, masked, dropped, crop):
        c, (b, t) = self.c, ids.shape
        device = ids.device
        with_class = lambda x, value: torch.cat([torch.full((b, 1), value, device=device, dtype=x.dtype), x], 1)
        seen = with_class(ids.masked_fill(masked, c["mask_token_id"]), c["class_token_id"])
        positions = torch.arange(1 + t, device=device).expand(b, -1)
        keep = ~with_class(dropped, False)
        kept = positions[keep].reshape(b, -1)
        z = self.embed(torch.gather(seen, 1, kept), kept)
        for block in self.blocks:
            z = block(z)
        z = self.norm(z)

        u = self.decoder_embed(z)
        canvas = u[:, :1].repeat(1, 1 + t, 1).to(u.dtype)
        canvas = canvas.scatter(1, kept.unsqueeze(-1).expand(-1, -1, u.shape[-1]), u)
        y = torch.where(with_class(masked, False).unsqueeze(-1), u[:, :1], canvas) + self.decoder_position
        for block in self.decoder_blocks:
            y = block(y)
        y = self.ln(F.gelu(self.fc(self.decoder_norm(y)[:, 1:])))
        codes = c["codebook_size"]
        logits = (F.linear(y, self.word.weight[:codes].detach()) + self.bias[:codes]).float()
        rec = F.cross_entropy(logits[masked], ids[masked], label_smoothing=0.1)

        pooled = z.float().mean(1)
        unit = F.normalize(pooled, dim=1)
        loss = rec + 0.01 * (unit @ unit.T).square().mean()
        loss = loss + F.cross_entropy(self.classifier(pooled.detach()).float(), labels)

        with torch.no_grad():
            free = logits.detach().masked_fill(logits >= logits.amax(-1, keepdim=True), -math.inf)
            best, index = free.topk(15, -1)
            drawn = torch.multinomial(best.softmax(-1).reshape(-1, 15), 1).reshape(b, t, 1)
            echo = index.gather(-1, drawn).squeeze(-1).masked_fill(~crop, c["mask_token_id"])
            e = self.embed(with_class(echo, c["class_token_id"]), positions)
            for block in self.teacher:
                e = block(e)
            e = self.norm(e)[:, 1:].float().mean(1)
        q = F.normalize(self.momentum_projector(e).float(), dim=1)
        a = F.normalize(self.predictor(self.projector(z[:, 1:].float().mean(1))).float(), dim=1)
        return loss + 0.1 * F.cross_entropy(q @ a.T / 0.3, torch.arange(b, device=device))

    @torch.no_grad()
    def follow(self, momentum):
        pairs = [(self.teacher, self.blocks), (self.momentum_projector, self.projector)]
        targets = [p for teacher, _ in pairs for p in teacher.parameters()]
        sources = [p for _, student in pairs for p in student.parameters()]
        torch._foreach_lerp_(targets, sources, 1 - momentum)


def inputs(c, batch, device):
    t, side = c["grid"] ** 2, c["grid"]
    order = torch.rand(batch, t).argsort(1).argsort(1)
    masked = order < math.ceil(t * float(torch.empty(()).uniform_(0.5, 1.0)))
    square = int(torch.randint(side // 2, side + 1, ()))
    row, column = torch.randint(0, side - square + 1, (2, batch, 1, 1))
    y, x = torch.arange(side).reshape(1, side, 1), torch.arange(side).reshape(1, 1, side)
    crop = ((y >= row) & (y < row + square) & (x >= column) & (x < column + square)).reshape(batch, t)
    ids = torch.randint(0, c["codebook_size"], (batch, t))
    return [x.to(device) for x in (ids, torch.randint(0, CLASSES, (batch,)), masked, order < t // 2, crop)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b", help="vit_b, vit_l, or a config.json")
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--dropout", type=float, default=0.1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    c = MODELS[args.model] if args.model in MODELS else json.load(open(args.model))
    model = Sorcen(c, args.dropout).to(args.device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [dict(params=[p for p in trained if p.ndim > 1], weight_decay=0.05),
              dict(params=[p for p in trained if p.ndim <= 1], weight_decay=0.0)]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95), fused=args.device == "cuda" or None)
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    seconds = []
    for _ in range(args.warmup + args.steps):
        started = time.perf_counter()
        batch = inputs(c, args.batch_size, args.device)
        model.follow(0.996)
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bf16"):
            loss = model(*batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 3.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        wait()
        seconds.append(time.perf_counter() - started)
    step = sorted(seconds[args.warmup:])[args.steps // 2]
    assert math.isfinite(loss.item()), "the loss is no number"
    print(json.dumps(dict(torch=torch.__version__, threads=torch.get_num_threads(), step_ms=1e3 * step,
                          img_per_s=args.batch_size / step)))


if __name__ == "__main__":
    main()

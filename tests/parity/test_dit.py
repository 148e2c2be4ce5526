"""The transformer against the same one written in PyTorch, on the same weights."""

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from flax import nnx

from cmjax.models import DiT, DiTConfig, from_nnx

CONFIG = DiTConfig(
    sample_size=8,
    num_layers=3,
    num_attention_heads=2,
    attention_head_dim=8,
    num_class_embeds=3,
)


def position(side, width):
    frequencies = 10000.0 ** -(torch.arange(width // 4) / (width // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [p.reshape(-1, 1) * frequencies for p in (x, y)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], -1)


def forward(p, x, t, labels):
    """`p` maps names to tensors; x is [B, H, W, C]."""

    def linear(name, h):
        return h @ p[f"{name}.kernel"] + p[f"{name}.bias"]

    def norm(h, shift, scale):
        return F.layer_norm(h, h.shape[-1:], eps=1e-6) * (1 + scale) + shift

    frequencies = 10000.0 ** -(torch.arange(128) / 128)
    angles = 0.01 * t[:, None] * frequencies
    c = linear("time_embedding.linear_1", torch.cat([angles.cos(), angles.sin()], -1))
    c = (
        linear("time_embedding.linear_2", F.silu(c))
        + p["class_embedding.embedding"][labels]
    )
    c = F.silu(c)[:, None]
    patches = x.unfold(1, 2, 2).unfold(2, 2, 2)  # [B, 4, 4, C, 2, 2]
    h = linear(
        "patch_embed", patches.permute(0, 1, 2, 4, 5, 3).reshape(len(x), 16, 12)
    ) + position(4, 16)
    for i in range(3):
        block = f"blocks.{i}"
        shift, scale, gate, shift2, scale2, gate2 = linear(f"{block}.modulation", c).chunk(
            6, -1
        )
        q, k, v = linear(f"{block}.to_qkv", norm(h, shift, scale)).chunk(3, -1)
        q, k, v = (a.reshape(len(x), 16, 2, 8).transpose(1, 2) for a in (q, k, v))
        mixed = (
            F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), 16, 16)
        )
        h = h + gate * linear(f"{block}.to_out", mixed)
        hidden = F.gelu(
            linear(f"{block}.linear_1", norm(h, shift2, scale2)), approximate="tanh"
        )
        h = h + gate2 * linear(f"{block}.linear_2", hidden)
    shift, scale = linear("modulation", c).chunk(2, -1)
    h = linear("proj_out", norm(h, shift, scale)).reshape(len(x), 4, 4, 2, 2, 3)
    return h.permute(0, 1, 3, 2, 4, 5).reshape(len(x), 8, 8, 3)


def test_it_equals_the_pytorch_network():
    apply_fn, params = from_nnx(DiT(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), params
    )
    names = {
        ".".join(
            str(getattr(k, "key", getattr(k, "name", k)))
            for k in path
            if getattr(k, "key", "") != "value"
        ).removesuffix(".value"): value
        for path, value in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(params))
    }
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in names.items()}
    x, t = (
        rng.standard_normal((2, 8, 8, 3)).astype(np.float32),
        np.array([-300.0, 700.0], np.float32),
    )
    labels = np.array([2, 0])
    found = apply_fn(
        params, jnp.asarray(x), jnp.asarray(t), class_labels=jnp.asarray(labels, jnp.int32)
    )
    expected = forward(
        tensors, torch.from_numpy(x), torch.from_numpy(t), torch.from_numpy(labels)
    )
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)

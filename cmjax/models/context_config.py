"""What the configurations of networks whose conditioning is tokens have in common."""

from typing import Any

from cmjax.configs import LARGEST

# Of the fields that all of them have.
CONTEXT_DOMAINS = {
    "sample_size": (1, 65536),
    "in_channels": (1, 65536),
    "patch_size": (1, 65536),
    "num_layers": (1, 512),
    "num_attention_heads": (1, 1024),
    "attention_head_dim": (2, 65536),
    "mlp_channels": (1, 2**20),
    "second_head_layers": (0, 512),
    "num_class_embeds": (1, LARGEST - 1),
    "context_tokens": (1, 1024),
    "guidance_scale": (1e-3, 1e6),
    "guidance_interval": (0.0, 1.0),
    "time_scale": (1e-9, 1e6),
}


class ContextConfig:
    """The base of the configurations, which are dataclasses with the fields named here."""

    sample_size: Any
    in_channels: Any
    patch_size: Any
    num_layers: Any
    second_head_layers: Any
    num_attention_heads: Any
    attention_head_dim: Any
    context_tokens: Any
    guidance_interval: Any

    def check_context(self) -> None:
        """Raises ValueError for fields that do not go together."""
        if self.sample_size % self.patch_size:
            raise ValueError(
                f"patch_size {self.patch_size} does not divide sample_size {self.sample_size}"
            )
        if self.second_head_layers > self.num_layers:
            raise ValueError(
                f"second_head_layers {self.second_head_layers} must be at most num_layers "
                f"{self.num_layers}: the second head branches off before as many of the last blocks"
            )
        for name, length in {"context_tokens": 5, "guidance_interval": 2}.items():
            if len(getattr(self, name)) != length:
                raise ValueError(
                    f"{name} must have {length} entries, got {len(getattr(self, name))}"
                )
        low, high = self.guidance_interval
        if low > high:
            raise ValueError(
                f"guidance_interval must have its lowest time first, got {low}, {high}"
            )

    @property
    def width(self) -> int:
        """Number of channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def num_tokens(self) -> int:
        """Number of tokens of the sequence, those of the image included."""
        return sum(self.context_tokens) + (self.sample_size // self.patch_size) ** 2

    @property
    def num_blocks(self) -> int:
        """Number of transformer blocks."""
        return self.num_layers

    @property
    def out_channels(self) -> int:
        """Channels of the output, those of the samples."""
        return self.in_channels

    @property
    def shortest_time(self) -> float:
        """The time below which velocities are divided by this one; 0 for those as they are."""
        return 0.0

    @property
    def guidance_embeds(self) -> bool:
        """Whether the network takes a guidance scale: it does."""
        return True

    @property
    def null_class(self) -> bool:
        """Whether the label after the last class stands for no class: it does."""
        return True

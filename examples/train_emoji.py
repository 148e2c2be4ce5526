r"""Train an unconditional consistency model of 32x32 colour pictures, such as emoji.

    python examples/train_emoji.py emoji32.npz --out runs/denoiser --loss denoising --steps 2500
    python examples/train_emoji.py emoji32.npz --out runs/emoji --loss distillation --init runs/denoiser/model \
        --steps 1000 --learning-rate 3e-4 --scales 12 --target-decay 0.98

The steps and options are those of `train_digits.py`. The data is an .npz with `images` u8[N, 32, 32, 3], or a folder
of pictures, whose middle squares are scaled to 32x32.
"""

import training

from cmjax.models import UNet2DConfig

NETWORK = UNet2DConfig(
    sample_size=32,
    block_out_channels=(80, 128),
    norm_num_groups=16,
    patch_size=2,
    time_scale=0.01,
)

main = training.command(NETWORK)

if __name__ == "__main__":
    main()

r"""Train a class-conditional consistency model of 28x28 digits, as the bundled one was.

    python examples/train_digits.py mnist.npz --out runs/denoiser --loss denoising --steps 5000
    python examples/train_digits.py mnist.npz --out runs/digits --loss distillation --init runs/denoiser/model \
        --steps 1700 --learning-rate 3e-4 --scales 12 --target-decay 0.98

The first command trains a denoiser (EDM), the second distils it into a consistency model; `--loss easy`
tunes it into one on the data alone (ECT), and `--loss consistency` needs no denoiser. A trained denoiser
is in `examples/assets/digits_denoiser`. Interrupt any of them and run it again: it goes on from its last
checkpoint. The data is an .npz with `x_train` and `y_train` (or `images` and `labels`), or an IDX image
file with its label file beside it.
"""

import training

from cmjax.models import UNet2DConfig

NETWORK = UNet2DConfig(
    sample_size=28,
    in_channels=1,
    out_channels=1,
    block_out_channels=(64, 96),
    norm_num_groups=16,
    patch_size=2,
    time_scale=0.01,
    num_class_embeds=10,
)

main = training.command(NETWORK)

if __name__ == "__main__":
    main()

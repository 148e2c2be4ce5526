"""The command `cmjax`, which the others are subcommands of."""

import click

from cmjax.cli import (
    checkpoints,
    edit,
    encode,
    env,
    evaluate,
    generate,
    sample,
    schedulers,
    train,
    tune,
)
from cmjax.cli.group import OneLineErrors
from cmjax.version import __version__


@click.group(
    cls=OneLineErrors,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="cmjax")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Few-step generation with consistency models.

    \b
    Examples:
      cmjax sample                        64 digits, of one network call each
      cmjax sample --labels 3,1 --steps 2
                                          threes and ones, in two steps
      cmjax edit inpaint                  the lower half of a digit, repainted
      cmjax info cd_imagenet64_lpips.pt   describes a model
      cmjax convert cd_imagenet64_lpips.pt dst
                                          converts one to a folder for cmjax
      cmjax train --init > my.toml        a configuration to begin with
      cmjax train my.toml                 trains, or resumes
      cmjax encode photos latents --vae VAE --size 256
                                          latents to train a model on
      cmjax generate --out many           50,000 samples, on all devices
      cmjax evaluate mnist.npz many --features pixels
                                          how far samples are from data
      cmjax tune mnist.npz --features pixels --steps 2
                                          better noise levels, searched for
      cmjax schedulers                    lists the samplers
      cmjax env                           versions and devices, for a report
      cmjax sample --help                 lists the options of a command

    Exit codes: 0 if all is done; 2 after an error, which is one line on stderr; 130 if interrupted,
    after which the same cmjax train, generate or encode resumes.
    """  # noqa: D301 (click wants the backspace character itself)
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


main.add_command(sample.sample)
main.add_command(checkpoints.convert)
main.add_command(checkpoints.info)
main.add_command(edit.edit)
main.add_command(train.train)
main.add_command(encode.encode)
main.add_command(generate.generate)
main.add_command(schedulers.schedulers)
main.add_command(evaluate.evaluate)
main.add_command(tune.tune)
main.add_command(env.env)

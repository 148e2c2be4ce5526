"""One task in a process of its own, whose memory and compilation `unet_vs_diffusers.py` measures.

    python benchmarks/alone.py load FOLDER cmjax float32
    python benchmarks/alone.py sample FOLDER diffusers bfloat16 --batch 4
    python benchmarks/alone.py compile imagenet64 float32 --batch 1

`load` opens a pipeline of diffusers, `sample` also makes a batch of samples in one step, and
`compile` prints the seconds that tracing and compiling the network take, without its weights.
"""

import time

import click

SIDES = click.Choice(["cmjax", "diffusers"])
DTYPES = click.Choice(["float32", "bfloat16"])


@click.group()
def main():
    pass


def opened(folder, side, dtype):
    """A function that makes a batch of samples in one step, the model being in memory."""
    if side == "cmjax":
        import jax
        import jax.numpy as jnp
        from pairs import in_dtype

        import cmjax

        model = in_dtype(cmjax.load(folder, dtype=dtype), jnp.dtype(dtype))
        jax.block_until_ready(model.params)
        return lambda batch: model.sample(jax.random.key(0), batch).block_until_ready()

    import torch
    from diffusers import ConsistencyModelPipeline
    from pairs import quieten_diffusers

    quieten_diffusers()
    pipeline = ConsistencyModelPipeline.from_pretrained(
        folder, torch_dtype=getattr(torch, dtype)
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    classes = pipeline.unet.config.num_class_embeds
    return lambda batch: pipeline(
        batch,
        [i % classes for i in range(batch)] if classes else None,
        num_inference_steps=1,
        output_type="pt",
    )


@main.command()
@click.argument("folder")
@click.argument("side", type=SIDES)
@click.argument("dtype", type=DTYPES)
def load(folder, side, dtype):
    """Open a model."""
    opened(folder, side, dtype)


@main.command()
@click.argument("folder")
@click.argument("side", type=SIDES)
@click.argument("dtype", type=DTYPES)
@click.option("--batch", default=1, show_default=True)
def sample(folder, side, dtype, batch):
    """Open a model and make a batch of samples."""
    opened(folder, side, dtype)(batch)


@main.command("compile")
@click.argument("preset")
@click.argument("dtype", type=DTYPES)
@click.option("--batch", default=1, show_default=True)
def compile_(preset, dtype, batch):
    """Compile a network; print the seconds of tracing and of compiling."""
    import jax
    import jax.numpy as jnp
    from pairs import CONFIGS, FirstStep, abstract_model

    from cmjax.models import compute_in

    model = abstract_model(CONFIGS[preset])
    step = FirstStep(model, batch)
    apply_fn = model.apply_fn
    params = model.params
    if dtype != "float32":
        apply_fn = compute_in(apply_fn, dtype)
        params = jax.tree.map(
            lambda p: jax.ShapeDtypeStruct(p.shape, jnp.dtype(dtype)), params
        )
    start = time.perf_counter()
    lowered = jax.jit(apply_fn).lower(params, step.x, step.t, **step.cond)
    traced = time.perf_counter()
    lowered.compile()
    click.echo(f"{traced - start} {time.perf_counter() - traced}")


if __name__ == "__main__":
    main()

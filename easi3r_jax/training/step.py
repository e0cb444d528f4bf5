"""One step of training, and what is carried from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from easi3r_jax.core.types import pytree_dataclass
from easi3r_jax.models import DUSt3R, model_from
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.training.batch import ViewPairs
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.training.objective import objective
from easi3r_jax.training.optimiser import is_trained, make_optimiser

Array = jax.Array
Parameters = dict[str, Array]
#: Pairs numbered (B,) int32 -> the pairs. What pair n shows follows from n alone.
Draw = Callable[[Array], ViewPairs]


@pytree_dataclass
class TrainState:
    """All that a run needs to go on exactly where it was; the data of a step follow from its number.

    Attributes:
      step: () int32, steps taken.
      frozen: parameters that are not trained.
      trained: parameters that are.
      average: exponential moving average of `trained`: what is evaluated and shipped.
      optimiser: the state of Optax.
    """

    step: Array
    frozen: Parameters
    trained: Parameters
    average: Parameters
    optimiser: Any


def init_state(parameters: Parameters, config: TrainConfig) -> TrainState:
    """A run's start from the network's parameters (`parameters_of`)."""
    trained = {name: value for name, value in parameters.items() if is_trained(config, name)}
    frozen = {name: value for name, value in parameters.items() if name not in trained}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        frozen=frozen,
        trained=trained,
        average=jax.tree.map(jnp.copy, trained),  # copies: a step gives all buffers of its state away
        optimiser=make_optimiser(config).init(trained),
    )


def averaged_model(state: TrainState, model_config: DUSt3RConfig, *, dtype: Any = jnp.float32) -> DUSt3R:
    """The network with the averaged parameters, on one device: on all, each would compute all that is asked."""
    parameters = jax.device_put(state.frozen | state.average, jax.local_devices()[0])
    return model_from(model_config, parameters, dtype=dtype)


def pair_numbers(step: Array, batch_size: int) -> Array:
    """(B,) int32 numbers of the pairs of a step: 0 to B-1 of step 0, B to 2B-1 of step 1, ..."""
    return step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)


def make_step(
    model_config: DUSt3RConfig, config: TrainConfig, mesh: Mesh, *, draw: Draw | None = None, dtype: Any = jnp.float32
) -> Callable[..., tuple[TrainState, dict[str, Array]]]:
    """The function that takes a step, compiled: data-parallel over the mesh's one axis.

    Each device computes the gradient of its share of the pairs; the mean of the shares moves the parameters, which
    every device holds.

    Args:
      model_config: the architecture.
      config: the run. Its batch size must be a multiple of the number of devices.
      mesh: of `sharding.data_mesh`.
      draw: makes pairs on the device that trains on them; without it the step takes them as a second argument.
      dtype: compute dtype of the network's layers. Parameters, loss and averages are float32.

    Returns:
      `step(state) -> (state, terms)`, or `step(state, pairs)`: the loss, its terms and the gradient's length, () each.
      The state passed in is used up.
    """
    axis = mesh.axis_names[0]
    optimiser = make_optimiser(config)

    def gradients(trained: Parameters, frozen: Parameters, data: Any):
        def loss(parameters: Parameters):
            model = model_from(model_config, frozen | parameters, dtype=dtype)
            return objective(model, data if draw is None else draw(data), config.objective)

        return jax.lax.pmean(jax.grad(loss, has_aux=True)(trained), axis)

    spread = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(axis)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )

    def step(state: TrainState, pairs: ViewPairs | None = None) -> tuple[TrainState, dict[str, Array]]:
        data = pairs if draw is None else pair_numbers(state.step, config.batch_size)
        gradient, terms = spread(state.trained, state.frozen, data)
        terms["gradient_norm"] = optax.tree.norm(gradient)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax relies on both
            moves, optimiser_state = optimiser.update(gradient, state.optimiser, state.trained)
        trained = jax.tree.map(jnp.add, state.trained, moves)
        # A young average would remember the random start: it follows faster at first.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.average_decay, (1 + age) / (10 + age))
        average = {name: decay * value + (1 - decay) * trained[name] for name, value in state.average.items()}
        return TrainState(state.step + 1, state.frozen, trained, average, optimiser_state), terms

    # Devices that are cores of one CPU compute beside each other: none of them is to use the others' threads.
    cores = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return jax.jit(step, donate_argnums=0, compiler_options={"xla_cpu_multi_thread_eigen": False} if cores else None)

"""One training step, and the state that it updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, PartitionSpec

from easi3r_jax.core.arrays import Array, Float, Int, Shaped, pytree_dataclass
from easi3r_jax.models import DUSt3R, Precision, model_from
from easi3r_jax.models.config import DUSt3RConfig
from easi3r_jax.training.batch import ViewPairs
from easi3r_jax.training.config import TrainConfig
from easi3r_jax.training.objective import objective
from easi3r_jax.training.optimiser import is_trained, make_optimiser

Parameters = dict[str, Shaped[Array, "..."]]
#: Numbers of pairs (B,) int32 → the pairs. Pair n depends on n only.
Draw = Callable[[Int[Array, "B"]], ViewPairs]


@pytree_dataclass
class TrainState:
    """Everything that a run needs to resume exactly. The data of a step follow from its number.

    Attributes:
      step: () int32, number of steps taken.
      frozen: parameters that are not trained.
      trained: parameters that are trained.
      average: exponential moving average of `trained`, which is evaluated and saved as the result.
      optimiser: the state of Optax.
    """

    step: Int[Array, ""]
    frozen: Parameters
    trained: Parameters
    average: Parameters
    optimiser: Any


def init_state(parameters: Parameters, config: TrainConfig) -> TrainState:
    """The initial state, from the network's parameters (`parameters_of`)."""
    trained = {name: value for name, value in parameters.items() if is_trained(config, name)}
    frozen = {name: value for name, value in parameters.items() if name not in trained}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        frozen=frozen,
        trained=trained,
        average=jax.tree.map(jnp.copy, trained),  # copies: a step donates all buffers of its state
        optimiser=make_optimiser(config).init(trained),
    )


def averaged_model(state: TrainState, model_config: DUSt3RConfig) -> DUSt3R:
    """The network with the averaged parameters, on one device: replicated, each device would repeat the computation."""
    own = jax.tree.map(lambda x: x.addressable_data(0), state.frozen | state.average)
    parameters = jax.device_put(own, jax.local_devices()[0])
    return model_from(model_config, parameters)


def pair_numbers(step: Int[Array, ""], batch_size: int) -> Int[Array, "B"]:
    """(B,) int32 numbers of the pairs of a step: 0 to B-1 for step 0, B to 2B-1 for step 1, ..."""
    return step * batch_size + jnp.arange(batch_size, dtype=jnp.int32)


def make_step(
    model_config: DUSt3RConfig,
    config: TrainConfig,
    mesh: Mesh,
    *,
    draw: Draw | None = None,
    precision: Precision = Precision(),
) -> Callable[..., tuple[TrainState, dict[str, Float[Array, ""]]]]:
    """Makes the compiled training step, data-parallel over the mesh's only axis.

    Pairs are sharded and parameters replicated. Each device computes the gradient of its shard; `pmean` averages them.

    Args:
      model_config: the architecture.
      config: the run. Its batch size must be a multiple of the number of devices.
      mesh: of `sharding.data_mesh`.
      draw: makes pairs on the device that trains on them. Without it, the step takes pairs as a second argument.
      precision: what the network computes in. Parameters, loss and averages are float32.

    Returns:
      `step(state) -> (state, terms)`, or `step(state, pairs)`. `terms` has the loss, its terms and the gradient's norm,
      () each. The input state is donated.
    """
    axis = mesh.axis_names[0]
    optimiser = make_optimiser(config)

    def gradients(trained: Parameters, frozen: Parameters, data: Any):
        def loss(parameters: Parameters):
            model = model_from(model_config, frozen | parameters, precision=precision)
            return objective(model, data if draw is None else draw(data), config.objective)

        return jax.lax.pmean(jax.grad(loss, has_aux=True)(trained), axis)

    sharded_gradients = jax.shard_map(
        gradients,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(), PartitionSpec(axis)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )

    def step(state: TrainState, pairs: ViewPairs | None = None) -> tuple[TrainState, dict[str, Array]]:
        data = pairs if draw is None else pair_numbers(state.step, config.batch_size)
        gradient, terms = sharded_gradients(state.trained, state.frozen, data)
        terms["gradient_norm"] = optax.tree.norm(gradient)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # Optax relies on both
            updates, optimiser_state = optimiser.update(gradient, state.optimiser, state.trained)
        trained = jax.tree.map(jnp.add, state.trained, updates)
        # The decay is smaller at first, so that the average forgets the random initialisation.
        age = state.step.astype(jnp.float32)
        decay = jnp.minimum(config.average_decay, (1 + age) / (10 + age))
        average = {name: decay * value + (1 - decay) * trained[name] for name, value in state.average.items()}
        return TrainState(state.step + 1, state.frozen, trained, average, optimiser_state), terms

    # When the devices are cores of one CPU, each of them uses one thread.
    cores = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return jax.jit(step, donate_argnums=0, compiler_options={"xla_cpu_multi_thread_eigen": False} if cores else None)

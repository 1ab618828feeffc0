# SPDX-License-Identifier: Apache-2.0
"""The schedulers against the recorded schedules and trajectories."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from edgereels.runtime import schedulers
from edgereels.runtime.schedulers import SigmaStart, UniPC, add_noise, euler_step, euler_timesteps

# The reference is bit-identical between two runs; tables and schedulers get 1e-6 of the standard deviation.
TABLE_TOLERANCE = 1e-6


def recorded(golden: Path) -> dict[str, npt.NDArray[np.float32]]:
    return load_file(golden / "golden" / "schedulers.safetensors")


def velocity(latents: npt.NDArray[np.float32], *, timestep: int) -> npt.NDArray[np.float32]:
    """Return the velocity field of the recorded trajectories."""
    wave = np.float32(0.3) * np.sin(np.float32(timestep) / np.float32(100))
    return np.tanh(np.float32(0.7) * latents + wave) - np.float32(0.2) * latents


def run(theirs: dict[str, npt.NDArray[np.float32]], name: str, *, steps: int, shift: float, start: SigmaStart) -> float:
    """Return the largest difference along a trajectory, in standard deviations of the recorded step."""
    solver = UniPC(schedulers.unipc_sigmas(steps, shift=shift, start=start))
    sample = theirs["traj_x0"]
    worst = 0.0
    for index, timestep in enumerate(schedulers.unipc_timesteps(steps, shift=shift, start=start)):
        sample = solver.step(velocity(sample, timestep=int(timestep)), sample)
        expected = theirs[f"{name}.samples"][index]
        worst = max(worst, float(np.abs(sample - expected).max() / expected.std()))
    return worst


@pytest.mark.golden
@pytest.mark.parametrize("steps", [4, 8, 40], ids="{}-steps".format)
@pytest.mark.parametrize("shift", [5, 11], ids="shift-{}".format)
def test_the_euler_timesteps_have_the_recorded_bits(golden: Path, steps: int, shift: int) -> None:
    theirs = recorded(golden)[f"a2v_timesteps_steps{steps}_shift{shift}"]
    np.testing.assert_array_equal(euler_timesteps(steps, shift=shift), theirs)


@pytest.mark.golden
@pytest.mark.parametrize(
    ("name", "steps", "shift"),
    [
        pytest.param("unipc_{}_steps4_shift5", 4, 5.0, id="4-steps"),
        pytest.param("unipc_{}_steps8_shift8", 8, 8.0, id="8-steps"),
        pytest.param("unipc_{}_steps50_shift5", 50, 5.0, id="50-steps"),
    ],
)
def test_the_sigmas_of_video_extension_have_the_recorded_bits(
    golden: Path, name: str, steps: int, shift: float
) -> None:
    theirs = recorded(golden)
    np.testing.assert_array_equal(schedulers.unipc_sigmas(steps, shift=shift), theirs[name.format("sigmas")])
    np.testing.assert_array_equal(schedulers.unipc_timesteps(steps, shift=shift), theirs[name.format("timesteps")])


@pytest.mark.golden
def test_the_sigmas_of_reference_to_video_have_the_recorded_bits(golden: Path) -> None:
    theirs = recorded(golden)
    ours = schedulers.unipc_sigmas(8, shift=5.0, start=SigmaStart.REFERENCE)
    np.testing.assert_array_equal(ours, theirs["r2v_unipc_flowshift5.sigmas"])
    timesteps = schedulers.unipc_timesteps(8, shift=5.0, start=SigmaStart.REFERENCE)
    np.testing.assert_array_equal(timesteps, theirs["r2v_unipc_flowshift5.timesteps"])


@pytest.mark.golden
def test_the_two_starts_are_not_the_same_schedule(golden: Path) -> None:
    theirs = recorded(golden)["r2v_unipc_flowshift5.sigmas"]
    assert (schedulers.unipc_sigmas(8, shift=5.0, start=SigmaStart.EXTENSION) != theirs).any()


TRAJECTORIES = [
    pytest.param("flow_unipc_shift8", 8, 8.0, SigmaStart.EXTENSION, id="video-extension"),
    pytest.param("flow_unipc_4steps_shift5", 4, 5.0, SigmaStart.EXTENSION, id="video-extension-4-steps"),
    pytest.param("r2v_unipc_flowshift5", 8, 5.0, SigmaStart.REFERENCE, id="reference-to-video"),
]


@pytest.mark.golden
@pytest.mark.parametrize(("name", "steps", "shift", "start"), TRAJECTORIES)
def test_a_unipc_trajectory_follows_the_recorded_one(
    golden: Path, name: str, steps: int, shift: float, start: SigmaStart
) -> None:
    assert run(recorded(golden), name, steps=steps, shift=shift, start=start) < 10 * TABLE_TOLERANCE


@pytest.mark.golden
@pytest.mark.parametrize(("name", "steps", "shift", "start"), TRAJECTORIES)
def test_a_unipc_trajectory_of_another_shift_does_not(
    golden: Path, name: str, steps: int, shift: float, start: SigmaStart
) -> None:
    assert run(recorded(golden), name, steps=steps, shift=shift + 0.01, start=start) > 100 * TABLE_TOLERANCE


@pytest.mark.golden
@pytest.mark.parametrize(("name", "steps", "shift", "start"), TRAJECTORIES)
def test_a_single_unipc_step_is_the_recorded_one(
    golden: Path, name: str, steps: int, shift: float, start: SigmaStart
) -> None:
    theirs = recorded(golden)
    solver = UniPC(schedulers.unipc_sigmas(steps, shift=shift, start=start))
    samples = [theirs["traj_x0"], *theirs[f"{name}.samples"]]
    for index in range(steps):  # fed with the recorded samples, so that rounding doesn't add up
        ours = solver.step(theirs[f"{name}.velocity"][index], samples[index])
        np.testing.assert_allclose(ours, samples[index + 1], rtol=0, atol=2e-6 * float(samples[index + 1].std()))


@pytest.mark.golden
def test_noise_is_added_with_the_recorded_bits(golden: Path) -> None:
    theirs = recorded(golden)
    ours = add_noise(theirs["add_noise_x"], theirs["add_noise_n"], timestep=theirs["add_noise_t"][0])
    np.testing.assert_array_equal(ours, theirs["add_noise_out"])


@pytest.mark.golden
@pytest.mark.parametrize("run_name", ["e2e_a2v_nocfg"])
def test_euler_steps_lead_through_the_recorded_latents(golden: Path, run_name: str) -> None:
    theirs = load_file(golden / "golden" / f"{run_name}.safetensors")
    timesteps = np.append(theirs["pass0.timesteps"], np.float32(0))
    for index in range(3):
        ours = euler_step(
            theirs["pass0.latent_in"][index],
            theirs["pass0.pred.cond"][index],
            timestep=timesteps[index],
            next_timestep=timesteps[index + 1],
        )
        # one multiplication and one addition: at most the last bit of values below 8
        np.testing.assert_allclose(ours, theirs["pass0.latent_in"][index + 1], rtol=0, atol=1e-6)


def test_no_noise_leaves_latents_untouched() -> None:
    latents = np.linspace(-3, 3, 7, dtype=np.float32)
    np.testing.assert_array_equal(add_noise(latents, np.ones_like(latents), timestep=0.0), latents)


def test_full_noise_leaves_nothing_of_the_latents() -> None:
    noise = np.linspace(-1, 1, 7, dtype=np.float32)
    np.testing.assert_array_equal(add_noise(np.full(7, 9, np.float32), noise, timestep=1000.0), noise)


def test_one_euler_step_over_the_whole_way_subtracts_the_velocity() -> None:
    ours = euler_step(np.full(1, 3, np.float32), np.ones(1, np.float32), timestep=1000.0, next_timestep=0.0)
    np.testing.assert_array_equal(ours, [2.0])


def test_arrays_stay_float32() -> None:
    latents = np.zeros((2, 3), np.float32)
    assert euler_step(latents, latents, timestep=1000.0, next_timestep=500.0).dtype == np.float32
    assert add_noise(latents, latents, timestep=500.0).dtype == np.float32
    assert UniPC(schedulers.unipc_sigmas(2, shift=5.0)).step(latents, latents).dtype == np.float32


def test_a_finished_unipc_run_takes_no_more_steps() -> None:
    solver = UniPC(schedulers.unipc_sigmas(1, shift=5.0))
    latents = np.zeros(3, np.float32)
    solver.step(latents, latents)
    with pytest.raises(ValueError, match="step 2 of a schedule of 1"):
        solver.step(latents, latents)


@pytest.mark.parametrize("make", [euler_timesteps, schedulers.unipc_sigmas, schedulers.unipc_timesteps])
@pytest.mark.parametrize(
    ("steps", "shift"),
    [
        pytest.param(0, 5.0, id="no-steps"),
        pytest.param(4, 0.0, id="no-shift"),
        pytest.param(4, float("nan"), id="nan-shift"),
        pytest.param(4, float("inf"), id="endless-shift"),
        pytest.param(4, 1e300, id="shift-beyond-float32"),
        pytest.param(4, 1e-300, id="shift-below-float32"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(make: object, steps: int, shift: float) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match="expected"):
        make(steps, shift=shift)

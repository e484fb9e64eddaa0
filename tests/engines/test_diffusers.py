"""The engine for diffusers, for real, with tiny pipelines on the CPU."""

import base64
import contextlib
import inspect
import io
import pickle
from pathlib import Path
from typing import Any

import attrs
import pytest
from PIL import Image, ImageChops

torch = pytest.importorskip(
    "torch", reason="torch is not installed; `nox -s engines` runs these in a place of their own"
)

import numpy as np  # noqa: E402 - after torch, so that a place without it skips

from imagelabs_sdk import ImageLabs, InvalidRequestError  # noqa: E402
from imagelabs_sdk.server.engines.base import (  # noqa: E402
    EngineConfig,
    Recovery,
    RenderedImage,
    RenderError,
    RenderJob,
)
from imagelabs_sdk.server.engines.conformance import check_engine  # noqa: E402
from imagelabs_sdk.server.engines.diffusers import DiffusersConfig  # noqa: E402
from imagelabs_sdk.server.engines.diffusers.engine import DiffusersEngine  # noqa: E402
from imagelabs_sdk.server.engines.diffusers.latents import (  # noqa: E402
    LatentPreview,
    initial_noise,
    slerp,
    wrapping,
)
from imagelabs_sdk.server.engines.diffusers.models import Defaults, read_card  # noqa: E402
from imagelabs_sdk.server.http import running  # noqa: E402
from imagelabs_sdk.server.local import LocalServer  # noqa: E402
from tests.engines import tiny  # noqa: E402
from tests.server.monitor import Recorder, job  # noqa: E402

# What the libraries warn one another of is no matter of ours.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}")
    for kind in ("DeprecationWarning", "FutureWarning", "UserWarning")
]
torch.set_num_threads(1)
NAMES = sorted(tiny.MAKERS)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for name in NAMES:
        tiny.save(name, place)
    return place


def config_of(folder: Path, name: str, **more: Any) -> DiffusersConfig:
    path = str(folder / name)
    settings: dict[str, Any] = {"device": "cpu", "model": name, **more}
    return DiffusersConfig(card=read_card(path), **settings)


def loaded(folder: Path, name: str, **more: Any) -> DiffusersEngine:
    engine = config_of(folder, name, **more).load(0)
    assert isinstance(engine, DiffusersEngine)
    return engine


@pytest.fixture(scope="session")
def engines(folder: Path) -> dict[str, DiffusersEngine]:
    return {name: loaded(folder, name) for name in NAMES}


@pytest.fixture
def sd(engines: dict[str, DiffusersEngine]) -> DiffusersEngine:
    return attrs.evolve(engines["sd"])  # what it remembers is its own


def small(number: int = 1, prompt: str = "a lighthouse", **more: Any) -> RenderJob:
    body = {"steps": 2, **more.pop("extra_body", {})}
    return job(prompt, number=number, extra_body=body, **more)


def render(engine: DiffusersEngine, *jobs: RenderJob, monitor: Recorder | None = None) -> Any:
    return engine.render(jobs, monitor or Recorder())


def image(engine: DiffusersEngine, *args: Any, **more: Any) -> Image.Image:
    (outcome,) = render(engine, small(*args, **more))
    assert isinstance(outcome, RenderedImage), outcome
    assert isinstance(outcome.image, Image.Image)
    return outcome.image


def info(engine: DiffusersEngine, **more: Any) -> dict[str, Any]:
    (outcome,) = render(engine, small(**more))
    assert isinstance(outcome, RenderedImage), outcome
    return dict(outcome.info)


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def data_uri(colour: str = "red") -> str:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# Each pipeline ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_same_request_gives_the_same_image_and_another_seed_another(
    engines: dict[str, DiffusersEngine], name: str
) -> None:
    engine = engines[name]
    first = image(engine, seed=7)
    assert first.size == (64, 64)
    assert difference(first, image(engine, seed=7)) == 0
    assert difference(first, image(engine, seed=8)) > 0
    assert difference(first, image(engine, prompt="a windmill")) > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_gives_each_its_own_image_nearly_as_alone(
    engines: dict[str, DiffusersEngine], name: str
) -> None:
    engine = engines[name]
    jobs = [small(1, seed=7), small(2, "a windmill", seed=7), small(3, seed=8)]
    together = [outcome.image for outcome in render(engine, *jobs)]
    alone = [image(engine, seed=7), image(engine, prompt="a windmill"), image(engine, seed=8)]
    assert all(difference(*pair) <= 1 for pair in zip(together, alone, strict=True))
    assert difference(together[0], together[2]) > 1


@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes_are_rendered_larger_cropped_and_told(
    engines: dict[str, DiffusersEngine], name: str
) -> None:
    (outcome,) = render(engines[name], small(width=67, height=75))
    assert outcome.image.size == (67, 75)
    assert (outcome.info["width"], outcome.info["height"]) == (67, 75)


def test_sizes_too_small_for_a_model_are_cut_out_of_the_smallest(sd: DiffusersEngine) -> None:
    assert image(sd, width=1, height=9).size == (1, 9)


@pytest.mark.parametrize("name", NAMES)
def test_progress_comes_after_each_step(engines: dict[str, DiffusersEngine], name: str) -> None:
    monitor = Recorder()
    render(engines[name], small(), small(2), monitor=monitor)
    assert monitor.fractions == {"task-1": [0.0, 0.5, 1.0], "task-2": [0.0, 0.5, 1.0]}
    assert monitor.previews == {}


@pytest.mark.parametrize("name", NAMES)
def test_a_preview_comes_while_somebody_watches_unless_the_latents_are_packed(
    engines: dict[str, DiffusersEngine], name: str
) -> None:
    monitor = Recorder(watched={"task-2"})
    render(engines[name], small(1), small(2), monitor=monitor)
    if name.startswith("flux"):
        assert monitor.previews == {}
    else:
        assert set(monitor.previews) == {"task-2"}
        assert all(isinstance(shown, Image.Image) for shown in monitor.previews["task-2"])


@pytest.mark.parametrize("name", NAMES)
def test_a_cancelled_job_stops_within_a_step_and_the_next_is_fine(
    engines: dict[str, DiffusersEngine], name: str
) -> None:
    engine, monitor = engines[name], Recorder()
    before = image(engine)
    monitor.on_progress = monitor.cancelled.add
    (outcome,) = render(engine, small(extra_body={"steps": 20}), monitor=monitor)
    assert isinstance(outcome, RenderError)
    assert outcome.message == "cancelled"
    assert len(monitor.fractions["task-1"]) <= 2
    assert difference(before, image(engine)) == 0


def test_a_batch_goes_on_while_one_of_its_jobs_is_wanted(sd: DiffusersEngine) -> None:
    monitor = Recorder(cancelled={"task-1"})
    assert isinstance(render(sd, small(1), small(2), monitor=monitor)[1], RenderedImage)


def test_a_pipeline_without_the_callback_renders_without_progress(
    engines: dict[str, DiffusersEngine],
) -> None:
    pipeline = engines["sd"].pipeline

    class Old:
        """Some pipelines have no such parameter."""

        unet, vae, vae_scale_factor = pipeline.unet, pipeline.vae, pipeline.vae_scale_factor

        def __call__(self, prompt: Any, width: int, height: int, generator: Any) -> Any:
            return pipeline(
                prompt, width=width, height=height, generator=generator, num_inference_steps=1
            )

    engine, monitor = attrs.evolve(engines["sd"], pipeline=Old()), Recorder()
    (outcome,) = render(engine, small(negative_prompt="x"), monitor=monitor)
    assert isinstance(outcome, RenderedImage)
    assert monitor.fractions == {"task-1": [0.0]}
    assert outcome.info["ignored"] == ["negative_prompt"]


# Defaults and what is told ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "steps", "guidance"),
    [
        ("sd", 25, 7.5),
        ("sdxl", 30, 5.0),
        ("sdxl-turbo", 4, 0.0),
        ("z-image-turbo", 9, 0.0),
        ("flux.1-schnell", 4, 0.0),
    ],
)
def test_each_model_has_its_own_defaults(
    folder: Path, name: str, steps: int, guidance: float
) -> None:
    tuning = config_of(folder, name).tuning(job().request)
    assert (tuning.steps, tuning.guidance) == (steps, guidance)


def test_the_operator_comes_before_the_model_and_the_request_before_the_operator(
    folder: Path,
) -> None:
    config = config_of(folder, "sd", steps=3, guidance=2.0)
    assert config.tuning(job().request).steps == 3
    assert config.tuning(job().request).guidance == 2.0
    asked = job(extra_body={"steps": 5, "cfg_scale": 1}).request
    assert (config.tuning(asked).steps, config.tuning(asked).guidance) == (5, 1.0)


def test_a_distilled_model_gets_trailing_timesteps(engines: dict[str, DiffusersEngine]) -> None:
    assert engines["sdxl-turbo"].pipeline.scheduler.config.timestep_spacing == "trailing"
    assert engines["sdxl"].pipeline.scheduler.config.timestep_spacing == "linspace"


def test_the_info_says_how_the_image_was_made(sd: DiffusersEngine) -> None:
    told = info(sd, negative_prompt="people", extra_body={"pose": "x"})
    assert told.pop("seconds") > 0
    assert told == {
        "engine": "diffusers",
        "model": "sd",
        "steps": 2,
        "guidance": 7.5,
        "seed": 7,
        "subseed": None,
        "width": 64,
        "height": 64,
        "ignored": ["pose"],
        "batch": 1,
    }


def test_a_negative_prompt_without_guidance_is_told_as_ignored(
    engines: dict[str, DiffusersEngine],
) -> None:
    for name in ("sdxl-turbo", "z-image-turbo", "flux.1-schnell"):
        assert info(engines[name], negative_prompt="people")["ignored"] == ["negative_prompt"]


def test_a_negative_prompt_with_guidance_has_an_effect(sd: DiffusersEngine) -> None:
    assert difference(image(sd), image(sd, negative_prompt="people")) > 0


def test_an_image_that_the_models_filter_blanks_is_an_error(
    engines: dict[str, DiffusersEngine],
) -> None:
    pipeline = engines["sd"].pipeline

    class Filtered:
        unet, vae, vae_scale_factor = pipeline.unet, pipeline.vae, pipeline.vae_scale_factor

        def __call__(self, **arguments: Any) -> Any:
            output = pipeline(**arguments)
            output.nsfw_content_detected = [True, False]
            return output

    Filtered.__call__.__signature__ = inspect.signature(type(pipeline).__call__)  # type: ignore[attr-defined]
    engine = attrs.evolve(engines["sd"], pipeline=Filtered())
    hidden, shown = render(engine, small(1), small(2))
    assert isinstance(hidden, RenderError)
    assert "filter" in hidden.message
    assert isinstance(shown, RenderedImage)


def test_a_long_prompt_is_not_quoted_in_the_log(
    sd: DiffusersEngine, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    image(sd, prompt="secret lighthouse " * 60)
    output = capfd.readouterr()
    assert "secret" not in output.err + output.out + caplog.text


# Memory ------------------------------------------------------------------------------------


@attrs.define(slots=False)
class Crowded:
    """A pipeline in whose memory no more than `room` images fit."""

    pipeline: Any
    room: int
    error: Exception
    sizes: list[int] = attrs.Factory(list)

    def __attrs_post_init__(self) -> None:
        type(self).__call__.__signature__ = inspect.signature(type(self.pipeline).__call__)  # type: ignore[attr-defined]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.pipeline, name)

    def __call__(self, prompt: list[str], callback_on_step_end: Any, **arguments: Any) -> Any:
        self.sizes.append(len(prompt))
        if len(prompt) > self.room:
            raise self.error
        return self.pipeline(prompt, callback_on_step_end=callback_on_step_end, **arguments)


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("MPS backend out of memory"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_a_batch_that_does_not_fit_is_halved_and_that_is_remembered(
    engines: dict[str, DiffusersEngine], error: Exception
) -> None:
    crowded = Crowded(engines["sd"].pipeline, 2, error)
    engine = attrs.evolve(engines["sd"], pipeline=crowded)
    jobs = [small(number, seed=number) for number in range(1, 6)]
    outcomes = render(engine, *jobs)
    assert crowded.sizes == [5, 2, 2, 1]
    alone = [image(engines["sd"], seed=number) for number in range(1, 6)]
    assert all(difference(o.image, i) <= 1 for o, i in zip(outcomes, alone, strict=True))
    render(engine, *jobs[:4])
    assert crowded.sizes[4:] == [2, 2]


def test_one_image_that_does_not_fit_fails_and_the_others_do_not(
    engines: dict[str, DiffusersEngine],
) -> None:
    crowded = Crowded(engines["sd"].pipeline, 0, OUT_OF_MEMORY[0])
    outcomes = render(attrs.evolve(engines["sd"], pipeline=crowded), small(1), small(2))
    assert [type(outcome) for outcome in outcomes] == [RenderError, RenderError]
    assert "not enough memory" in outcomes[0].message


def test_another_error_of_the_pipeline_goes_through(engines: dict[str, DiffusersEngine]) -> None:
    crowded = Crowded(engines["sd"].pipeline, 0, RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug"):
        render(attrs.evolve(engines["sd"], pipeline=crowded), small())


# Subseed, tiling, image to image ----------------------------------------------------------------


def test_a_subseed_moves_the_image_by_its_strength(sd: DiffusersEngine) -> None:
    plain = image(sd)
    none = image(sd, subseed=9, extra_body={"subseed_strength": 0.0})
    some = image(sd, subseed=9, extra_body={"subseed_strength": 0.3})
    whole = image(sd, subseed=9, extra_body={"subseed_strength": 1.0})
    assert difference(plain, none) == 0
    assert difference(plain, some) > 0
    assert difference(whole, image(sd, seed=9)) <= 1, "all of it is the image of that seed"
    told = info(sd, subseed=9, extra_body={"subseed_strength": 0.3})
    assert (told["subseed"], told["subseed_strength"]) == (9, 0.3)


def test_the_way_between_two_noises_keeps_their_variance() -> None:
    noise = initial_noise((1, 4, 64, 64), 1, 2, 0.5)
    assert noise.std().item() == pytest.approx(1.0, abs=0.02)
    plain = initial_noise((1, 4, 64, 64), 1, 2, 0.0)
    assert torch.equal(plain, initial_noise((1, 4, 64, 64), 1, 3, 0.0))
    one = torch.ones(3)
    assert torch.equal(slerp(one, one, 0.5), one)


@pytest.mark.parametrize("name", ["z-image-turbo", "flux.1-schnell"])
def test_a_model_without_convolutions_refuses_tiling_and_subseeds(folder: Path, name: str) -> None:
    config = config_of(folder, name)
    with pytest.raises(InvalidRequestError, match="no convolutions to wrap"):
        config.check(job(tiling=True).request)
    with pytest.raises(InvalidRequestError, match="subseed_strength"):
        config.check(job(extra_body={"subseed_strength": 0.5}).request)
    config.check(job().request)


def test_a_decoder_that_wraps_does_not_know_where_the_edge_is(sd: DiffusersEngine) -> None:
    """Shifted latents give the image shifted: that is what repeating without a seam means."""
    vae = sd.pipeline.vae
    latents = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        with wrapping([vae]):
            straight = vae.decode(latents).sample.roll(8, -1)
            shifted = vae.decode(latents.roll(4, -1)).sample
        plain = vae.decode(latents).sample.roll(8, -1)
        unwrapped = vae.decode(latents.roll(4, -1)).sample
    assert torch.allclose(straight, shifted, atol=1e-4)
    assert not torch.allclose(plain, unwrapped, atol=1e-2)


def test_tiling_changes_the_image_and_leaves_the_pipeline_as_it_was(sd: DiffusersEngine) -> None:
    before = image(sd)
    tiled = image(sd, tiling=True, width=60)
    assert tiled.size == (64, 64), "a crop would cut the seam off"
    assert difference(before, tiled) > 0
    assert difference(before, image(sd)) == 0


@pytest.mark.parametrize("name", ["sd", "sdxl", "sdxl-turbo", "z-image-turbo", "flux.1-schnell"])
def test_an_image_to_start_from_has_an_effect_by_its_strength(
    folder: Path, engines: dict[str, DiffusersEngine], name: str
) -> None:
    red: dict[str, Any] = {"reference_image": data_uri("red"), "extra_body": {"steps": 4}}
    config_of(folder, name).check(small(**red).request)
    engine = engines[name]
    weak = image(engine, reference_strength=10, **red)
    strong = image(engine, reference_strength=100, **red)
    assert weak.size == strong.size == (64, 64)
    assert difference(weak, strong) > 0
    blue: dict[str, Any] = {"reference_image": data_uri("blue"), "extra_body": {"steps": 4}}
    assert difference(weak, image(engine, reference_strength=10, **blue)) > 0
    told = info(engine, reference_strength=10, **red)
    assert told["reference_strength"] == 10
    assert "reference_image" not in told["ignored"]


def test_a_subseed_has_no_effect_with_an_image_to_start_from_and_that_is_told(
    sd: DiffusersEngine,
) -> None:
    told = info(sd, reference_image=data_uri(), extra_body={"subseed_strength": 0.5})
    assert told["ignored"] == ["subseed_strength"]


def test_a_damaged_reference_image_fails_its_own_job_alone(sd: DiffusersEngine) -> None:
    broken = small(1, reference_image="data:image/png;base64,AAAA")
    bad, good = render(sd, broken, small(2, reference_image=data_uri()))
    assert isinstance(bad, RenderError)
    assert "reference image" in bad.message
    assert isinstance(good, RenderedImage)


def test_a_model_that_cannot_start_from_an_image_refuses_by_name(folder: Path) -> None:
    config = config_of(folder, "sd")
    other = attrs.evolve(config, card=attrs.evolve(config.card, pipeline="OtherPipeline"))
    with pytest.raises(InvalidRequestError, match="OtherPipeline cannot start from an image"):
        other.check(job(reference_image=data_uri()).request)


# Previews ----------------------------------------------------------------------------------


def test_a_preview_resembles_what_the_decoder_would_show(sd: DiffusersEngine) -> None:
    """Flat cells of latents: the preview's colours are those of the decoded image, nearly."""
    vae = sd.pipeline.vae
    generator = torch.Generator().manual_seed(5)
    cells = torch.randn(4, 4, 4, generator=generator)
    latents = cells.repeat_interleave(8, 1).repeat_interleave(8, 2)
    with torch.inference_mode():
        decoded = vae.decode(latents[None] / vae.config.scaling_factor).sample[0]
    real = ((decoded / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).numpy()
    shown = LatentPreview(vae).image(latents).resize((4, 4), Image.Resampling.BOX)
    expected = Image.fromarray(real).resize((4, 4), Image.Resampling.BOX)
    flat = Image.new("RGB", (4, 4), tuple(np.asarray(expected).reshape(-1, 3).mean(0).astype(int)))

    def error(one: Image.Image) -> float:
        return float(np.asarray(ImageChops.difference(one, expected), int).mean())

    assert error(shown) < 0.7 * error(flat)


@pytest.mark.parametrize("name", ["sd", "z-image-turbo"])
def test_the_engine_conforms(folder: Path, name: str) -> None:
    check_engine(config_of(folder, name, max_batch=2), small().request)


# The config in front ------------------------------------------------------------------------


def test_the_config_is_light_pickles_and_keys_batches_by_shape(folder: Path) -> None:
    config: EngineConfig = config_of(folder, "sd")
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.recovery is Recovery.REPEATABLE
    assert not config.in_process
    key = config.batch_key(job("a").request)
    assert key == config.batch_key(job("b", seed=1, negative_prompt="x").request)
    for other in (
        {"width": 72},
        {"tiling": True},
        {"extra_body": {"steps": 3}},
        {"extra_body": {"cfg_scale": 3}},
        {"reference_image": data_uri()},
    ):
        assert key != config.batch_key(job("a", **other).request)


def test_an_unknown_model_renders_with_its_pipelines_own_defaults(folder: Path) -> None:
    config = config_of(folder, "sd", device="auto")
    card = attrs.evolve(config.card, defaults=Defaults(steps=1))
    engine = attrs.evolve(config, card=card).load(0)
    assert isinstance(engine, DiffusersEngine)
    told = info(engine, negative_prompt="people")
    assert told["guidance"] is None
    assert told["ignored"] == [], "the pipeline guides by default"
    engine.close()


def test_half_precision_is_loaded_where_it_is_asked_for(folder: Path) -> None:
    engine = loaded(folder, "sd", dtype="bfloat16")
    assert engine.pipeline.unet.dtype is torch.bfloat16
    engine.close()


def test_weights_in_the_half_precision_variant_are_found(folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny.sd().save_pretrained(tmp_path / "half", variant="fp16")
    engine = loaded(tmp_path, "half")
    assert image(engine).size == (64, 64)


# The whole way --------------------------------------------------------------------------------


def test_the_same_script_gets_an_image_from_a_model_behind_a_server(folder: Path) -> None:
    """The client, HTTP, the queue, batches, the model."""
    with contextlib.ExitStack() as stack:
        server = LocalServer(config_of(folder, "sd", max_batch=4, steps=2))
        stack.callback(server.close)
        client = stack.enter_context(ImageLabs(stack.enter_context(running(server))))
        jobs = [client.submit("a lighthouse", width=64, height=64, seed=n) for n in range(4)]
        images = [each.result(timeout=120) for each in jobs]
        assert len({each.read() for each in images}) == 4

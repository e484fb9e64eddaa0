"""What `imagelabs serve --engine diffusers` makes of a GPU, beside the bare pipeline.

``python -m benchmarks.gpu`` builds SDXL's full size with random weights (speed does not depend on
them), and measures in a few minutes: the bare pipeline one by one and in batches, many clients and
one client through HTTP, what progress and previews cost, and how soon a cancelled job stops.
``--tiny`` does the same with a model of 7 MB, on a CPU: the same shape, no figure to quote.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from diffusers import EulerAncestralDiscreteScheduler as Scheduler
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from imagelabs_sdk import ImageLabs, ImageRequest
from imagelabs_sdk.server.engines.base import RenderedImage, RenderJob
from imagelabs_sdk.server.engines.diffusers import DiffusersConfig
from imagelabs_sdk.server.engines.diffusers.engine import DiffusersEngine
from imagelabs_sdk.server.engines.diffusers.models import read_card
from tests.engines import tiny

_READY = re.compile(r"Serving on (http://\S+)")
_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@attrs.frozen(kw_only=True)
class Plan:
    """What is measured.

    Attributes:
        folder: Of the model.
        side: Of an image, in pixels.
        steps: Denoising steps.
        batch: Images in one forward pass at most.
        clients: Jobs in flight in the many-clients run.
        images: Images of the many-clients run.
        repeats: Of each short measurement; the median counts.
    """

    folder: Path
    side: int
    steps: int
    batch: int
    clients: int
    images: int
    repeats: int

    def request(self, seed: int = 1) -> ImageRequest:
        """Return one request."""
        return ImageRequest("a lighthouse", width=self.side, height=self.side, seed=seed, subseed=1)

    def jobs(self, count: int) -> list[RenderJob]:
        """Return so many jobs."""
        return [RenderJob(f"{n}", self.request(n), str(uuid4())) for n in range(count)]


class Monitor:
    """Takes what an engine reports; `watched`: previews are wanted, every 0.5 seconds."""

    def __init__(self, *, watched: bool = False, cancel_after: int | None = None) -> None:
        self.watched, self.cancel_after = watched, cancel_after
        self.reports: list[float] = []
        self._shown = 0.0

    def progress(self, job_id: str, fraction: float, preview: Any = None) -> None:
        """Note when it was reported."""
        self.reports.append(time.perf_counter())
        if preview is not None:
            self._shown = self.reports[-1]

    def wants_preview(self, job_id: str) -> bool:
        """Return True as often as a worker does."""
        return self.watched and time.perf_counter() - self._shown >= 0.5

    def is_cancelled(self, job_id: str) -> bool:
        """Return True after so many reports."""
        return self.cancel_after is not None and len(self.reports) > self.cancel_after


# Models -----------------------------------------------------------------------------------


def full_size() -> Any:
    """Build SDXL with random weights in half precision, as sdxl-turbo schedules it."""
    tokenizer = tiny.clip_tokenizer()
    words = len(tokenizer)
    ends = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    small = CLIPTextConfig(
        hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_hidden_layers=12,
        vocab_size=words, projection_dim=768, **ends,
    )  # fmt: skip
    large = CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_attention_heads=20, num_hidden_layers=32,
        vocab_size=words, projection_dim=1280, **ends,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=128, block_out_channels=(320, 640, 1280), layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 10), attention_head_dim=(5, 10, 20),
        cross_attention_dim=2048, use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        unet=unet, vae=vae, scheduler=Scheduler(**_BETAS, timestep_spacing="trailing"),
        text_encoder=CLIPTextModel(small), text_encoder_2=CLIPTextModelWithProjection(large),
        tokenizer=tokenizer, tokenizer_2=tiny.clip_tokenizer(),
    )  # fmt: skip
    return pipeline.to(torch.float16)


def load(plan: Plan) -> DiffusersEngine:
    """Load the model as a worker does."""
    config = DiffusersConfig(
        model="benchmark", card=read_card(str(plan.folder)), steps=plan.steps, guidance=0.0
    )
    engine = config.load(0)
    assert isinstance(engine, DiffusersEngine)
    return engine


# Measuring ----------------------------------------------------------------------------------


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median of `repeats` runs, after one that does not count."""
    work()
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(time.perf_counter() - begin)
    return statistics.median(found)


def bare(engine: DiffusersEngine, plan: Plan, count: int) -> Sequence[Any]:
    """Call the pipeline itself, with nothing of ours around it."""
    generators = [torch.Generator().manual_seed(n) for n in range(count)]
    with torch.inference_mode():
        images: Sequence[Any] = engine.pipeline(
            ["a lighthouse"] * count,
            width=plan.side, height=plan.side, num_inference_steps=plan.steps,
            guidance_scale=0.0, generator=generators,
        ).images  # fmt: skip
    return images


def encoded(images: Sequence[Any]) -> None:
    """Encode as PNG in this thread, as a plain loop would."""
    for image in images:
        image.save(io.BytesIO(), "PNG")


def watching(engine: DiffusersEngine, plan: Plan, *, watched: bool) -> None:
    """Render one batch under a monitor."""
    outcomes = engine.render(plan.jobs(plan.batch), Monitor(watched=watched))
    assert all(isinstance(outcome, RenderedImage) for outcome in outcomes)


def cancelling(engine: DiffusersEngine, plan: Plan) -> float:
    """Return seconds from the first step after a cancel to the end of the render."""
    config = attrs.evolve(plan, steps=20)
    patient = load(config)
    monitor = Monitor(cancel_after=3)
    patient.render(config.jobs(1), monitor)
    return time.perf_counter() - monitor.reports[-1]


@contextlib.contextmanager
def served(plan: Plan) -> Iterator[str]:
    """Run the command in a process of its own; its address."""
    command = [
        sys.executable, "-m", "imagelabs_sdk", "serve", "--port", "0", "--store", "memory",
        "--engine", "diffusers", "--model", str(plan.folder), "--steps", str(plan.steps),
        "--guidance", "0", "--max-batch", str(plan.batch),
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = _READY.search(process.stdout.readline())
        assert found is not None, "the server did not start"
        yield found[1]
    finally:
        process.terminate()
        process.wait(30)


def through_http(plan: Plan) -> tuple[float, float]:
    """Return images a second of many clients, and seconds of one client alone."""
    with served(plan) as url, ImageLabs(url, timeout=600.0) as client:
        client.generate(plan.request()).read()  # the model is loaded by then
        warm = [plan.request(n) for n in range(2 * plan.batch)]
        for outcome in client.generate_many(warm, max_in_flight=plan.clients):
            assert outcome.result is not None, outcome.error
        one = seconds(lambda: client.generate(plan.request()).read(), plan.repeats)
        requests = [plan.request(n) for n in range(plan.images)]
        begin = time.perf_counter()
        for outcome in client.generate_many(requests, max_in_flight=plan.clients):
            assert outcome.result is not None, outcome.error
            outcome.result.read()
        return plan.images / (time.perf_counter() - begin), one


def measure(plan: Plan) -> dict[str, Any]:
    """Measure all of it."""
    engine = load(plan)
    single = seconds(lambda: bare(engine, plan, 1), plan.repeats)
    loop = seconds(lambda: encoded(bare(engine, plan, 1)), plan.repeats)
    batched = seconds(lambda: bare(engine, plan, plan.batch), plan.repeats) / plan.batch
    quiet = seconds(lambda: watching(engine, plan, watched=False), plan.repeats)
    shown = seconds(lambda: watching(engine, plan, watched=True), plan.repeats)
    cancel = cancelling(engine, plan)
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    engine.close()
    rate, one = through_http(plan)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine(),
        "side": plan.side,
        "steps": plan.steps,
        "batch": plan.batch,
        "bare, one by one: images/s": round(1 / single, 2),
        "bare, one by one, PNG in the same thread: images/s": round(1 / loop, 2),
        "bare, batched: images/s": round(1 / batched, 2),
        f"{plan.clients} clients through HTTP: images/s": round(rate, 2),
        "... share of the best batched rate (goal: 0.9)": round(rate * batched, 2),
        "... times the loop with PNG (goal: 4)": round(rate * loop, 2),
        "one client alone: seconds": round(one, 3),
        "... over 1.1 times the bare call (goal: 0.05)": round(one - 1.1 * single, 3),
        "progress and previews: share of a batch's time (goal: 0.02)": round(
            shown / (batched * plan.batch) - 1, 3
        ),
        "... without anybody watching": round(quiet / (batched * plan.batch) - 1, 3),
        "from a cancel to the end: steps (goal: 1)": round(cancel / (single / plan.steps), 2),
        "GPU memory, most: GiB": round(memory, 2),
    }


def main() -> None:
    """Build the model, measure, and print JSON."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a model of 7 MB, for a CPU")
    parser.add_argument("--side", type=int, help="pixels of an image [512; tiny: 64]")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--batch", type=int, help="[16; tiny: 4]")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--images", type=int, help="[512; tiny: 32]")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        name = "sdxl"
        if asked.tiny:  # a busy machine's threads would wait for one another
            os.environ["OMP_NUM_THREADS"] = "1"
            torch.set_num_threads(1)
            path = tiny.save(name, Path(folder))
        else:
            path = Path(folder) / name
            full_size().save_pretrained(path, variant="fp16")
        plan = Plan(
            folder=path,
            side=asked.side or (64 if asked.tiny else 512),
            steps=asked.steps,
            batch=asked.batch or (4 if asked.tiny else 16),
            clients=asked.clients,
            images=asked.images or (32 if asked.tiny else 512),
            repeats=3 if asked.tiny else 7,
        )
        print(json.dumps(measure(plan), indent=2))  # noqa: T201 - the result of a command


if __name__ == "__main__":
    main()

"""Several images of each prompt: the library counts, the command names the files."""

from pathlib import Path

import pytest

from imagelabs_sdk import ImageRequest
from imagelabs_sdk.testing import FakeService
from tests.cli.command import Command, saved


@pytest.mark.parametrize("seeds", [(), ("--seed", 7)])
def test_a_checkpoint_of_expanded_items_is_resumed(
    imagelabs: Command, gallery: FakeService, seeds: tuple[object, ...]
) -> None:
    """Each image has the place and the request that it had when the command expanded them."""
    prompts = ["a lighthouse", "a [red] boat", "a castle"]
    numbered = [7, 8] if seeds else [None, None]
    requests = [ImageRequest(prompt, seed=seed) for prompt in prompts for seed in numbered]
    outcomes = gallery.client().generate_many(requests, checkpoint="run.jsonl")
    assert all(outcome.result for outcome in outcomes)
    gallery.sent.clear()
    words = ("-n", 2, "--checkpoint", "run.jsonl", "--base-url", gallery.url)
    result = imagelabs.batch(*words, *seeds)
    assert result.exit_code == 0
    assert gallery.count("submit") == 0
    assert saved() == [f"000{line}-{copy}.png" for line in (1, 2, 3) for copy in (1, 2)]


def test_the_seed_after_the_largest_is_0(imagelabs: Command, gallery: FakeService) -> None:
    """As in the library; it was an error of the second image before."""
    result = imagelabs("generate", "a boat", "-n", 2, "--seed", 2**63 - 1, "-o", "boat")
    assert result.exit_code == 0
    assert sorted(submit.request.seed or 0 for submit in gallery.submits) == [0, 2**63 - 1]
    assert Path("boat-2.png").exists()

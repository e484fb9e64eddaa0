"""Watch an image being drawn: each poll of the job, with the half-drawn preview's address.

    python watch_progress.py "a lighthouse at dusk" --out lighthouse.png
    python watch_progress.py --embedded            # offline: this process draws

Without --embedded the service draws, or the one that IMAGELABS_BASE_URL names.
"""

import argparse

from imagelabs_sdk import ImageLabs, Progress


def connect(*, embedded: bool) -> ImageLabs:
    if not embedded:
        return ImageLabs()
    from imagelabs_sdk.embedded import embedded_client  # pip install "imagelabs_sdk[server]"

    return embedded_client()


def line(progress: Progress) -> str:
    percent = "" if progress.fraction is None else f"{progress.fraction:.0%}"
    return f"{progress.state.value:8}{percent:>5}  {progress.preview_url or ''}".rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description="Watch an image being drawn.")
    parser.add_argument("prompt", nargs="?", default="a lighthouse at dusk")
    parser.add_argument("--out", default="lighthouse.png", help="the file to write")
    parser.add_argument("--embedded", action="store_true", help="draw in this process, offline")
    options = parser.parse_args()

    with connect(embedded=options.embedded) as client:
        job = client.submit(options.prompt, width=768, height=512)
        for progress in job.events():  # ends when the job does
            print(line(progress))
        print(job.result().save(options.out))


if __name__ == "__main__":
    main()

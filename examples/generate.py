"""From a prompt to a saved image.

    python generate.py "a lighthouse at dusk" --out lighthouse.png
    python generate.py --embedded                  # offline: this process draws

Without --embedded the service draws, or the one that IMAGELABS_BASE_URL names.
"""

import argparse

from imagelabs_sdk import ImageLabs


def connect(*, embedded: bool) -> ImageLabs:
    if not embedded:
        return ImageLabs()
    from imagelabs_sdk.embedded import embedded_client  # pip install "imagelabs_sdk[server]"

    return embedded_client()


def main() -> None:
    parser = argparse.ArgumentParser(description="From a prompt to a saved image.")
    parser.add_argument("prompt", nargs="?", default="a lighthouse at dusk")
    parser.add_argument("--out", default="lighthouse.png", help="the file to write")
    parser.add_argument("--embedded", action="store_true", help="draw in this process, offline")
    options = parser.parse_args()

    with connect(embedded=options.embedded) as client:
        image = client.generate(options.prompt, width=768, height=512)
        path = image.save(options.out)
    print(f"{path} took {image.timings.total:.1f} s")


if __name__ == "__main__":
    main()

"""Submit now, fetch later: from another process, on another day.

    python submit_then_resume.py submit "a lighthouse at dusk" --job job.json
    python submit_then_resume.py resume --job job.json --out lighthouse.png

    python submit_then_resume.py --embedded        # offline: this process draws

The embedded service ends with its process and takes its jobs along. So there both halves run
in one process, with one client; but nothing passes between them except the file.
"""

import argparse
import json
from pathlib import Path

from imagelabs_sdk import ImageLabs


def submit(client: ImageLabs, prompt: str, file: Path) -> None:
    job = client.submit(prompt, width=768, height=512)
    file.write_text(json.dumps(job.to_dict(), indent=2))  # holds the prompt, and no secret
    print(f"{file} is all that it takes to go on")


def resume(client: ImageLabs, file: Path, out: str) -> None:
    job = client.job_from_dict(json.loads(file.read_text()))
    print(job.result().save(out))


def both(prompt: str, file: Path, out: str) -> None:
    from imagelabs_sdk.embedded import embedded_client  # pip install "imagelabs_sdk[server]"

    with embedded_client() as client:
        submit(client, prompt, file)
        resume(client, file, out)


def main() -> None:
    parser = argparse.ArgumentParser(description="Submit now, fetch later.")
    parser.add_argument("half", nargs="?", choices=["submit", "resume"])
    parser.add_argument("prompt", nargs="?", default="a lighthouse at dusk")
    parser.add_argument("--job", default="job.json", type=Path, help="what to keep in between")
    parser.add_argument("--out", default="lighthouse.png", help="the file to write")
    parser.add_argument("--embedded", action="store_true", help="both halves, offline")
    options = parser.parse_args()

    if options.embedded:
        both(options.prompt, options.job, options.out)
    elif options.half == "submit":
        with ImageLabs() as client:
            submit(client, options.prompt, options.job)
    elif options.half == "resume":
        with ImageLabs() as client:
            resume(client, options.job, options.out)
    else:
        parser.error("say submit or resume, or --embedded for both")


if __name__ == "__main__":
    main()

"""Submit here, let a Celery worker fetch the image.

    pip install "imagelabs_sdk[celery]" "celery[redis]"
    celery -An images worker                                  # in this folder
    python images.py "a lighthouse at dusk" --out lighthouse.png

Both ask the service that `IMAGELABS_BASE_URL` names, and both use the Redis that `REDIS_URL`
names. `imagelabs serve` starts a service that draws stand-ins.
"""

import argparse
import os
from pathlib import Path

from celery import Celery

from imagelabs_sdk import ImageLabs
from imagelabs_sdk.contrib.celery import save_image

REDIS = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")

app = Celery("images", broker=REDIS, backend=REDIS)


def main() -> None:
    parser = argparse.ArgumentParser(description="Let a Celery worker fetch the image.")
    parser.add_argument("prompt", nargs="?", default="a lighthouse at dusk")
    parser.add_argument("--out", default="lighthouse.png", type=Path, help="the file to write")
    options = parser.parse_args()

    with ImageLabs() as client:
        job = client.submit(options.prompt)  # the only request that costs something
        message = (job.to_dict(), str(options.out.absolute()))
        result = save_image.apply_async(message, countdown=job.next_poll_in)
    print(f"task {result.id} fetches job {job.id}")
    print(result.get(timeout=600))  # a web application would not wait here


if __name__ == "__main__":
    main()

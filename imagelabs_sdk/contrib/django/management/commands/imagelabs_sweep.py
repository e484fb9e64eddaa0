"""``manage.py imagelabs_sweep``: the worker that looks after jobs."""

import logging
import signal
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error, close_old_connections
from django.utils import timezone

from ...clients import clients
from ...sweep import Sweeper, in_process_aliases

log = logging.getLogger("imagelabs_sdk.contrib.django.sweep")

_NAP = 0.2  # seconds after which a signal is noticed
_AFTER_TROUBLE = 5.0  # seconds to wait when the database fails


class Command(BaseCommand):
    """Polls at every job that is due, again and again, until SIGTERM or Ctrl-C."""

    help = (
        "Poll after image jobs until SIGTERM or Ctrl-C; polls under way are finished first. "
        "Any number may run at once."
    )
    _stopped = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options."""
        parser.add_argument("--once", action="store_true", help="what is due now, then end")
        parser.add_argument(
            "--interval", type=float, default=1.0, help="seconds between sweeps (default: 1)"
        )
        parser.add_argument("--threads", type=int, default=8, help="looks at once (default: 8)")
        parser.add_argument("--database", help="alias of the database, if not the models' own")

    def handle(self, *_: Any, **options: Any) -> None:
        """Sweep."""
        if options["threads"] < 1 or not options["interval"] > 0:
            raise CommandError("--threads must be 1 or more, --interval above 0")
        here = in_process_aliases()
        if here == set(clients):
            raise CommandError(
                "every alias of IMAGELABS is answered inside the web process, where its jobs live: "
                "their pages look after them. For workers, run `imagelabs serve` and give its "
                "address as base_url."
            )
        with (
            _called_by_signals(self._stop),
            Sweeper(threads=options["threads"], using=options["database"], skip=here) as sweeper,
        ):
            if options["once"]:
                sweeper.sweep(stop=lambda: self._stopped, due_by=timezone.now())
                return
            while not self._stopped:
                self._sleep(self._sweep(sweeper, options["interval"]))

    def _sweep(self, sweeper: Sweeper, interval: float) -> float:
        """One sweep. Answers for how long to rest after it, in seconds."""
        close_old_connections()
        try:
            sweeper.sweep(stop=lambda: self._stopped)
        except Error:
            log.exception("the database fails; trying again in %.0f s", _AFTER_TROUBLE)
            return _AFTER_TROUBLE
        return interval

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP))

    def _stop(self, *_: object) -> None:
        self._stopped = True


@contextmanager
def _called_by_signals(stop: Callable[..., None]) -> Iterator[None]:
    """Others, such as tests, call the command in a process that lives on."""
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

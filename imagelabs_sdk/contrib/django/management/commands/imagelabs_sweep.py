"""``manage.py imagelabs_sweep``: the worker that submits and polls jobs."""

import logging
import signal
import threading
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import Error, close_old_connections
from django.utils import timezone

from ...clients import clients
from ...conf import SettingsError, sweep_settings
from ...sweep import Sweeper, in_process_aliases, sweep_status

log = logging.getLogger("imagelabs_sdk.contrib.django.sweep")

_NAP = 0.2  # seconds after which a signal is noticed
_AFTER_FAILURE = 5.0  # seconds to wait when the database fails
_REPORT_EVERY = 60.0  # seconds between two counts in the log


class Command(BaseCommand):
    """Take steps of every job that is due, again and again, until SIGTERM or Ctrl-C."""

    help = (
        "Submit and poll image jobs until SIGTERM or Ctrl-C; steps under way get a few seconds to "
        "finish. Any number may run at once."
    )
    _stopped = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the command's options."""
        parser.add_argument("--once", action="store_true", help="what is due now, then end")
        parser.add_argument(
            "--interval", type=float, default=1.0, help="seconds between sweeps (default: 1)"
        )
        parser.add_argument(
            "--threads", type=int, help="steps at once (default: IMAGELABS_SWEEP, or 8)"
        )
        parser.add_argument("--database", help="alias of the database, if not the models' own")
        parser.add_argument(
            "--status", action="store_true", help="print how the outstanding jobs stand, then end"
        )
        parser.add_argument(
            "--max-overdue", type=float, default=60.0, metavar="SECONDS",
            help="with --status: fail if a job has been due for longer (default: 60)",
        )  # fmt: skip

    def handle(self, *_: Any, **options: Any) -> None:
        """Sweep, or print the status."""
        if options["status"]:
            self._print_status(options)
            return
        threads = options["threads"]
        if (threads is not None and threads < 1) or not options["interval"] > 0:
            raise CommandError("--threads must be 1 or more, --interval above 0")
        try:
            skip, conf = in_process_aliases(), sweep_settings()
        except SettingsError as error:
            raise CommandError(f"{error} {error.hint}") from error
        if skip == set(clients):
            raise CommandError(
                "every alias of IMAGELABS is a service inside the web process, which has its jobs: "
                "their pages poll them. For workers, run `imagelabs serve` and give its address "
                "as base_url."
            )
        with (
            _handled_signals(self._stop),
            Sweeper(
                threads=threads,
                using=options["database"],
                skip=skip,
                drain_timeout=conf.drain_timeout,
            ) as sweeper,
        ):
            if options["once"]:
                sweeper.sweep(stop=lambda: self._stopped, due_by=timezone.now())
                return
            self._run(sweeper, options["interval"])

    def _run(self, sweeper: Sweeper, interval: float) -> None:
        log.info("sweeping image jobs")
        counted, report_at = 0, time.monotonic() + _REPORT_EVERY
        while not self._stopped:
            taken, pause = self._sweep(sweeper, interval)
            counted += taken
            if time.monotonic() >= report_at:
                log.debug("%d steps in the last minute", counted)
                counted, report_at = 0, time.monotonic() + _REPORT_EVERY
            self._sleep(pause)
        log.info("stopped sweeping image jobs")

    def _sweep(self, sweeper: Sweeper, interval: float) -> tuple[int, float]:
        """Sweep once; return how many steps were taken, and for how long to pause, in seconds."""
        close_old_connections()
        try:
            return sweeper.sweep(stop=lambda: self._stopped), interval
        except Error:
            log.exception("the database fails; trying again in %.0f s", _AFTER_FAILURE)
            return 0, _AFTER_FAILURE

    def _print_status(self, options: dict[str, Any]) -> None:
        status = sweep_status(options["database"])
        self.stdout.write(
            f"outstanding: {status.outstanding}\nqueued: {status.queued}\n"
            f"oldest due for: {status.overdue:.0f} s\n"
            f"services with failing polls: {', '.join(status.troubled) or 'none'}"
        )
        if status.overdue > options["max_overdue"]:
            raise CommandError(f"a job has been due for {status.overdue:.0f} s: does a sweep run?")

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopped and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _NAP))

    def _stop(self, *_: object) -> None:
        self._stopped = True


@contextmanager
def _handled_signals(stop: Callable[..., None]) -> Iterator[None]:
    """Handle SIGTERM and SIGINT in here; in a thread, where Python allows no handlers, do not."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

"""Word of a run that goes wrong, to a webhook or a command; what fails of it is said, and stops nothing."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Iterable
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from ghosttune.config.sections.run import AlertSettings

if TYPE_CHECKING:
    from ghosttune.training.watching import Listener

SECONDS = 10
"""How long a webhook or a command may take."""


class _NoRedirect(HTTPRedirectHandler):
    """An address is a password, and so is what it leads to."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


class Alerts:
    """A listener that passes events on, and sends word of those that `alerts.on` names.

    Args:
        settings: of the section `alerts`.
        run: the run's name.
        listen: hears every event, and of what could not be sent.
        before: events of a run that goes on, which are counted and not told.
    """

    def __init__(self, settings: AlertSettings, run: str, listen: Listener, before: Iterable[dict[str, Any]] = ()):
        self.settings, self.run, self.listen = settings, run, listen
        self.best, self.best_step, self.waited = math.inf, 0, 0
        for event in before:
            self._count(event)

    def hear(self, event: dict[str, Any]) -> None:
        """Passes the event on; then sends what is to be said of it."""
        self.listen(event)
        self._count(event)
        if _judges(event) and self.waited == self.settings.patience:
            text = f"no evaluation since step {self.best_step} was better ({self.waited} in a row)"
            self.send("plateau", event["step"], text)
        if event["event"] == "end" and event["verdict"]["verdict"] == "worse":
            base, tuned = event["verdict"]["dev_loss_base"], event["verdict"]["dev_loss"]
            text = f"the adapter is worse than the untouched base: dev loss {base:.4f} -> {tuned:.4f}"
            self.send("worse", event["verdict"]["best_step"], text)

    def _count(self, event: dict[str, Any]) -> None:
        if not _judges(event):
            return
        judged = -event["reward"] if "reward" in event else event["loss"]
        if judged < self.best:
            self.best, self.best_step, self.waited = judged, event["step"], 0
        else:
            self.waited += 1

    def send(self, kind: str, step: int | None, text: str) -> None:
        """Sends word of one kind, where it is asked for."""
        if kind not in (self.settings.on or ()):
            return
        message = {"alert": kind, "run": self.run, "step": step, "text": f"{self.run}: {text}"}
        ways = {"webhook": (self.settings.webhook, _post), "command": (self.settings.command, _run)}
        for name, (way, use) in ways.items():
            if way is not None and (fault := use(way, message)) is not None:
                self.listen({"event": "notice", "text": f"alerts.{name} could not be told ({fault}) that {text}"})


def _judges(event: dict[str, Any]) -> bool:
    """Whether it is an evaluation of trained weights on dev rows."""
    return event["event"] == "eval" and event["split"] == "dev" and event["step"] > 0


def fault_of_address(variable: str) -> str | None:
    """Why the variable holds no address that can be told; never with what it holds."""
    try:
        place = urlsplit(os.environ.get(variable, ""))
        fits = place.scheme in ("http", "https") and bool(place.hostname) and place.port != 0
    except ValueError:
        fits = False
    if variable not in os.environ:
        return f"the environment variable {variable} is not set; it holds the address to tell"
    return None if fits else f"the environment variable {variable} holds no http or https address"


def _post(variable: str, message: dict[str, Any]) -> str | None:
    """Sends the message; what went wrong, without the address."""
    if fault := fault_of_address(variable):
        return fault
    body = json.dumps(message | {"content": message["text"]}).encode()  # Slack reads `text`, Discord `content`
    headers = {"Content-Type": "application/json", "User-Agent": "ghosttune"}
    try:
        request = Request(os.environ[variable], body, headers)
        with build_opener(_NoRedirect).open(request, timeout=SECONDS):
            return None
    except HTTPError as error:
        return f"it answers {error.code}"
    except (OSError, ValueError, HTTPException) as error:
        return type(getattr(error, "reason", error)).__name__


def _run(command: str, message: dict[str, Any]) -> str | None:
    """Runs the command with the message in its environment; what went wrong."""
    told = {
        "GHOSTTUNE_ALERT": message["alert"],
        "GHOSTTUNE_MESSAGE": message["text"],
        "GHOSTTUNE_RUN": message["run"],
        "GHOSTTUNE_STEP": "" if message["step"] is None else str(message["step"]),
    }
    quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    try:
        process = subprocess.Popen(command, shell=True, env=os.environ | told, start_new_session=True, **quiet)
        code = process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # what the command has started, too
        process.wait()
        return f"it took over {SECONDS} s"
    except (OSError, ValueError) as error:
        return type(error).__name__
    return f"it ended with {code}" if code else None

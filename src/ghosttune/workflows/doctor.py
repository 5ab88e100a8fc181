"""What a report of a bug needs to know of this machine and installation: no paths, no names of users, no secrets."""

from __future__ import annotations

import os
import platform
import shutil
import tempfile
import time
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from ghosttune.run.versions import EXTRAS, installed, packages, unmet_requirements
from ghosttune.training.memory import free_memory
from ghosttune.version import __version__

SECONDS = 5
"""How long a place in the network may take to answer."""

INDEX = "https://pypi.org/simple/pip/"
HUB = "https://huggingface.co"

BESIDE = ("tokenizers", "huggingface_hub")
"""Packages that others bring along, and that bugs often depend on."""


def doctor(network: bool = False) -> dict[str, Any]:
    """Versions, devices, memory, disk, extras, and with `network` who answers; costs `import torch`.

    Sizes are in bytes. The network is asked for the heads of two pages, of the package index and of the hub.
    """
    extras = {extra: {"for": use, "packages": packages(extra)} for extra, use in EXTRAS.items()}
    return {
        "ghosttune": __version__,
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
        "packages": packages() | {name: installed(name) for name in BESIDE},
        "unmet": unmet_requirements(),
        "devices": _devices(),
        "memory": _memory(),
        "disk": _disk(),
        "extras": extras,
        "network": {name: _answer(url) for name, url in _places().items()} if network else None,
    }


def as_lines(found: dict[str, Any]) -> list[str]:
    """The same for a person."""
    devices = found["devices"]
    extras = found["extras"].items()
    width = max(len(extra) for extra, _ in extras)
    sections = {
        "ghosttune": [f"{found['ghosttune']}, Python {found['python']}, {found['system']}"],
        "packages": _wrapped([_versioned(*one) for one in found["packages"].items()]),
        "wrong": found["unmet"],
        "devices": [f"cpu: {devices['cpus']} cores, {devices['threads']} threads of torch", *devices["others"]],
        "memory": [_of(**found["memory"])],
        "disk": [f"{_of(**sizes)} {where}" for where, sizes in found["disk"].items()],
        "extras": [f"{extra:<{width}}  {_extra(about['packages'])}  ({about['for']})" for extra, about in extras],
        "network": [f"{name}: {answer}" for name, answer in found["network"].items()]
        if found["network"]
        else ["not asked: --network asks the package index and the hub"],
    }
    return [f"{title if not n else '':<11}{line}" for title, part in sections.items() for n, line in enumerate(part)]


def _devices() -> dict[str, Any]:
    """What torch can compute on, or why it cannot be imported."""
    cpus = os.cpu_count()
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"cpus": cpus, "threads": None, "others": [f"torch cannot be imported: {_without_home(str(error))}"]}
    others = [_cuda(torch, index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        others.append("mps")
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return {"cpus": cpus, "threads": torch.get_num_threads(), "others": others or [f"no GPU; torch is built {built}"]}


def _cuda(torch: Any, index: int) -> str:
    about = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return f"cuda:{index}: {about.name}, compute {about.major}.{about.minor}, {_of(total, free)}"


def _memory() -> dict[str, int]:
    import psutil

    return {"total": psutil.virtual_memory().total, "free": free_memory("cpu")}


def _disk() -> dict[str, dict[str, int]]:
    """Of the places that runs, models and files on their way need."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {
        "here": Path.cwd(),
        "for models of the hub": Path(HF_HUB_CACHE),
        "for temporary files": tempfile.gettempdir(),
    }
    return {name: _space(Path(path)) for name, path in places.items()}


def _space(folder: Path) -> dict[str, int]:
    """Of a folder that may have to be made yet."""
    usage = shutil.disk_usage(next(one for one in (folder, *folder.absolute().parents) if one.is_dir()))
    return {"total": usage.total, "free": usage.free}


def _places() -> dict[str, str]:
    return {"package index": INDEX, "hub": os.environ.get("HF_ENDPOINT", HUB)}


def _answer(url: str) -> str:
    """What asking for a head brought, and how long it took; of an address only its host is said."""
    start = time.monotonic()
    try:
        place = urlsplit(url)
        without_password = place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()
        with urlopen(Request(without_password, method="HEAD"), timeout=SECONDS) as answered:
            said = f"answers ({answered.status})"
    except HTTPError as error:
        said = f"answers ({error.code})"
    except OSError as error:
        said = f"does not answer ({_without_home(str(getattr(error, 'reason', error)))})"
    except (ValueError, HTTPException):
        return "is given by HF_ENDPOINT, which is no address"
    offline = ", and is not asked by ghosttune: HF_HUB_OFFLINE is set" if _is_offline(url) else ""
    return f"{place.hostname} {said} after {time.monotonic() - start:.1f} s{offline}"


def _is_offline(url: str) -> bool:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    return url != INDEX and HF_HUB_OFFLINE


def _without_home(text: str) -> str:
    home = str(Path.home())
    return text.replace(home, "~") if len(home) > 1 else text


def _of(total: int, free: int) -> str:
    return f"{total / 2**30:.1f} GiB, {free / 2**30:.1f} free"


def _versioned(name: str, version: str | None) -> str:
    return f"{name} {version or 'is missing'}"


def _extra(found: dict[str, str | None]) -> str:
    if not found:
        return "unknown to this installation: install ghosttune again"
    if not any(found.values()):
        return "not installed"
    return ", ".join(_versioned(*one) for one in found.items())


def _wrapped(words: list[str], most: int = 5) -> list[str]:
    """The words, so many to a line."""
    return [", ".join(words[start : start + most]) for start in range(0, len(words), most)]

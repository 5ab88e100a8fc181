"""The server as a process: where it listens, and how it ends."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from ghosttune.errors import InputError


def listen(
    run_or_model: str,
    host: str,
    port: int,
    api_key: str | None,
    waiting: int,
    max_tokens: int,
    device: str,
    trust_remote_code: bool,
) -> None:
    """Serves the model until Ctrl-C; InputError without the extra, and when the address cannot be had."""
    try:
        import uvicorn

        from ghosttune.inference.serving import Limits, create_app
    except ModuleNotFoundError as error:
        raise InputError(f"serving needs {error.name}: pip install 'ghosttune[serve]'") from error
    from ghosttune.inference.pipeline import Pipeline

    pipeline = Pipeline.open(run_or_model, device, trust_remote_code)
    name = Path(run_or_model).resolve().name if Path(run_or_model).exists() else run_or_model
    app = create_app(pipeline, name, Limits(waiting=waiting, max_new_tokens=max_tokens), api_key)
    config = uvicorn.Config(app, host=host, port=port, log_level="warning", timeout_graceful_shutdown=5)
    try:
        opened: Any = config.bind_socket()
    except SystemExit:
        raise InputError(f"{host}:{port} cannot be listened at; give another --port or --host") from None
    address = f"http://{host}:{opened.getsockname()[1]}"
    print(f"{name} answers at {address} (OpenAI clients: {address}/v1). Ctrl-C ends.", flush=True)  # noqa: T201
    with suppress(KeyboardInterrupt):  # the way it ends
        uvicorn.Server(config).run(sockets=[opened])

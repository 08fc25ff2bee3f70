"""`plaudit serve`: a reward model behind the wire dialects of RL frameworks and rerankers."""

import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from plaudit.cli import display
from plaudit.cli.model_options import model_options
from plaudit.errors import ConfigError

if TYPE_CHECKING:
    from plaudit.serving.authentication import ApiKeys
    from plaudit.serving.scoring_service import AnsweringModel

__all__ = ["command"]

_DIALECTS = ("vllm", "tei", "sglang", "infinity", "cohere", "jina", "openrlhf", "slime", "llama_factory", "huggingface")


@click.command("serve", context_settings={"default_map": {"overlong": "error"}})
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="Port; 0 for a free one.")
@click.option("--api_keys", metavar="FILE", help="Keys of clients, one a line. PLAUDIT_API_KEYS holds them otherwise.")
@click.option("--admin_keys", metavar="FILE", help="Keys of operators, for POST /admin/reload.")
@click.option("--reload_root", metavar="FOLDER", help="The folder below which /admin/reload finds new weights.")
@click.option(
    "--dialect", type=click.Choice(_DIALECTS), default="vllm", show_default=True,
    help="The dialect that has the paths which several share, such as /classify. All stand under /NAME as well.",
)  # fmt: skip
@click.option("--allowed_hosts", metavar="NAME,...", help="Names under which clients may reach the server.")
@click.option("--insecure", is_flag=True, help="Listen on another address than this machine's without keys.")
@click.option("--deadline", type=click.FloatRange(0, min_open=True), default=110.0, show_default=True,
              help="Seconds within which a request is answered, or else refused.")  # fmt: skip
@click.option("--max_items", type=click.IntRange(1), default=10_000, show_default=True, help="Most items of a request.")
@click.option("--max_queued_items", type=click.IntRange(1), default=100_000, show_default=True,
              help="Most items that wait.")  # fmt: skip
@click.option("--max_body_mb", type=click.IntRange(1), default=64, show_default=True, help="Most MiB of a request.")
@click.option(
    "--engine", type=click.Choice(["local", "ray"]), default="local", show_default=True,
    help="Run the model in this process, or on Ray Serve: the cluster of RAY_ADDRESS, or this machine.",
)  # fmt: skip
@click.option("--replicas", type=click.IntRange(1), help="Copies of each model on Ray.  [default: 2]")
@model_options
def command(
    models: tuple[str, ...],
    host: str,
    port: int,
    api_keys: str | None,
    admin_keys: str | None,
    reload_root: str | None,
    dialect: str,
    allowed_hosts: str | None,
    insecure: bool,
    deadline: float,
    max_items: int,
    max_queued_items: int,
    max_body_mb: int,
    engine: str,
    replicas: int | None,
    overlong: str,
    **options: Any,
) -> None:
    """Serve MODEL (a folder, an adapter's folder or a hub id) over HTTP, with raw rewards for every dialect.

    Several models are told apart by name: the last part of the path, or NAME in NAME=MODEL. The server refuses a
    sequence that is too long, unless `--overlong truncate` is given or the request asks for truncation.
    """
    # Not at the top of the module: these imports take seconds, and `--help` must not wait for them.
    _check_extra()
    with display.while_importing():
        from plaudit.serving.application import create_application
        from plaudit.serving.scoring_service import ScoringService
        from plaudit.serving.server import listen, run
        from plaudit.serving.server_limits import ServerLimits

        display.show_log_messages()
    limits = ServerLimits(
        max_items=max_items, max_queued_items=max_queued_items, max_body_bytes=max_body_mb << 20,
        max_queued_bytes=max(4 * max_body_mb, 256) << 20, deadline_seconds=deadline,
    )  # fmt: skip
    named = _named(models)
    keys = _keys(api_keys)
    _check_address(host, keys, insecure)
    if replicas is not None and engine != "ray":
        raise ConfigError("--replicas: expected --engine ray beside it.")
    listener = listen(host, port)  # before the model loads, which takes longer than to read that the port is in use
    service = ScoringService(limits, truncates=overlong == "truncate")
    load = _loader(service, options, (replicas or 2) if engine == "ray" else None)
    application = create_application(
        service, dialect=dialect, keys=keys, allowed_hosts=_hosts(host, allowed_hosts),
        **_admin(service, load, admin_keys, reload_root, on_ray=engine == "ray"),
    )  # fmt: skip
    with display.spinner("Loading ..."):
        service.serve([load(name, place) for name, place in named.items()])

    def show(url: str) -> None:
        names = ", ".join(model.info.name for model in service.models)
        display.console.print(f"Serving {names} at {url} (page: {url}/)", soft_wrap=True, highlight=False)

    sys.exit(run(application, service, listener, on_ready=show))


def _check_extra() -> None:
    try:
        import httptools  # noqa: F401
        import prometheus_client  # noqa: F401
        import pydantic  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"plaudit serve needs {error.name}: pip install 'plaudit[serve]'") from error


def _keys(path: str | None) -> "ApiKeys | None":
    from plaudit.serving.authentication import ApiKeys

    return ApiKeys.from_file(Path(path)) if path is not None else ApiKeys.from_environment("PLAUDIT_API_KEYS")


def _check_address(host: str, keys: object, insecure: bool) -> None:
    if not _is_loopback(host) and keys is None and not insecure:
        raise ConfigError(
            f"--host {host}: expected --api_keys where other machines can reach the server: without keys anybody could "
            f"use the model. Write a key into a file (openssl rand -hex 32 > keys.txt), or pass --insecure."
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _hosts(host: str, given: str | None) -> list[str] | None:
    """Return the host names to answer to: on this machine alone its own, so that no web page can reach the server."""
    names = [name.strip() for name in given.split(",")] if given else []
    if _is_loopback(host):
        return ["localhost", "127.0.0.1", "::1", host, *names]
    return names or None


def _loader(
    service: Any, options: dict[str, Any], replicas: int | None
) -> "Callable[[str, str | Path], AnsweringModel]":
    """Return the function that loads a model into this process, or into replicas on Ray."""
    if replicas is not None:
        from plaudit.serving.ray_replicas import RayReplicas

        return lambda name, path: RayReplicas(name, str(path), replicas, truncates=service.truncates, options=options)
    from concurrent.futures import ThreadPoolExecutor
    from threading import Lock

    from plaudit.scoring.reward_model import RewardModel
    from plaudit.serving.served_model import ServedModel, load_in_passing_thread

    pool, lock = ThreadPoolExecutor(2, "rendering"), Lock()

    def load(name: str, path: str | Path) -> ServedModel:
        return ServedModel(
            name, RewardModel.from_pretrained(path, **options), pool=pool, truncates=service.truncates,
            device_lock=lock, on_step=service.record_step,
        )  # fmt: skip

    return lambda name, path: load_in_passing_thread(lambda: load(name, path))


def _admin(service: Any, load: Any, keys: str | None, root: str | None, *, on_ray: bool) -> dict[str, Any]:
    """Return the arguments of `create_application` for operators."""
    if (keys is None) != (root is None):
        raise ConfigError("--admin_keys, --reload_root: expected both or neither.")
    if keys is None or root is None:
        return {}
    if on_ray:
        raise ConfigError("--reload_root: expected --engine local; replicas on Ray keep their weights.")
    from plaudit.serving.authentication import ApiKeys
    from plaudit.serving.weight_swap import reload_route

    folder = Path(root).expanduser()
    if not folder.is_dir():
        raise ConfigError(f"--reload_root: there is no folder {root!r}.")
    return {"admin": [reload_route(service, load, root=folder)], "admin_keys": ApiKeys.from_file(Path(keys))}


def _named(models: tuple[str, ...]) -> dict[str, str]:
    """Return the places of models by name; each is given as MODEL or NAME=MODEL."""
    named: dict[str, str] = {}
    for model in models:
        name, _, place = model.partition("=")
        if Path(model).expanduser().is_dir():  # "=" may be part of its path
            name, place = Path(model).expanduser().absolute().name, model
        elif not (name and place):
            name = place = model
        if name in named:
            both = f"{named[name]} and {place}"
            raise ConfigError(f"MODEL: expected different names, got {both} as {name!r}. Name one: NAME=MODEL.")
        named[name] = place
    return named

"""`POST /admin/reload`: other weights for a model that is served, without a pause and without a mixed answer."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from plaudit.checkpoint.verify import verify
from plaudit.errors import PlauditError
from plaudit.serving.dialects.native import NATIVE
from plaudit.serving.json_body import read_json, validate
from plaudit.serving.scoring_service import AnsweringModel, ScoringService
from plaudit.serving.serving_errors import ServingError

__all__ = ["reload_route"]

logger = logging.getLogger(__name__)


class _Reload(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    path: Annotated[str, Field(min_length=1)]
    model: str | None = None


def reload_route(service: ScoringService, load: Callable[[str, Path], AnsweringModel], *, root: Path) -> Route:
    """Return the route that swaps the weights of a model.

    The new folder is verified, loaded and warmed up while the old weights answer. Requests that have begun finish with
    the old weights, so each answer is of one version, and says which. Whatever fails leaves the old weights in place.

    Args:
        service: The service.
        load: `load(name, folder)` loads a model; it runs in a thread.
        root: The folder below which new weights must lie.
    """
    busy = asyncio.Lock()

    async def reload(request: Request) -> Response:
        try:
            if busy.locked():
                raise ServingError("overloaded", "another reload is running.", retry_after=10)
            async with busy:
                body = validate(_Reload, read_json(await request.body(), service.limits))
                old = service.choose(body.model)
                folder = _below(root, body.path)
                new = await asyncio.to_thread(_verified, folder, lambda: load(old.info.name, folder))
                service.replace(new)
                logger.info(
                    "%s: weights %s replace %s", new.info.name, new.info.weight_version, old.info.weight_version
                )
                return JSONResponse(
                    {
                        "model": new.info.name,
                        "weight_version": new.info.weight_version,
                        "previous": old.info.weight_version,
                    }
                )
        except ServingError as error:
            logger.warning("a reload failed: %s", error.message)
            status, described = NATIVE.error(error)
            headers = {"Retry-After": str(error.retry_after)} if error.retry_after else None
            return JSONResponse(described, status, headers)

    return Route("/admin/reload", reload, methods=["POST"])


def _below(root: Path, path: str) -> Path:
    """Return the folder that a request names, which must lie below the root once links are followed."""
    folder = (root / path).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise ServingError("forbidden", "path: expected a folder below the server's --reload_root.", param="path")
    if not folder.is_dir():
        raise ServingError("invalid", "path: there is no such folder below --reload_root.", param="path")
    return folder


def _verified(folder: Path, load: Callable[[], AnsweringModel]) -> AnsweringModel:
    try:
        verification = verify(folder)
        if verification.status != "verified":
            remarks = "; ".join(f"{each.layer}: {each.message}" for each in verification.findings if not each.holds)
            raise ServingError("invalid", f"path: the folder is not verified, and the old weights stay. {remarks}")
        return load()
    except PlauditError as error:
        if isinstance(error, ServingError):
            raise
        raise ServingError("invalid", f"path: the weights cannot be loaded, and the old ones stay. {error}") from None

"""placeholder until merged"""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as BoundedHttpProtocol

__all__ = ["BoundedHttpProtocol"]

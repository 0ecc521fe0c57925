"""The built page's files."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["Page"]

_FOR_LONG = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"

_MISSING = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Weft</title>
<h1>Weft runs, but its page is not built</h1>
<p>Build it once, then reload:</p>
<pre>npm --prefix clients/web ci &amp;&amp; npm --prefix clients/web run build</pre>
<p>gRPC, gRPC-Web and REST work without it.</p>
</html>
"""


class Page(StaticFiles):
    """Serves `directory`. Vite puts a hash into the names under `assets/`, so those never change.

    A path without a file and without an ending is one of the page's own: it gets `index.html`.
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(directory=directory, check_dir=False, html=True)

    async def check_config(self) -> None:
        """The page may be built while the program runs."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        try:
            response = await super().get_response(path, scope)
        except HTTPException as error:
            if error.status_code != 404 or Path(path).suffix:
                raise
            response = await self._from_index(scope)
        kept = path.startswith("assets/") and response.status_code < 400
        response.headers["cache-control"] = _FOR_LONG if kept else _ASK_AGAIN
        return response

    async def _from_index(self, scope: Scope) -> Response:
        try:
            return await super().get_response("index.html", scope)
        except HTTPException as error:
            if error.status_code != 404:
                raise
            return HTMLResponse(_MISSING, status_code=503)

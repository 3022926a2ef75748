"""Swagger UI at `/docs`, from an installed package so that it works without a network."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

from demi.server.http.console import headers

_ASSETS = "docs/assets"

_PAGE = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Demi: API</title>
<link rel="icon" href="{_ASSETS}/favicon.png">
<link rel="stylesheet" href="{_ASSETS}/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="{_ASSETS}/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""

_START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  layout: "BaseLayout",
  deepLinking: true,
  presets: [SwaggerUIBundle.presets.apis, SwaggerUIBundle.SwaggerUIStandalonePreset],
});
"""
"""A file of its own: the page's Content-Security-Policy allows no script inside it."""


def docs_routes(app: FastAPI) -> None:
    """Add the page and its assets. Only the static files of fastapi-offline are used."""
    app.mount(f"/{_ASSETS}", StaticFiles(directory=str(files("fastapi_offline") / "static")))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """Serve the API documentation."""
        return HTMLResponse(_PAGE, headers=headers.DOCS)

    @app.get("/docs/start.js", include_in_schema=False)
    async def start() -> Response:
        """Serve the script that starts it."""
        return Response(_START, media_type="text/javascript")

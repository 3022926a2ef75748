"""`/docs`: Swagger UI from an installed package, so that it works where there is no network."""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

_ASSETS = "/docs/assets"


def docs_routes(app: FastAPI) -> None:
    """Add the page and its files: fastapi-offline carries them, of which nothing else is used here."""
    app.mount(_ASSETS, StaticFiles(directory=str(files("fastapi_offline") / "static")))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        """Every path, to read and to try."""
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="Demi",
            swagger_js_url=f"{_ASSETS}/swagger-ui-bundle.js",
            swagger_css_url=f"{_ASSETS}/swagger-ui.css",
            swagger_favicon_url=f"{_ASSETS}/favicon.png",
        )

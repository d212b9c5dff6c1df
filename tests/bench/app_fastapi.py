"""FastAPI: one JSON path operation with a path and a query parameter. Imported only by servers, never by the bench."""

from __future__ import annotations

try:
    from fastapi import FastAPI
except ImportError as error:
    raise SystemExit(f"the FastAPI case needs fastapi in the servers' environment: {error}") from error

app = FastAPI(openapi_url=None)


@app.get("/items/{item_id}")
async def read_item(item_id: int, q: str = "") -> dict[str, object]:
    """The path operation of FastAPI's own first example."""
    return {"item_id": item_id, "q": q, "name": "Plumbus", "tags": ["a", "b", "c"]}

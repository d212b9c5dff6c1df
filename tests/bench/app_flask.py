"""Flask: one JSON view with a path and a query parameter. Imported only by servers, never by the bench."""

from __future__ import annotations

try:
    from flask import Flask, request
except ImportError as error:
    raise SystemExit(f"the Flask case needs flask in the servers' environment: {error}") from error

app = Flask(__name__)


@app.get("/items/<int:item_id>")
def read_item(item_id: int) -> dict[str, object]:
    """The same answer as in app_fastapi.py."""
    return {"item_id": item_id, "q": request.args.get("q", ""), "name": "Plumbus", "tags": ["a", "b", "c"]}

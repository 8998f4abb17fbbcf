"""The pages: `/` a feed as a person sees it, `/ops` what the service does now, `/docs` what it can be asked.

Files as they are in `serving/web`, read once. A browser asks each time whether its copy is still the right one, which
costs a comparison of tags. Pages run the scripts of this service and no others, and talk to it alone.
"""

import hashlib
from importlib import resources

from fastapi import APIRouter, HTTPException, Request, Response

router = APIRouter(include_in_schema=False)

TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
PAGES = {"index.html", "ops.html", "docs.html"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)

_FILES = {
    file.name: file.read_bytes() for file in resources.files("serving").joinpath("web").iterdir() if file.is_file()
}
_TAGS = {name: f'"{hashlib.sha256(content).hexdigest()[:16]}"' for name, content in _FILES.items()}


@router.api_route("/", methods=["GET", "HEAD"])
async def feed_page(request: Request) -> Response:
    """A feed as a person sees it."""
    return _file(request, "index.html")


@router.api_route("/ops", methods=["GET", "HEAD"])
async def operations_page(request: Request) -> Response:
    """What the service does now."""
    return _file(request, "ops.html")


@router.api_route("/docs", methods=["GET", "HEAD"])
async def docs_page(request: Request) -> Response:
    """What the service can be asked."""
    return _file(request, "docs.html")


@router.api_route("/web/{name}", methods=["GET", "HEAD"])
async def file(request: Request, name: str) -> Response:
    """A script, a style or an image of the pages."""
    if name not in _FILES or name in PAGES:
        raise HTTPException(404, f"there is no file {name!r}")
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    headers = {
        "cache-control": "no-cache",
        "content-security-policy": POLICY,
        "etag": _TAGS[name],
        "referrer-policy": "no-referrer",
        "x-content-type-options": "nosniff",
    }
    if _TAGS[name] in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(_FILES[name], media_type=TYPES[name.rsplit(".", 1)[1]], headers=headers)

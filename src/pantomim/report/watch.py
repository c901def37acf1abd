"""The page of a run that is being trained, served on this machine alone; what it shows is read anew each time."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from markupsafe import escape

from pantomim.report.page import report_of
from pantomim.report.stages import is_chain, stage_folders, stages_report_of

LOOPBACK = "127.0.0.1"


def watch_server(run: str | Path, port: int, every: float) -> ThreadingHTTPServer:
    """A server of the page of a run, reloaded by browsers `every` so many seconds; nothing is written. Port 0: any."""
    folder = Path(run)
    if not folder.is_dir():
        raise ValueError(f"watch.run must be a run folder; got {folder}, which is none. Give that of a training run.")

    if not every > 0:
        raise ValueError(f"watch.every must be above 0 seconds; got {every:g}. Leave it out for 10.")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]
            shown = {"/": folder}
            if is_chain(folder):
                shown |= {f"/{stage.name}/report.html": stage for stage in stage_folders(folder)}
            of = shown.get(self.path.partition("?")[0])
            if host not in (LOOPBACK, "localhost") or of is None:  # no other site's page asks
                self.send_error(404)
                return
            try:
                page = stages_report_of(of) if is_chain(of) else report_of(of)
            except (ValueError, OSError) as error:  # it has not begun, say
                page = f"<!doctype html><title>pantomim</title><p>There is no page yet: {escape(error)}</p>"
            body = page.encode(errors="replace")
            self.send_response(200)
            headers = {"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(body))}
            for name, value in (headers | {"Refresh": f"{every:g}", "Cache-Control": "no-store"}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: below the command line nothing prints."""

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        raise ValueError(f"watch.port must be free; got {port} ({error}). Give another, or 0 for any.") from error

from pathlib import Path

from tyro.conf import Positional

from pantomim.cli.command_line import typed
from pantomim.cli.console import say


@typed()
def watch(run: Positional[Path], port: int = 8800, every: float = 10.0) -> None:
    """Serve the page of a running job on this machine, read only, until Ctrl-C.

    Args:
        run: A run folder, or that of a chain of runs.
        port: On 127.0.0.1; 0 for any that is free.
        every: Seconds after which browsers load the page again.
    """
    from pantomim.report.watch import LOOPBACK, watch_server

    with watch_server(run, port, every) as server:
        say(f"{run} at http://{LOOPBACK}:{server.server_port}/ (Ctrl-C ends this)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            say("")

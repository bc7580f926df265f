"""Start the page: a private folder, the guard, Gradio, and an end that leaves nothing behind."""

from __future__ import annotations

import ipaddress
import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vision.common.core.errors import VisionError
from vision.common.core.extras import import_extra
from vision.stream.io.stopping import stop_signals
from vision.web.guard import Guard
from vision.web.limits import Limits
from vision.web.models import Models
from vision.web.visitors import Visitors

STYLE = Path(__file__).with_name('style.css')
# Gradio reads these when it is imported: nothing is reported, nothing is looked up.
QUIET = dict(GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1', GRADIO_SSR_MODE='False',
             HF_HUB_DISABLE_TELEMETRY='1')


@contextmanager
def running(models: Models, limits: Limits, *, host: str = '127.0.0.1', port: int = 7860,
            share: bool = False) -> Iterator[str]:
    """The page's address while it is served; uploads and results are deleted at the end.

    Raises:
        VisionError: VIS-ENV-1774 the port is taken, VIS-ENV-1713 Gradio is not installed.
    """
    with tempfile.TemporaryDirectory(prefix='vision-web-') as store:
        os.environ.update(QUIET, GRADIO_TEMP_DIR=store)
        import_extra('gradio', extra='web', needed_for='vision web')

        from vision.web.page import build_page, theme
        visitors = Visitors(Path(store), limits)
        page = build_page(models, visitors, limits)
        try:
            _, address, public = page.launch(
                server_name=host, server_port=port, share=share, prevent_thread_lock=True,
                max_file_size=limits.max_bytes, quiet=True, show_error=False, footer_links=[],
                theme=theme(), css=STYLE.read_text(), ssr_mode=False, inbrowser=False,
                enable_monitoring=False, allowed_paths=[], pwa=False, mcp_server=False,
                # Starlette unpacks class, arguments and keywords, whoever bundled them.
                app_kwargs=dict(middleware=[(Guard, (), dict(visitors=visitors))],
                                docs_url=None, redoc_url=None))
        except (OSError, OverflowError) as error:
            raise VisionError('VIS-ENV-1774', f'{host}:{port} cannot be served', where='--port',
                              why='the port is taken or none (1 to 65535), or the address is not '
                              'this machine\'s', do='choose others with --port and --host'
                              ) from error
        try:
            yield public or address
        finally:
            page.close(verbose=False)


def serve(given: Sequence[str] = (), limits: Limits | None = None, *, host: str = '127.0.0.1',
          port: int = 7860, share: bool = False, tell: Callable[[str], None] = print) -> None:
    """Serve the page until Ctrl-C.

    Args:
        given: as of ``Models``; none: what is here of the zoo.
        tell: gets the address, and a warning when others can reach it.
    """
    if share or not is_local(host):
        tell(f'WARNING {"everybody who knows the address" if share else "other machines"} can use '
             'this page and the processor behind it; put a password before it '
             '(vision/web/README.md)')
    ended = threading.Event()
    with stop_signals(ended.set), running(Models(given), limits or Limits(), host=host, port=port,
                                          share=share) as address:
        tell(f'the page is at {address} (Ctrl-C ends it and deletes all uploads)')
        ended.wait()
        tell('ended')


def is_local(host: str) -> bool:
    """Whether this machine alone can reach it."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'
